"""Players, the trainer, its checkpoints and its health."""
