"""Tasks by name: the paper's twenty, and files of the user's own."""

from collections.abc import Sequence

from sparse_jax.tasks import (
  blocks,
  brackets,
  functions,
  strings,
  user,
  variables,
)
from sparse_jax.tasks.base import Task, TaskNotExpressible
from sparse_jax.utils import errors

_SPECS = {
  spec.name: spec
  for family in (strings, brackets, variables, blocks, functions)
  for spec in family.SPECS
}

# In the paper's order, as far as it is known.
TASK_NAMES = (
  "single_double_quote",
  "bracket_counting",
  "set_or_string",
  "set_or_string_fixedvarname",
  "while_return_true",
  "else_elif",
  "with_as",
  "with_open",
  "for_while",
  "if_ternary",
  "if_equals",
  "fstring_brace",
  "bracket_brace",
  "var_swap",
  "var_if",
  "indent_for",
  "lambda_func",
  "enumerate_range",
  "final_kwarg",
  "class_init",
)


def make_task(name_or_path: str, tokenizer, difficulty: int = 0) -> Task:
  """Returns a task in the tokenizer's tokens.

  Args:
    name_or_path: one of `TASK_NAMES`, or a user's `.jsonl` or `.py` file
      (`user.py` says what they hold).
    tokenizer: a `data.tokenizer.Tokenizer`.
    difficulty: distracting lines before every prompt, where the task has some.

  Raises:
    InputError: if there is no such task, file or difficulty.
    TaskNotExpressible: if the tokenizer cannot state its answers.
  """
  name = str(name_or_path)
  if user.is_path(name):
    return user.load(name, tokenizer, difficulty)
  if name not in _SPECS:
    raise errors.unknown_name("task", name, TASK_NAMES)
  return _SPECS[name].make(tokenizer, difficulty)


def make_tasks(
  names: Sequence[str], tokenizer
) -> tuple[list[Task], dict[str, str]]:
  """Returns tasks, and by name why others of "all" are skipped.

  Args:
    names: as `make_task` takes them; "all" stands for `TASK_NAMES`.
    tokenizer: a `data.tokenizer.Tokenizer`.

  Raises:
    InputError: if a task asked for by name does not exist, cannot be stated in
      the tokenizer or is given twice.
  """
  made, skipped = {}, {}
  for name in names:
    for each in TASK_NAMES if name == "all" else (name,):
      try:
        task = make_task(each, tokenizer)
      except TaskNotExpressible as e:
        if name != "all":
          raise
        skipped[each] = str(e)
        continue
      if task.name in made:
        raise errors.bad_value("tasks", task.name, "each task name once")
      made[task.name] = task
  if not made:
    first = next(iter(skipped.values()), "no task is named")
    raise errors.bad_value(
      "tasks", ",".join(names), f"a task that the tokenizer states ({first})"
    )
  return list(made.values()), skipped
