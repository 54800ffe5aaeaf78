"""Signals watched while a student trains."""
