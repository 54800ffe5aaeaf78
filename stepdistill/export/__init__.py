"""A student as files that work without this toolkit."""
