"""Says which circuit decides a prompt's next token, and how.

  python -m experiments.explain --prompt="print('hello world"
  python -m experiments.explain --model=runs/quickstart/model \\
    --circuits=runs/quickstart/circuits --prompt="print('hello world"

Without --model and --circuits, the shipped model and its circuits. `--circuits`
is a circuit directory, or one that holds several. Of a prompt longer than the
model's context only the last tokens are read.
"""

import pathlib
import sys

import numpy as np
from absl import flags

from experiments import cli
from sparse_jax import checkpoint, explain, faithfulness, programs, reference
from sparse_jax import circuit as circuit_lib
from sparse_jax.utils import errors, files, progress, tables

_MODEL = flags.DEFINE_string("model", reference.NAME, "Model directory.")
_CIRCUITS = flags.DEFINE_list(
  "circuits", [reference.NAME], "Circuit directories, or directories of them."
)
_PROMPT = flags.DEFINE_string("prompt", None, "The text that is gone on with.")
_PROMPT_FILE = flags.DEFINE_string(
  "prompt_file",
  None,
  "File with the prompt instead, its last newline included; - is standard"
  " input.",
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the metrics to.")
_GRAPH = flags.DEFINE_string(
  "graph",
  None,
  "JSON file to write the circuit's attribution graph to, for Neuronpedia or"
  " circuit-tracer.",
)

_NUM_NODES = 12
_NUM_LOOKS = 3


def read_prompt(text: str | None, path: str | None) -> tuple[str, str]:
  """Returns (the flag that gives the prompt, the prompt).

  Raises InputError if not exactly one is given, or it is no UTF-8.
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

  Raises InputError if there are none, or more than the model has positions for.
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
  header = "circuit", "answers", "mass", "model", "circuit", "without", "effect"
  rows = []
  for i in influences:
    of = i.full_difference, i.circuit_difference, i.without_difference, i.effect
    differences = (f"{difference:.2f}" for difference in of)
    answers = " over ".join(map(repr, i.answers))
    decides = "decides" if i.decides else ""
    rows.append((i.task, answers, f"{i.mass:.1%}", *differences, decides))
  return tables.text((*header, ""), rows, left=(0, 1, 7))


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


def evidence_text(directory: pathlib.Path) -> str:
  """Returns how many claims of a task's circuits hold, and which fail."""
  lines = []
  for which, circuit in circuit_lib.load_all(directory).items():
    size = f"{which}: {circuit.num_nodes} nodes, {circuit.num_edges} edges"
    if not circuit.metrics.get("faithfulness"):
      lines.append(f"{size}; no claim was measured")
      continue
    evidence = faithfulness.evidence(circuit)
    fails = "" if evidence.holds else f"; fails: {', '.join(evidence.failed)}"
    lines.append(f"{size}; {evidence.num_held} claims hold{fails}")
  return "\n".join(lines)


def parts_text(parts: list[explain.Part], texts: list[str]) -> str:
  """Returns the nodes' table; `texts` are the prompt's tokens in quotes."""
  if not parts:
    return "it has no nodes"
  rows = []
  for p in parts[:_NUM_NODES]:
    numbers = f"{p.importance:.2f}", f"{p.value:.3f}", f"{p.ablated:.3f}"
    rows.append((p.node, *numbers, f"{p.position} {texts[p.position]}"))
  header = "node", "importance", "value", "ablated", "at"
  text = tables.text(header, rows, left=(0, 4))
  more = len(parts) - _NUM_NODES
  return f"{text}\nand {more} more nodes" if more > 0 else text


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
  directories = reference.find_circuits(_CIRCUITS.value)
  model, params = checkpoint.load_model(_MODEL.value)
  tokenizer = checkpoint.load_tokenizer(_MODEL.value)
  tokens = prompt_tokens(model, tokenizer, flag, prompt)
  texts = [explain.shown(tokenizer, t) for t in tokens]
  top, probabilities = explain.top_tokens(model, params, tokens)
  shown = lambda t: f"{explain.shown(tokenizer, t)} ({probabilities[t]:.1%})"
  print("prompt: " + " ".join(texts))
  print("the model goes on with " + ", ".join(map(shown, top.tolist())))
  prompt_of = tokenizer, tokens, probabilities
  explanations = []
  with progress.progress_bar(len(directories), 0, "circuits") as bar:
    for directory in directories:
      circuit = circuit_lib.Circuit.load(directory)
      faithfulness.check_circuit(model, params, circuit)
      explanations.append(explain.explain(model, params, circuit, *prompt_of))
      bar.update()
  influences = [e.influence for e in explanations]
  of_chosen = explain.chosen_index(influences)
  explanation, chosen = explanations[of_chosen], influences[of_chosen]
  parts = explain.parts(explanation, tokenizer)
  print("\n" + influences_text(influences))
  print("\n" + choice_text(chosen))
  print(evidence_text(directories[of_chosen]))
  print("\n" + parts_text(parts, texts))
  if looks := explain.attention_of(explanation):
    print("\n" + looks_text(looks, texts))
  if _OUT.value:
    written = {"prompt_tokens": [tokenizer.token_text(t) for t in tokens]}
    written |= explain.to_dict(influences, chosen, parts)
    files.write_json(_OUT.value, written)
  if _GRAPH.value:
    graph = programs.attribution_graph(
      *(explanation, tokenizer, prompt, probabilities),
      slug=pathlib.Path(_GRAPH.value).stem,
      scan=pathlib.Path(_MODEL.value).name,
    )
    files.write_json(_GRAPH.value, graph)
    sizes = f"{len(graph['nodes'])} nodes, {len(graph['links'])} links"
    print(f"\n{_GRAPH.value}: {sizes}")


if __name__ == "__main__":
  cli.run(main, __doc__)
