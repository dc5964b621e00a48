"""Runs the notebooks and writes their outputs into them.

  python -m experiments.notebooks
  python -m experiments.notebooks --only=first_circuit \\
    --set=MODEL=runs/quickstart/model --set=CIRCUITS=runs/quickstart/circuits

Paths are those of the directory that the command runs in. Nothing is written if
a cell fails.
"""

import ast
import pathlib
import tempfile
import time
from typing import Any

from absl import flags

from experiments import cli
from experiments.notebooks import execute
from sparse_jax.utils import errors

_ONLY = flags.DEFINE_list("only", list(execute.NAMES), "Notebooks, by name.")
_SET = flags.DEFINE_multi_string(
  "set", [], "NAME=VALUE: a parameter of the notebooks, such as STEPS=100."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Directory to run in; a new one that is removed by default."
)


def parameter(text: str) -> tuple[str, Any]:
  """Returns (name, value); a value that is an existing path is made absolute.

  Raises InputError if there is no "=".
  """
  name, equals, value = text.partition("=")
  if not equals:
    raise errors.bad_value("--set", text, "NAME=VALUE")
  if pathlib.Path(value).exists():
    return name, str(pathlib.Path(value).absolute())
  try:
    return name, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return name, value


def main(overrides: list[str]) -> None:
  """Runs the notebooks as the flags say."""
  del overrides
  parameters = dict(map(parameter, _SET.value))
  with tempfile.TemporaryDirectory() as temporary:
    directory = pathlib.Path(_WORKDIR.value or temporary)
    directory.mkdir(parents=True, exist_ok=True)
    for name in _ONLY.value:
      start = time.perf_counter()
      notebook = execute.read(name)
      done = execute.execute(notebook, parameters, directory)
      execute.write(name, execute.plain(done))
      print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
  cli.run(main, __doc__)
