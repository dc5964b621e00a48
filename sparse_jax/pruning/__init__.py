"""Pruning: masks, order, threshold, clean-up, essential edges and search."""
