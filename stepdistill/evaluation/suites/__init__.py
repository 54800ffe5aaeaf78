"""What a YAML cannot say of a suite: one task a file."""
