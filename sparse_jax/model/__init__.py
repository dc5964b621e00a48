"""The decoder: sites, top-k, attention, forward pass and hooks."""
