"""Draws saved circuits: a page of all, a table, the first core as a picture.

  python -m experiments.report --out=report.html
  python -m experiments.report --circuits=runs/quickstart/circuits \
    --model=runs/quickstart/model --out=report.html --svg=circuit.svg

`--circuits` is a circuit directory, one that holds several, or a list of them;
without it, the shipped model's circuits. With their model the page shows how
they work: what excites each node in held-out code, and prompts in its colours,
up to 20 of your own among them: `--prompts=FILE`, a line of JSON each, a text
or {"prompt": TEXT, "counter_prompt": TEXT}.
"""

import pathlib

from absl import flags

from experiments import cli
from sparse_jax import checkpoint, reference, report
from sparse_jax import circuit as circuit_lib
from sparse_jax.data import sources
from sparse_jax.report import activations, atlas, picture, user_prompts
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
_SVG = flags.DEFINE_string(
  "svg", None, "The SVG to write: the same drawing, its fonts in it."
)
_THEME = flags.DEFINE_enum(
  "theme", "light", picture.THEMES, "Colours of the SVG."
)
_MODEL = flags.DEFINE_string(
  "model", None, "The circuits' model, to show how they work."
)
_PROMPTS = flags.DEFINE_string(
  "prompts", None, "A file of your own prompts; needs --model."
)
_METRICS = flags.DEFINE_string(
  "metrics", None, "metrics.jsonl of the training run, for its curve."
)


def find_evidence(circuits) -> activations.Evidence:
  """Returns what the circuits do in the model that `--model` names.

  Held-out code is that of the model's own data source, if it says which.
  """
  own = user_prompts.read(_PROMPTS.value) if _PROMPTS.value else ()
  model, params = checkpoint.load_model(_MODEL.value)
  tokenizer = checkpoint.load_tokenizer(_MODEL.value)
  config = checkpoint.load_run(_MODEL.value)
  documents, missing = (), "the model does not say what it was trained on"
  if config is not None:
    try:
      documents, missing = sources.documents(config.data, "eval", True), ""
    except errors.InputError as e:
      missing = str(e)
  if missing:
    print(f"no held-out code on the page: {missing}")
  return activations.collect(model, params, tokenizer, circuits, documents, own)


def main(overrides: list[str]) -> None:
  """Writes the page and the pictures."""
  del overrides
  if not (_OUT.value or _PICTURE.value or _SVG.value or _TABLE.value):
    raise errors.InputError(
      "--out is missing; need a page to write, or --picture=FILE.png,"
      " --svg=FILE.svg or --table=FILE.md"
    )
  if _PROMPTS.value and not (_MODEL.value and _OUT.value):
    raise errors.InputError(
      f"--prompts={_PROMPTS.value} without a model; need --model=DIR and"
      " --out=FILE.html"
    )
  training = None
  if _METRICS.value:
    if not pathlib.Path(_METRICS.value).is_file():
      raise errors.bad_value("--metrics", _METRICS.value, "an existing file")
    training = metric_log.read_jsonl(_METRICS.value)
  circuits = [
    circuit_lib.load_all(path)
    for path in reference.find_circuits(_CIRCUITS.value)
  ]
  if _OUT.value:
    evidence = find_evidence(circuits) if _MODEL.value else None
    report.write_page(
      _OUT.value, circuits, training=training, evidence=evidence
    )
    print(f"report: {_OUT.value}")
  if _PICTURE.value:
    picture.write_picture(_PICTURE.value, circuits[0]["core"])
    print(f"picture: {_PICTURE.value}")
  if _TABLE.value:
    files.write_bytes(_TABLE.value, (atlas.table(circuits) + "\n").encode())
    print(f"table: {_TABLE.value}")
  if _SVG.value:
    picture.write_svg(_SVG.value, circuits[0]["core"], _THEME.value)
    print(f"svg: {_SVG.value}")


if __name__ == "__main__":
  cli.run(main, __doc__)
