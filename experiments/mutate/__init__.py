"""Mutated files for every reader of files that come from others."""
