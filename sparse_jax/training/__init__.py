"""Sparse training: rules, schedules, transforms and the loop."""
