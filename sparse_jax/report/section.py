"""One circuit's section: its figures, drawing, examples and tables."""

import difflib
import math
import numbers
from collections.abc import Mapping
from typing import Any

from sparse_jax.report import (
  charts,
  draw,
  evidence,
  layout,
  markup,
  parts,
  view,
)

MAX_ROWS = 2000
MAX_EXAMPLES = 24
_MAX_NOTES = 8
_MAX_DEPTH = 4
_el = markup.el

_NODE = (
  "Node: one channel of one site in one layer, shared by all positions. A"
  " channel outside the circuit is held at its ablation value."
)
_EDGE = (
  "Edge: a nonzero weight from a node to a node. Residual wiring is not"
  " counted; embedding and unembedding weights are counted apart."
)
_ABLATIONS = {
  "mean_pretrain": "mean over the pretraining distribution (mean_pretrain)",
  "mean_task": "mean over the task's prompts (mean_task)",
  "zero": "zero",
}
# Shown in places of their own; every other figure is listed as it comes.
_PLACED = frozenset(
  {"num_nodes", "num_edges", "target_loss", "faithfulness"}
  | {f"{p}test_{k}" for _, p, _ in parts.MODELS for k in ("loss", "accuracy")}
)
_FIGURES = {
  "num_embedding_edges": "nonzero embedding weights of kept channels",
  "num_unembedding_edges": "nonzero unembedding weights of kept channels",
  "logit_scale": "factor on the circuit's logits",
}


def _strong(text: str) -> markup.Markup:
  return _el("strong", text)


def _headline(circuit: view.CircuitView) -> markup.Markup:
  """One sentence with the figures, one with the verdict on the target."""
  m, (nodes, edges) = circuit.metrics, circuit.graph
  sentence = [
    _strong(parts.plural(len(nodes), "node")),
    " and ",
    _strong(parts.plural(len(edges), "edge")),
    " reach a task loss of ",
    _strong(f"{markup.number(m.get('test_loss'))} nats"),
    f" ({markup.percent(m.get('test_accuracy'))} right) on held-out pairs."
    f" The full model has {markup.number(m.get('full_model_test_loss'))}"
    f" ({markup.percent(m.get('full_model_test_accuracy'))}), the model"
    " without the circuit"
    f" {markup.number(m.get('without_circuit_test_loss'))}"
    f" ({markup.percent(m.get('without_circuit_test_accuracy'))}).",
  ]
  loss, target = m.get("test_loss"), circuit.target
  if markup.is_number(loss) and markup.is_number(target):
    verdict = "meets" if loss <= target else "misses"
    sentence.append(
      f" The circuit {verdict} its target of {markup.number(target)} nats."
    )
  return _el("p", sentence, class_="lead")


def anchor(index: int) -> str:
  """Returns the id of a page's section on its circuit of that index."""
  return f"c{index}"


def circuit_section(circuit: view.CircuitView, prefix: str) -> markup.Markup:
  """Returns a circuit's section; `prefix` starts every id in it."""
  heading = f"{prefix}-heading"
  return _el(
    "section",
    _el("h2", circuit.task, id=heading),
    _headline(circuit),
    _disagreement(circuit),
    _figure(circuit, prefix),
    _measured(circuit, prefix),
    evidence.evidence_section(circuit, prefix),
    _examples(circuit),
    _tables(circuit),
    id=prefix,
    class_="circuit-section",
    aria_labelledby=heading,
  )


def _disagreement(circuit: view.CircuitView) -> markup.Markup | None:
  """Says so where the file's own counts are not those of its lists."""
  wrong = []
  for name, items in zip(("nodes", "edges"), circuit.graph, strict=True):
    stated = circuit.metrics.get(f"num_{name}")
    if markup.is_number(stated) and stated != len(items):
      wrong.append(
        f"num_{name} is {markup.number(stated)}, {len(items)} are listed"
      )
  if not wrong:
    return None
  text = f"The circuit file disagrees with itself: {'; '.join(wrong)}."
  return _el("p", text, class_="warning")


def _figure(circuit: view.CircuitView, prefix: str) -> markup.Markup:
  if not circuit.graph.nodes:
    return _el("p", "The circuit is empty: no node was kept.", class_="note")
  drawing = draw.circuit_svg(circuit, prefix)
  caption = _el(
    "figcaption",
    _legend(circuit),
    [_el("p", note, class_="note") for note in drawing.notes],
    _el("p", _NODE, " ", _EDGE, class_="define"),
  )
  return _el(
    "figure",
    _el(
      "div",
      drawing.svg,
      class_="drawing",
      role="region",
      aria_label=f"Drawing of the circuit for {circuit.task}",
    ),
    # Filled by the script: the node that is pointed at.
    _el("div", class_="detail", role="status", hidden=True),
    caption,
    data_circuit=prefix,
  )


def _legend(circuit: view.CircuitView) -> markup.Markup:
  pill = _el("rect", x=1, y=1, width=28, height=12, rx=6)
  items = [
    (_el("g", pill, class_="key"), "node (its channel)"),
    (parts.stroke("edge pos"), "positive edge"),
    (parts.stroke("edge neg"), "negative edge; width is |weight|"),
    (parts.stroke("wire"), "residual channel from a write to later reads"),
  ]
  if circuit.d_head is not None:
    items.append((parts.stroke("headlink"), "same attention head"))
  return _el(
    "ul",
    [_el("li", parts.swatch(shape), text) for shape, text in items],
    class_="legend",
  )


def _measured(circuit: view.CircuitView, prefix: str) -> markup.Markup:
  m = circuit.metrics
  losses = [(name, m.get(f"{p}test_loss"), c) for name, p, c in parts.MODELS]
  bars = charts.loss_bars(
    losses, [("target", circuit.target), ("guessing", math.log(2))], prefix
  )
  rows = [
    (
      name,
      markup.number(loss),
      markup.percent(m.get(f"{p}test_accuracy")),
    )
    for (name, loss, _), (_, p, _) in zip(losses, parts.MODELS, strict=True)
  ]
  header = (("held-out pairs", ""), ("task loss (nats)", "num"))
  header += (("accuracy", "num"),)
  ablation = _ABLATIONS.get(circuit.ablation, circuit.ablation)
  facts = [
    ("target loss", f"{markup.number(circuit.target)} nats", ""),
    ("value of ablated nodes", ablation or markup.MISSING, ""),
    ("model fingerprint", circuit.model_fingerprint or markup.MISSING, ""),
  ]
  facts += [
    (_el("code", name), shown, _FIGURES.get(name, ""))
    for name, shown in _further(m)
  ]
  figures = [
    (name, (shown, _el("small", meaning) if meaning else None))
    for name, shown, meaning in facts
  ]
  return _el(
    "div",
    _el("h3", "Measured"),
    _el(
      "div",
      _el("div", bars, class_="cell"),
      _el(
        "div",
        parts.table("Circuit, full model and the rest", header, rows),
        _el(
          "p",
          "Without the circuit: the full model with only the circuit's"
          " nodes ablated. ",
          parts.TASK_LOSS,
          class_="define",
        ),
        class_="cell",
      ),
      class_="pair",
    ),
    parts.table(
      "Further figures", (("figure", ""), ("value", "")), figures, "narrow"
    ),
  )


def _further(metrics: Mapping[str, Any], prefix: str = ""):
  """Yields (dotted name, shown value) of the figures with no other place."""
  for name, value in metrics.items():
    full = f"{prefix}{name}"
    if full in _PLACED:
      continue
    if isinstance(value, Mapping):
      if prefix.count(".") < _MAX_DEPTH:
        yield from _further(value, f"{full}.")
    elif isinstance(value, str):
      yield full, value if len(value) <= 200 else value[:199] + "…"
    elif value is None or isinstance(value, numbers.Real):
      yield full, markup.number(value)
    elif isinstance(value, (list, tuple)) and 0 < len(value) <= 16:
      if all(isinstance(v, numbers.Real) or v is None for v in value):
        yield full, ", ".join(markup.number(v) for v in value)


def _examples(circuit: view.CircuitView) -> markup.Markup | None:
  if not circuit.examples:
    return None
  shown = circuit.examples[:MAX_EXAMPLES]
  more = None
  if len(shown) < len(circuit.examples):
    more = _el(
      "p",
      f"The first {len(shown)} of {len(circuit.examples)} examples.",
      class_="note",
    )
  return _el(
    "div",
    _el("h3", "Example prompts"),
    _el(
      "p",
      "Tokens in boxes: · is a space, ⏎ a line break, → a tab. Where the two"
      " prompts differ is marked. The bars give the probability of the"
      " prompt's answer between the two answers.",
      class_="define",
    ),
    more,
    _el("div", [_example(example) for example in shown], class_="examples"),
  )


def _example(example: Mapping[str, Any]) -> markup.Markup:
  prompt = list(example.get("prompt_tokens", []))
  counter = list(example.get("counter_prompt_tokens", []))
  marked, counter_marked = _differences(prompt, counter)
  answers = [(prompt, example.get("answer", ""), marked, "prompt")]
  if counter:
    answers.append(
      (
        counter,
        example.get("counter_answer", ""),
        counter_marked,
        "counter-prompt",
      )
    )
  sides = [
    _el(
      "div",
      _el("h4", name),
      markup.tokens(texts, marks),
      _el("p", "answer ", markup.token(answer, "answer"), class_="answer"),
      class_="side",
    )
    for texts, answer, marks, name in answers
  ]
  meters = [
    _meter(name, example.get(key), class_)
    for name, key, class_ in (
      ("circuit", "circuit_prob", "circuit"),
      ("full model", "full_prob", "full"),
    )
  ]
  return _el("article", sides, _el("div", meters, class_="meters"))


def _meter(name: str, share, class_: str) -> markup.Markup:
  """A probability as a labelled bar."""
  width = 100 * min(1.0, max(0.0, share)) if markup.is_number(share) else 0
  bar = _el(
    "svg",
    _el("rect", width=100, height=8, class_="rail"),
    _el("rect", width=f"{width:.1f}", height=8, class_=f"bar {class_}"),
    viewBox="0 0 100 8",
    preserveAspectRatio="none",
    aria_hidden="true",
  )
  return _el(
    "div",
    _el("span", name),
    bar,
    _el("span", markup.percent(share), class_="num"),
    class_="meter",
  )


def _differences(a: list[str], b: list[str]) -> tuple[set[int], set[int]]:
  """Returns the positions at which two token lists differ."""
  matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
  in_a, in_b = set(), set()
  if a and b:
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
      if tag != "equal":
        in_a |= set(range(a0, a1))
        in_b |= set(range(b0, b1))
  return in_a, in_b


def _cut(num: int) -> markup.Markup | None:
  """Returns the note on the rows that a table of `num` leaves out."""
  if num <= MAX_ROWS:
    return None
  text = (
    f"The table stops after {markup.count(MAX_ROWS)} of {markup.count(num)}"
    " rows."
  )
  return _el("p", text, class_="note")


def _tables(circuit: view.CircuitView) -> markup.Markup | None:
  nodes, edges = circuit.graph
  if not nodes:
    return None
  num_in, num_out = draw.degrees(circuit)
  header = [("site", ""), ("channel", "num"), ("in", "num"), ("out", "num")]
  with_heads = circuit.d_head is not None
  if with_heads:
    header.insert(2, ("head", "num"))
  if circuit.node_notes:
    header += [("reads tokens", ""), ("writes tokens", "")]
  rows = []
  for node in sorted(nodes, key=layout.forward_order)[:MAX_ROWS]:
    row = [
      _el("code", node.site, data_key=node.key),
      node.index,
      num_in[node],
      num_out[node],
    ]
    if with_heads:
      head = circuit.head(node)
      row.insert(2, markup.MISSING if head is None else head)
    if circuit.node_notes:
      note = circuit.node_notes.get(node.key, {})
      row += [
        _weighted(note.get(k, [])) for k in ("read_tokens", "write_tokens")
      ]
    rows.append(row)
  node_table = parts.table(
    parts.plural(len(nodes), "node"), header, rows, "sortable nodes"
  )
  edge_header = (("from", ""), ("to", ""), ("weight", "num"))
  edge_rows = (
    (
      _el("code", edge.source.key),
      _el("code", edge.target.key),
      markup.number(edge.weight, 4),
    )
    for edge in reversed(draw.strongest(edges, MAX_ROWS))
  )
  edge_table = parts.table(
    f"{parts.plural(len(edges), 'edge')}, the strongest first",
    edge_header,
    edge_rows,
    "sortable edges",
  )
  return _el(
    "div",
    _el("h3", "Nodes and edges"),
    _el(
      "div",
      _el("div", node_table, _cut(len(nodes)), class_="cell"),
      _el("div", edge_table, _cut(len(edges)), class_="cell"),
      class_="pair" if not circuit.node_notes else "stack",
    ),
  )


def _weighted(pairs) -> markup.Markup | None:
  """Tokens of a note, each with its weight."""
  if not pairs:
    return None
  items = [
    _el("span", markup.token(text), _el("small", markup.number(weight)))
    for text, weight in pairs[:_MAX_NOTES]
  ]
  if len(pairs) > _MAX_NOTES:
    items.append(_el("small", f"and {len(pairs) - _MAX_NOTES} more"))
  return _el("div", items, class_="weighted")
