"""What methods add up: losses that are pure functions of tensors and denoisers."""
