"""The twenty tasks of the paper, and tasks of the user's own."""

from sparse_jax.tasks.base import Task, TaskNotExpressible
from sparse_jax.tasks.pairs import SPLITS, Pairs, Prompts
from sparse_jax.tasks.registry import TASK_NAMES, make_task, make_tasks

__all__ = (
  "SPLITS",
  "TASK_NAMES",
  "Pairs",
  "Prompts",
  "Task",
  "TaskNotExpressible",
  "make_task",
  "make_tasks",
)
