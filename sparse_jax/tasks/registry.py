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

# Every task, in the paper's order as far as it is known.
_SPECS = (
  strings.SINGLE_DOUBLE_QUOTE,
  brackets.BRACKET_COUNTING,
  variables.SET_OR_STRING,
  variables.SET_OR_STRING_FIXEDVARNAME,
  blocks.WHILE_RETURN_TRUE,
  blocks.ELSE_ELIF,
  blocks.WITH_AS,
  blocks.WITH_OPEN,
  blocks.FOR_WHILE,
  blocks.IF_TERNARY,
  blocks.IF_EQUALS,
  strings.FSTRING_BRACE,
  brackets.BRACKET_BRACE,
  variables.VAR_SWAP,
  variables.VAR_IF,
  blocks.INDENT_FOR,
  functions.LAMBDA_FUNC,
  functions.ENUMERATE_RANGE,
  functions.FINAL_KWARG,
  functions.CLASS_INIT,
)
_SPEC_OF = {spec.name: spec for spec in _SPECS}
TASK_NAMES = tuple(_SPEC_OF)


def make_task(name_or_path: str, tokenizer, difficulty: int = 0) -> Task:
  """Returns one of `TASK_NAMES`, or the task of a `.jsonl` or `.py` file.

  `user.py` says what files hold. `difficulty` is the number of distracting
  lines before every prompt, where the task has some. Raises TaskNotExpressible
  if the tokenizer cannot state the answers.
  """
  name = str(name_or_path)
  if user.is_path(name):
    return user.load(name, tokenizer, difficulty)
  if name not in _SPEC_OF:
    raise errors.unknown_name("task", name, TASK_NAMES)
  return _SPEC_OF[name].make(tokenizer, difficulty)


def make_tasks(
  names: Sequence[str], tokenizer
) -> tuple[list[Task], dict[str, str]]:
  """Returns the tasks that the tokenizer states, and why not the others.

  `names` are as `make_task` takes them; "all" stands for `TASK_NAMES`. Raises
  InputError if one does not exist or is given twice, or none is left.
  """
  made, skipped = {}, {}
  for name in names:
    for each in TASK_NAMES if name == "all" else (name,):
      try:
        task = make_task(each, tokenizer)
      except TaskNotExpressible as e:
        skipped[each] = str(e)
        continue
      if task.name in made:
        raise errors.bad_value("tasks", task.name, "each task name once")
      made[task.name] = task
  if not made:
    first = next(iter(skipped.values()), "no task is named")
    accepted = f"a task that the tokenizer states ({first})"
    raise errors.bad_value("tasks", ",".join(names), accepted)
  return list(made.values()), skipped
