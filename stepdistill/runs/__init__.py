"""A run: its configuration, its folder, its stages, its log and what it costs."""
