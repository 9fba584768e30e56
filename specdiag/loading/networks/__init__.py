"""The built-in networks, one family per file."""
