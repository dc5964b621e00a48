"""Says which circuit decides a prompt's next token, and how.

  python -m experiments.explain --model=runs/quickstart/model \\
    --circuits=runs/quickstart/circuits --prompt="print('hello"

`--circuits` is a circuit directory, or one that holds several. Of a prompt
longer than the model's context only the last tokens are read.
"""

import pathlib
import sys

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
_PROMPT_FILE = flags.DEFINE_string(
  "prompt_file",
  None,
  "File with the prompt instead, its last newline included; - is standard"
  " input.",
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the metrics to.")
cli.require("model", "circuits")

_NUM_NODES = 12
_NUM_LOOKS = 3


def circuit_directories(paths: list[str]) -> list[pathlib.Path]:
  """Returns the circuit directories that paths name or hold.

  Raises:
    InputError: if one of them is none and holds none.
  """
  directories = []
  for path in map(pathlib.Path, paths):
    inside = [path] if (path / "circuit.json").is_file() else []
    if not inside and path.is_dir():
      inside = sorted(p.parent for p in path.glob("*/circuit.json"))
    if not inside:
      raise errors.InputError(
        f"--circuits={path}: no circuit.json there; need a circuit directory,"
        " or one that holds some"
      )
    directories += inside
  return directories


def read_prompt(text: str | None, path: str | None) -> tuple[str, str]:
  """Returns (the flag that gives the prompt, the prompt).

  Raises:
    InputError: if not exactly one is given, or it is no UTF-8.
  """
  if (text is None) == (path is None):
    given = "neither" if text is None else "both"
    raise errors.InputError(
      f"--prompt and --prompt_file: {given} given; need exactly one of them"
    )
  if path is None:
    # The shell's bytes that are no UTF-8 come as lone surrogates.
    flag, data = "--prompt", text.encode("utf-8", "surrogateescape")
  elif path == "-":
    flag, data = "--prompt_file=-", sys.stdin.buffer.read()
  else:
    flag, data = f"--prompt_file={path}", pathlib.Path(path).read_bytes()
  try:
    return flag, data.decode("utf-8")
  except UnicodeDecodeError as e:
    raise errors.InputError(
      f"{flag} has byte {e.start} that is no UTF-8; need text"
    ) from e


def prompt_tokens(model, tokenizer, flag: str, prompt: str) -> list[int]:
  """Returns the tokens that the model reads: the last ones, if there are many.

  Raises:
    InputError: if there are none, or more than the model has positions for.
  """
  tokens = tokenizer.encode(prompt)
  limit = model.config.context_length
  if not tokens:
    raise errors.InputError(f"{flag} is empty; need at least one token")
  if not limit or len(tokens) <= limit:  # 0: the model does not say.
    return tokens
  if model.config.positions != "none":
    raise errors.InputError(
      f"{flag} has {len(tokens)} tokens; need at most {limit}, the model's"
      " context"
    )
  print(
    f"warning: the prompt has {len(tokens)} tokens and the model was trained on"
    f" {limit}; only the last {limit} are read",
    file=sys.stderr,
  )
  return tokens[-limit:]


def influences_text(influences: list[explain.Influence]) -> str:
  """Returns the circuits' table; logit differences in nats."""
  width = max(len(i.task) for i in influences)
  lines = [
    f"{'circuit':<{width}} {'answers':<18} {'mass':>6} {'model':>7}"
    f" {'circuit':>8} {'without':>8} {'effect':>7}"
  ]
  for i in influences:
    answers = " over ".join(map(repr, i.answers))
    lines.append(
      f"{i.task:<{width}} {answers:<18} {i.mass:>6.1%}"
      f" {i.full_difference:>7.2f} {i.circuit_difference:>8.2f}"
      f" {i.without_difference:>8.2f} {i.effect:>7.2f}"
      f"{'  decides' if i.decides else ''}"
    )
  return "\n".join(lines)


def choice_text(i: explain.Influence) -> str:
  """Returns what a circuit decides, or how near it comes."""
  first, second = map(repr, i.answers)
  if i.decides:
    text = f"{i.task} decides for {first} over {second}:"
  else:
    verb = "would decide" if i.chooses else "does not decide"
    text = (
      "no circuit here decides the model's next token\n"
      f"the nearest is {i.task}, which {verb} for {first} over {second}:"
    )
  return (
    f"{text} its logit difference is {i.circuit_difference:.2f} nats, the"
    f" model's {i.full_difference:.2f}, without the circuit"
    f" {i.without_difference:.2f}"
  )


def parts_text(parts: list[explain.Part], texts: list[str]) -> str:
  """Returns the nodes' table; `texts` are the prompt's tokens in quotes."""
  if not parts:
    return "it has no nodes"
  lines = [f"{'node':<22} {'importance':>10} {'value':>8} {'ablated':>8}  at"]
  lines += [
    f"{p.node:<22} {p.importance:>10.2f} {p.value:>8.3f} {p.ablated:>8.3f} "
    f" {p.position} {texts[p.position]}"
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
    seen = ", ".join(f"{texts[i]} ({pattern[i]:.0%}, {i})" for i in top)
    sink = max(0.0, 1 - float(pattern.sum()))
    lines.append(f"head {head} looks at {seen}; nowhere: {sink:.0%}")
  return "\n".join(lines)


def main(overrides: list[str]) -> None:
  """Explains as the flags say."""
  del overrides
  flag, prompt = read_prompt(_PROMPT.value, _PROMPT_FILE.value)
  directories = circuit_directories(_CIRCUITS.value)
  model, params = checkpoint.load_model(_MODEL.value)
  tokenizer = checkpoint.load_tokenizer(_MODEL.value)
  tokens = prompt_tokens(model, tokenizer, flag, prompt)
  texts = [explain.shown(tokenizer, t) for t in tokens]
  top, probabilities = explain.top_tokens(model, params, tokens)
  print("prompt: " + " ".join(texts))
  print(
    "the model goes on with "
    + ", ".join(
      f"{explain.shown(tokenizer, int(t))} ({probabilities[t]:.1%})"
      for t in top
    )
  )
  explanations = []
  with progress.progress_bar(len(directories), 0, "circuits") as bar:
    for directory in directories:
      circuit = circuit_lib.Circuit.load(directory)
      faithfulness.check_circuit(model, params, circuit)
      explanations.append(
        explain.explain(
          model, params, circuit, tokenizer, tokens, probabilities
        )
      )
      bar.update()
  influences = [e.influence for e in explanations]
  chosen = explain.deciding(influences) or explain.nearest(influences)
  explanation = next(e for e in explanations if e.influence is chosen)
  parts = explain.parts(explanation, tokenizer)
  looks = looks_text(explain.attention_of(explanation), texts)
  sections = (
    influences_text(influences),
    choice_text(chosen),
    parts_text(parts, texts),
    looks,
  )
  for section in filter(None, sections):
    print("\n" + section)
  if _OUT.value:
    written = explain.to_dict(influences, chosen, parts)
    tokens_written = [tokenizer.token_text(t) for t in tokens]
    files.write_json(_OUT.value, {"prompt_tokens": tokens_written, **written})


if __name__ == "__main__":
  cli.run(main, __doc__)
