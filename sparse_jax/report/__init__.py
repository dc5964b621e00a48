"""One self-contained HTML page about saved circuits and their training run."""

from sparse_jax.report.page import render, write_page
from sparse_jax.report.view import CircuitView, from_directory

__all__ = ["CircuitView", "from_directory", "render", "write_page"]
