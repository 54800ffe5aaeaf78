"""The spaces in which images are compared, one a file."""
