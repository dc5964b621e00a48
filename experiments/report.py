"""Draws saved circuits on one self-contained page.

  python -m experiments.report --circuits=runs/quickstart/circuits/a,… \\
    --out=report.html
"""

import pathlib

from absl import flags

from experiments import cli
from sparse_jax import report
from sparse_jax.training import metric_log
from sparse_jax.utils import errors

_CIRCUITS = flags.DEFINE_list(
  "circuits", None, "Circuit directories, separated by commas."
)
_OUT = flags.DEFINE_string("out", None, "The page to write.")
_METRICS = flags.DEFINE_string(
  "metrics", None, "metrics.jsonl of the training run, for its curve."
)
cli.require("circuits", "out")


def main(overrides: list[str]) -> None:
  """Writes the page."""
  del overrides
  training = None
  if _METRICS.value:
    if not pathlib.Path(_METRICS.value).is_file():
      raise errors.bad_value("--metrics", _METRICS.value, "an existing file")
    training = metric_log.read_jsonl(_METRICS.value)
  circuits = [report.from_directory(path) for path in _CIRCUITS.value]
  report.write_page(_OUT.value, circuits, training=training)
  print(f"report: {_OUT.value}")


if __name__ == "__main__":
  cli.run(main, __doc__)
