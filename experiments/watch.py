"""Watches a model by its circuits: a JSON line a prompt, with alarms.

  python -m experiments.watch --prompts=prompts.jsonl
  tail -f prompts.jsonl | python -m experiments.watch --prompts=-

A line of the file is a text in JSON, or {"prompt": TEXT}; one that is neither
gets a record of its error. Without --model and --circuits, the shipped model
and its circuits. Thresholds of alarms come with a circuit, or from a file:
`experiments.alarms` fits both. docs/watch.md says what a record holds.
"""

import contextlib
import json
import pathlib
import sys

from absl import flags

from experiments import cli
from sparse_jax import checkpoint, reference, watch
from sparse_jax.utils import errors, files
from sparse_jax.watch import stream, thresholds

_MODEL = flags.DEFINE_string("model", reference.NAME, "Model directory.")
_CIRCUITS = flags.DEFINE_list(
  "circuits", [reference.NAME], "Circuit directories, or directories of them."
)
_PROMPTS = flags.DEFINE_string(
  "prompts", None, "File with a prompt a line, JSON; - is standard input."
)
_THRESHOLDS = flags.DEFINE_string(
  "thresholds", None, "File of thresholds, instead of those of the circuits."
)
cli.require("prompts")


def open_prompts(path: str):
  """Returns a context of the file; raises InputError if there is none."""
  if path == "-":
    return contextlib.nullcontext(sys.stdin.buffer)
  if not pathlib.Path(path).is_file():
    raise errors.bad_value("--prompts", path, "an existing file, or -")
  return open(path, "rb")


def main(overrides: list[str]) -> None:
  """Writes a record a prompt."""
  del overrides  # The command has no config.
  with open_prompts(_PROMPTS.value) as file:
    circuits = reference.load_named(reference.find_circuits(_CIRCUITS.value))
    if _THRESHOLDS.value:
      stored = files.read_json(
        _THRESHOLDS.value, "what experiments.alarms fits"
      )
      circuits = thresholds.attach(circuits, stored)
    model, params = checkpoint.load_model(_MODEL.value)
    tokenizer = checkpoint.load_tokenizer(_MODEL.value)
    monitor = watch.Monitor(model, params, circuits, tokenizer)
    silent = [n for n, found in monitor.thresholds.items() if found is None]
    if silent:
      print(
        f"warning: no thresholds for {', '.join(silent)}, so no alarms;"
        " experiments.alarms --fit makes them",
        file=sys.stderr,
      )
    for record in stream.watch(monitor, file, live=_PROMPTS.value == "-"):
      print(json.dumps(record, allow_nan=False), flush=True)


if __name__ == "__main__":
  cli.run(main, __doc__)
