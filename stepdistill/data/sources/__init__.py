"""One source of samples a file."""
