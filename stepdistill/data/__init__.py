"""Numbered batches: what is trained on."""
