"""One self-contained HTML page about saved circuits and their training run."""

from sparse_jax.report.page import render, write_page

__all__ = ["render", "write_page"]
