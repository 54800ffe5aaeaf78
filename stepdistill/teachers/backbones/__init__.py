"""One family of pipelines a file."""
