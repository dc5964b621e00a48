"""Kills runs and compares what they end with."""
