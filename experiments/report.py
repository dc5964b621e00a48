"""Draws saved circuits: a page of all, a table, the first core as a picture.

  python -m experiments.report --out=report.html
  python -m experiments.report --circuits=runs/quickstart/circuits \
    --out=report.html --picture=circuit.png

`--circuits` is a circuit directory, one that holds several, or a list of them;
without it, the shipped model's circuits.
"""

import pathlib

from absl import flags

from experiments import circuit_paths, cli
from sparse_jax import circuit as circuit_lib
from sparse_jax import reference, report
from sparse_jax.report import atlas, picture
from sparse_jax.training import metric_log
from sparse_jax.utils import errors, files

_CIRCUITS = flags.DEFINE_list(
  "circuits", [reference.NAME], "Circuit directories, or directories of them."
)
_OUT = flags.DEFINE_string("out", None, "The HTML page to write.")
_PICTURE = flags.DEFINE_string(
  "picture", None, "The PNG to write: the drawing of the first core."
)
_TABLE = flags.DEFINE_string(
  "table", None, "The Markdown table to write: a row a circuit."
)
_METRICS = flags.DEFINE_string(
  "metrics", None, "metrics.jsonl of the training run, for its curve."
)


def main(overrides: list[str]) -> None:
  """Writes the page and the picture."""
  del overrides
  if not (_OUT.value or _PICTURE.value or _TABLE.value):
    raise errors.InputError(
      "--out is missing; need a page to write, or --picture=FILE.png or"
      " --table=FILE.md"
    )
  training = None
  if _METRICS.value:
    if not pathlib.Path(_METRICS.value).is_file():
      raise errors.bad_value("--metrics", _METRICS.value, "an existing file")
    training = metric_log.read_jsonl(_METRICS.value)
  circuits = [
    circuit_lib.load_all(path) for path in circuit_paths.find(_CIRCUITS.value)
  ]
  if _OUT.value:
    report.write_page(_OUT.value, circuits, training=training)
    print(f"report: {_OUT.value}")
  if _PICTURE.value:
    picture.write_picture(_PICTURE.value, circuits[0]["core"])
    print(f"picture: {_PICTURE.value}")
  if _TABLE.value:
    files.write_bytes(_TABLE.value, (atlas.table(circuits) + "\n").encode())
    print(f"table: {_TABLE.value}")


if __name__ == "__main__":
  cli.run(main, __doc__)
