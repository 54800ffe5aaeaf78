"""One distillation method a file, found by name."""
