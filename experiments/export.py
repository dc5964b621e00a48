"""Writes a model for others: in the released layout, or in few bytes.

  python -m experiments.export --model=runs/quickstart/model --out=exported
  python -m experiments.export --compact=true --model=runs/model --out=small

In the released layout the directory holds model.safetensors with the released
parameter names, beeg_config.json and the tokenizer, for the authors' code. With
--compact it is a model directory whose weights are rounded to 16 bits; the
nodes' means are measured again on the tokens that the model was trained on.
Both can be loaded here like any other.
"""

import pathlib

import jax
from absl import flags

from experiments import cli
from sparse_jax import checkpoint
from sparse_jax.data import tokens
from sparse_jax.model import compact, transformer
from sparse_jax.released import models
from sparse_jax.training import loop
from sparse_jax.utils import errors

_MODEL = flags.DEFINE_string(
  "model", None, "A model directory, one of ours or a released one."
)
_OUT = flags.DEFINE_string(
  "out", None, "A directory to write: new, empty or an earlier export."
)
_COMPACT = flags.DEFINE_bool(
  "compact", False, "Whether to write 16-bit weights, without the zeros."
)
cli.require("model", "out")


def export_compact(source: pathlib.Path, out: pathlib.Path) -> None:
  """Writes a compact model directory.

  Raises:
    InputError: if it is not known what the model was trained on.
  """
  model, params = checkpoint.load_model(source)
  run = checkpoint.load_run(source)
  if run is None:
    raise errors.InputError(
      f"--model={source} does not say what trained it; need a directory that"
      " experiments.train wrote, for --compact"
    )
  where = pathlib.Path(run.data.directory or source.parent / "data")
  batch_size = run.train.batch_size
  data = tokens.prepare(run.data, where, batch_size=batch_size, frozen=True)
  params = jax.device_put(compact.rounded(params))
  means = loop.pretraining_means(run, model, params, data)
  parts = model, params, data.tokenizer, run, means
  checkpoint.save_model(out, *parts, is_compact=True)


def main(overrides: list[str]) -> None:
  """Exports as the flags say."""
  del overrides
  source, out = pathlib.Path(_MODEL.value), pathlib.Path(_OUT.value)
  if source.resolve() == out.resolve():
    raise errors.InputError(
      f"--out={out} is the model itself; need another directory"
    )
  if _COMPACT.value:
    export_compact(source, out)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{size / 1e6:.1f} MB in {out}")
    return
  model, params = checkpoint.load_model(source)
  kept = tokenizer = None
  if models.is_released(source):
    kept = models.read_fields(source)
  if checkpoint.has_tokenizer(source):
    tokenizer = checkpoint.load_tokenizer(source)
  models.save_model(out, model, params, tokenizer, kept)
  count = transformer.num_parameters(params)
  print(f"{count:,} parameters in {out / models.SAFETENSORS_WEIGHTS}")


if __name__ == "__main__":
  cli.run(main, __doc__)
