"""The headline: circuits of sparse and dense models at the same loss.

A grid of models (`grid.py`), each trained and pruned (`runs.py`), their
circuits' sizes compared at matched loss (`compare.py`), drawn (`figures.py`)
and written down (`report.py`, `page.py`).
"""

from sparse_jax.frontier.compare import compare_runs
from sparse_jax.frontier.grid import VARIANTS, FrontierConfig, Run, make_runs
from sparse_jax.frontier.report import headline, write
from sparse_jax.frontier.runs import (
  check_faithfulness,
  make_run,
  prepare_data,
  remaining_text,
  run_grid,
  status,
)

__all__ = [
  "VARIANTS",
  "FrontierConfig",
  "Run",
  "check_faithfulness",
  "compare_runs",
  "headline",
  "make_run",
  "make_runs",
  "prepare_data",
  "remaining_text",
  "run_grid",
  "status",
  "write",
]
