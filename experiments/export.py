"""Writes a model in the released layout, for the authors' code and others.

  python -m experiments.export --model=runs/quickstart/model --out=exported

The directory holds model.safetensors with the released parameter names,
beeg_config.json and the tokenizer; it can be loaded here like any other.
"""

import pathlib

from absl import flags

from experiments import cli
from sparse_jax import checkpoint
from sparse_jax.model import transformer
from sparse_jax.released import models
from sparse_jax.utils import errors

_MODEL = flags.DEFINE_string(
  "model", None, "A model directory, one of ours or a released one."
)
_OUT = flags.DEFINE_string(
  "out", None, "A directory to write: new, empty or an earlier export."
)
cli.require("model", "out")


def main(overrides: list[str]) -> None:
  """Exports as the flags say."""
  del overrides
  source, out = pathlib.Path(_MODEL.value), pathlib.Path(_OUT.value)
  if source.resolve() == out.resolve():
    raise errors.InputError(
      f"--out={out} is the model itself; need another directory"
    )
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
