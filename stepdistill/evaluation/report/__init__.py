"""Rows of scores as results.json, report.md and report.html."""
