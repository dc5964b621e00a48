"""Notebooks, and the command that runs them without a browser."""
