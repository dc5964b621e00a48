"""The headline: circuits of sparse and dense models at the same loss.

A grid of models (`grid.py`), each trained and pruned (`cells.py`), their
circuits' sizes compared at matched loss (`compare.py`), drawn (`figures.py`)
and written down (`results.py`, `page.py`).
"""

from sparse_jax.frontier.cells import (
  finished,
  outcome,
  prepare_data,
  remaining_text,
  run,
  verdicts,
)
from sparse_jax.frontier.compare import compare_cells
from sparse_jax.frontier.grid import VARIANTS, Cell, FrontierConfig, make_cells
from sparse_jax.frontier.results import headline, write

__all__ = [
  "VARIANTS",
  "Cell",
  "FrontierConfig",
  "compare_cells",
  "finished",
  "headline",
  "make_cells",
  "outcome",
  "prepare_data",
  "remaining_text",
  "run",
  "verdicts",
  "write",
]
