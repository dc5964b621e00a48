"""Writes a directory of GPT-2's 124M shape with random weights.

  python tests/huggingface/large_gpt2.py gpt2_random

To measure memory by (docs/dense.md): what the model says is noise.
"""

import json
import pathlib
import sys

import numpy as np
import safetensors.numpy

from sparse_jax.data import tokenizer as tokenizer_lib

_GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "hf" / "gpt2"
_WIDTH, _NUM_LAYERS, _VOCABULARY, _LENGTH = 768, 12, 50257, 1024
_TEXT = "x = ['alpha', \"beta\"]\ndef gamma(z):\n  return 'delta'\n"


def shapes() -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor."""
  d = _WIDTH
  norm = lambda name: {f"{name}.weight": (d,), f"{name}.bias": (d,)}
  linear = lambda name, source, target: {
    f"{name}.weight": (source, target),
    f"{name}.bias": (target,),
  }
  found = {"wte.weight": (_VOCABULARY, d), "wpe.weight": (_LENGTH, d)}
  for i in range(_NUM_LAYERS):
    found |= norm(f"h.{i}.ln_1") | norm(f"h.{i}.ln_2")
    found |= linear(f"h.{i}.attn.c_attn", d, 3 * d)
    found |= linear(f"h.{i}.attn.c_proj", d, d)
    found |= linear(f"h.{i}.mlp.c_fc", d, 4 * d)
    found |= linear(f"h.{i}.mlp.c_proj", 4 * d, d)
  return found | norm("ln_f")


def main(directory: str) -> None:
  """Writes config, tokenizer and weights."""
  folder = pathlib.Path(directory)
  folder.mkdir(parents=True, exist_ok=True)
  config = json.loads((_GOLDEN / "config.json").read_text())
  config |= {"n_embd": _WIDTH, "n_layer": _NUM_LAYERS, "n_head": 12}
  config |= {"vocab_size": _VOCABULARY, "n_positions": _LENGTH}
  (folder / "config.json").write_text(json.dumps(config))
  tokenizer = tokenizer_lib.Tokenizer.train([_TEXT] * 4, 300)
  tokenizer.save(folder / "tokenizer.json")
  rng = np.random.default_rng(0)
  tensors = {
    f"transformer.{name}": 0.02 * rng.standard_normal(shape, np.float32)
    for name, shape in shapes().items()
  }
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")


if __name__ == "__main__":
  main(sys.argv[1])
