"""Says which circuit decides a prompt's next token, and how.

  python -m experiments.explain --model=runs/quickstart/model \\
    --circuits=runs/quickstart/circuits --prompt="print('hello"

`--circuits` is a circuit directory, or one that holds several.
"""

import pathlib

import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli
from sparse_jax import checkpoint, explain, faithfulness
from sparse_jax import circuit as circuit_lib
from sparse_jax.utils import errors, files, progress

_MODEL = flags.DEFINE_string("model", None, "Model directory.")
_CIRCUITS = flags.DEFINE_list(
  "circuits", None, "Circuit directories, or directories of them."
)
_PROMPT = flags.DEFINE_string("prompt", None, "The text that is gone on with.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write the figures to.")
cli.require("model", "circuits", "prompt")

_NUM_NODES = 12
_NUM_LOOKS = 3


def circuit_directories(paths: list[str]) -> list[pathlib.Path]:
  """Returns the circuit directories that paths name or hold.

  Raises:
    InputError: if one of them is none and holds none.
  """
  found = []
  for path in map(pathlib.Path, paths):
    inside = [path] if (path / "circuit.json").is_file() else []
    if not inside and path.is_dir():
      inside = sorted(p.parent for p in path.glob("*/circuit.json"))
    if not inside:
      raise errors.InputError(
        f"--circuits={path}: no circuit.json there; need a circuit directory,"
        " or one that holds some"
      )
    found += inside
  return found


def influences_text(found: list[explain.Influence]) -> str:
  """Returns the circuits' table; diffs in nats."""
  width = max(len(i.task) for i in found)
  lines = [
    f"{'circuit':<{width}} {'answers':<18} {'mass':>6} {'model':>7}"
    f" {'circuit':>8} {'without':>8} {'effect':>7}"
  ]
  for i in found:
    answers = " over ".join(map(repr, i.answers))
    lines.append(
      f"{i.task:<{width}} {answers:<18} {i.mass:>6.1%}"
      f" {i.full_difference:>7.2f} {i.circuit_difference:>8.2f}"
      f" {i.without_difference:>8.2f} {i.effect:>7.2f}"
      f"{'  decides' if i.decides else ''}"
    )
  return "\n".join(lines)


def parts_text(parts: list[explain.Part]) -> str:
  """Returns the nodes' table."""
  lines = [
    f"{'node':<22} {'worth':>7} {'value':>8} {'ablated':>8}  at token",
  ]
  lines += [
    f"{p.node:<22} {p.worth:>7.2f} {p.value:>8.3f} {p.ablated:>8.3f} "
    f" {p.position} {p.token!r}"
    for p in parts[:_NUM_NODES]
  ]
  if len(parts) > _NUM_NODES:
    lines.append(f"and {len(parts) - _NUM_NODES} more nodes")
  return "\n".join(lines)


def looks_text(looks: dict[str, np.ndarray], texts: list[str]) -> str:
  """Returns where each head looks from the last token."""
  lines = []
  for head, pattern in looks.items():
    top = np.argsort(-pattern, kind="stable")[:_NUM_LOOKS]
    seen = ", ".join(f"{texts[i]!r} ({pattern[i]:.0%}, {i})" for i in top)
    sink = max(0.0, 1 - float(pattern.sum()))
    lines.append(f"head {head} looks at {seen}; nowhere: {sink:.0%}")
  return "\n".join(lines)


def main(overrides: list[str]) -> None:
  """Explains as the flags say."""
  del overrides
  directories = circuit_directories(_CIRCUITS.value)
  model, params = checkpoint.load_model(_MODEL.value)
  tokenizer = checkpoint.load_tokenizer(_MODEL.value)
  try:
    _PROMPT.value.encode("utf-8")
  except UnicodeEncodeError as e:
    raise errors.InputError(
      f"--prompt has byte {e.start} that is no UTF-8; need text"
    ) from e
  tokens = tokenizer.encode(_PROMPT.value)
  limit = model.config.context_length
  if not tokens:
    raise errors.bad_value("--prompt", _PROMPT.value, "at least one token")
  if model.config.positions != "none" and len(tokens) > limit:
    raise errors.InputError(
      f"--prompt has {len(tokens)} tokens; need at most {limit}, the model's"
      " context"
    )
  texts = [tokenizer.token_text(t) for t in tokens]
  top, probabilities = explain.top_tokens(model, params, tokens)
  print("prompt: " + " ".join(map(repr, texts)))
  print(
    "the model goes on with "
    + ", ".join(
      f"{tokenizer.token_text(int(t))!r} ({probabilities[t]:.1%})" for t in top
    )
  )
  found = {}
  with progress.progress_bar(len(directories), 0, "circuits") as bar:
    for directory in directories:
      circuit = circuit_lib.Circuit.load(directory)
      faithfulness.check_circuit(model, params, circuit)
      said, sequence = explain.influence(
        model, params, circuit, tokenizer, tokens
      )
      found[str(directory)] = said, circuit, sequence
      bar.update()
  said = [i for i, _, _ in found.values()]
  print("\n" + influences_text(said))
  chosen = explain.deciding(said)
  if chosen is None:
    print("\nno circuit here decides the model's next token")
    chosen = explain.nearest(said)
  parts = []
  if chosen is not None:
    _, circuit, sequence = next(f for f in found.values() if f[0] is chosen)
    parts = explain.parts(model, params, circuit, tokenizer, sequence)
    looks = explain.attention_of(
      model, params, circuit, jnp.asarray(tokens, jnp.int32)[None]
    )
    first, second = map(repr, chosen.answers)
    verb = "decides for" if chosen.decides else "would decide for"
    print(
      f"\n{chosen.task} {verb} {first} over {second}, by these nodes:\n"
      f"{parts_text(parts)}"
    )
    if looks:
      print("\n" + looks_text(looks, texts))
  if _OUT.value:
    shown = explain.to_dict(said, chosen, parts)
    files.write_json(_OUT.value, {"prompt_tokens": texts, **shown})


if __name__ == "__main__":
  cli.run(main, __doc__)
