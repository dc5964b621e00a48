"""Runs a notebook in a kernel of its own, and keeps what reads well as a file.

A notebook's settings stand in its one cell with the tag "parameters".
"""

import copy
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from sparse_jax.utils import errors

try:
  import nbclient
  import nbformat
except ImportError:
  nbclient = None

DIRECTORY = pathlib.Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in DIRECTORY.glob("*.ipynb")))
_ROOT = DIRECTORY.parents[1]
# Seconds a kernel may take to start, and a cell to run, on a busy machine.
_STARTUP, _TIMEOUT = 600, 3600
# Larger HTML, such as the page, is left out of the file: a picture of it stays.
_MOST_HTML = 20_000


def read(name: str) -> Any:
  """Returns one of `NAMES` as nbformat reads it.

  Raises InputError if there is no such notebook, or nbclient is missing.
  """
  if nbclient is None:
    raise errors.InputError(
      "nbclient is not installed; need pip install 'sparse_jax[notebooks]'"
    )
  if name not in NAMES:
    raise errors.unknown_name("notebook", name, NAMES)
  return nbformat.read(DIRECTORY / f"{name}.ipynb", as_version=4)


def execute(
  notebook: Any, parameters: Mapping[str, Any], directory: pathlib.Path
) -> Any:
  """Returns the notebook with the outputs of a run in `directory`.

  `parameters` replace those of the notebook by name. Raises InputError if it
  has none of such a name, or a cell fails: then with its error.
  """
  notebook = copy.deepcopy(notebook)
  index, cell = next(
    (i, c)
    for i, c in enumerate(notebook.cells)
    if "parameters" in c.metadata.get("tags", ())
  )
  defaults: dict[str, Any] = {}
  exec(cell.source, defaults)
  for name in parameters:
    if name.startswith("_") or name not in defaults:
      known = [key for key in defaults if not key.startswith("_")]
      raise errors.unknown_name("parameter", name, known)
  lines = [f"{name} = {value!r}" for name, value in parameters.items()]
  notebook.cells.insert(index + 1, nbformat.v4.new_code_cell("\n".join(lines)))
  # What runs is this checkout, wherever it runs.
  paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
  client = nbclient.NotebookClient(
    notebook,
    timeout=_TIMEOUT,
    startup_timeout=_STARTUP,
    kernel_name="python3",
    resources={"metadata": {"path": str(directory)}},
  )
  try:
    client.execute(
      env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    )
  except nbclient.exceptions.CellExecutionError as e:
    raise errors.InputError(f"a cell fails: {e.ename}: {e.evalue}") from e
  del notebook.cells[index + 1]
  return notebook


def plain(notebook: Any) -> Any:
  """Returns a run notebook with outputs fit for a repository.

  Progress bars and logs, on standard error, go; so does HTML that is too large,
  where something else shows the same. Cells are numbered from 1.
  """
  notebook = copy.deepcopy(notebook)
  notebook.metadata = {
    "kernelspec": {
      "display_name": "Python 3",
      "language": "python",
      "name": "python3",
    },
    "language_info": {"name": "python"},
  }
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  for number, cell in enumerate(code, 1):
    cell.execution_count = number
    tags = cell.metadata.get("tags")
    cell.metadata = {"tags": tags} if tags else {}
    cell.outputs = [_plain(o, number) for o in cell.outputs if _is_kept(o)]
  return notebook


def _is_kept(output: Any) -> bool:
  return not (output.output_type == "stream" and output.name == "stderr")


def _plain(output: Any, number: int) -> Any:
  if "execution_count" in output:
    output.execution_count = number
  data = output.get("data", {})
  if len(data.get("text/html", "")) > _MOST_HTML:
    del data["text/html"]
  return output


def write(name: str, notebook: Any) -> None:
  """Writes a notebook over the one of that name."""
  text = nbformat.writes(notebook, version=4)
  (DIRECTORY / f"{name}.ipynb").write_text(text.rstrip() + "\n")
