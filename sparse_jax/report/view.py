"""What the page shows of one circuit: plain data, checked on the way in."""

import dataclasses
import functools
import numbers
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sparse_jax import sites
from sparse_jax.utils import errors, files


class Node(NamedTuple):
  """One channel of one site.

  Attributes:
    site: full site name, `0.attn.q`.
    index: channel.
  """

  site: str
  index: int

  @property
  def key(self) -> str:
    """The node's name in circuit files and pages, `0.attn.q:3`."""
    return f"{self.site}:{self.index}"

  @property
  def name(self) -> str:
    """The site's name without the layer."""
    return _split(self.site)[0]

  @property
  def layer(self) -> int | None:
    """The layer; None for the site behind the last one."""
    return _split(self.site)[1]


class Edge(NamedTuple):
  """A nonzero weight from a node to a node."""

  source: Node
  target: Node
  weight: float


class Graph(NamedTuple):
  """Nodes and edges, in the order given."""

  nodes: tuple[Node, ...]
  edges: tuple[Edge, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CircuitView:
  """One circuit as the page shows it; the fields are those of `circuit.json`.

  Attributes:
    task: the task's name.
    nodes: `{"site": "0.attn.q", "index": 3}` each.
    edges: `{"from": node, "to": node, "weight": w}` each.
    metrics: figures by name; losses in nats, accuracies from 0 to 1. Groups of
      figures may be nested. Missing and non-finite ones are shown as "–".
    ablation: value of the nodes left out: `mean_pretrain`, `mean_task`, `zero`.
    model_fingerprint: of the model that the circuit was found in.
    target_loss: task loss the search had to reach, in nats; None takes
      `metrics["target_loss"]`.
    examples: dicts with `prompt_tokens`, `answer`, `counter_prompt_tokens`,
      `counter_answer`, `circuit_prob`, `full_prob`: the probability of the
      answer between the two answers, after the prompt.
    node_notes: by node (`"0.attn.q:3"`), `read_tokens` and `write_tokens`:
      lists of (token, weight).
    d_head: width of a head, to say which head a channel belongs to; None leaves
      heads out.

  Raises:
    InputError: naming the field, if one is not as described.
  """

  task: str
  nodes: Sequence[Mapping[str, Any]]
  edges: Sequence[Mapping[str, Any]]
  metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  ablation: str = ""
  model_fingerprint: str = ""
  target_loss: float | None = None
  examples: Sequence[Mapping[str, Any]] = ()
  node_notes: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  d_head: int | None = None

  def __post_init__(self):
    for name in ("task", "ablation", "model_fingerprint"):
      _check_type(name, getattr(self, name), str, "text")
    for name in ("nodes", "edges", "examples"):
      _check_type(name, getattr(self, name), (list, tuple), "a list")
    for name in ("metrics", "node_notes"):
      _check_type(name, getattr(self, name), Mapping, "a group of fields")
    if self.target_loss is not None:
      _check_number("target_loss", self.target_loss)
    if self.d_head is not None and (
      not _is_index(self.d_head) or self.d_head < 1
    ):
      raise errors.bad_value("d_head", self.d_head, "a whole number from 1")
    for position, example in enumerate(self.examples):
      _check_example(f"examples[{position}]", example)
    for key, note in self.node_notes.items():
      _check_note(f"node_notes[{key!r}]", note)
    _ = self.graph  # Checks nodes and edges.

  @functools.cached_property
  def graph(self) -> Graph:
    """The nodes and edges, parsed."""
    nodes = tuple(
      _node(f"nodes[{position}]", node)
      for position, node in enumerate(self.nodes)
    )
    known = set(nodes)
    if len(known) < len(nodes):
      twice = next(node.key for node in nodes if nodes.count(node) > 1)
      raise errors.bad_value("nodes", twice, "each node once")
    edges = []
    for position, edge in enumerate(self.edges):
      where = f"edges[{position}]"
      _check_type(where, edge, Mapping, 'fields "from", "to", "weight"')
      ends = []
      for end in ("from", "to"):
        node = _node(f"{where}.{end}", edge.get(end))
        if node not in known:
          raise errors.bad_value(
            f"{where}.{end}", node.key, "a node listed under nodes"
          )
        ends.append(node)
      weight = edge.get("weight")
      _check_number(f"{where}.weight", weight)
      edges.append(Edge(*ends, float(weight)))
    return Graph(nodes, tuple(edges))

  @property
  def target(self) -> float | None:
    """The target loss in nats, wherever it was given."""
    if self.target_loss is None:
      return self.metrics.get("target_loss")
    return self.target_loss

  def head(self, node: Node) -> int | None:
    """Returns the attention head a q, k or v channel belongs to, if known."""
    if self.d_head is None or sites.SITES[node.name].width != "d_attn":
      return None
    return node.index // self.d_head


def from_directory(
  circuit_dir: str | pathlib.Path, d_head: int | None = None
) -> CircuitView:
  """Returns the view of a saved circuit.

  Args:
    circuit_dir: a directory with `circuit.json`; unknown fields are ignored.
    d_head: see `CircuitView`.

  Raises:
    InputError: naming the file, if it is missing or not a circuit.
  """
  path = pathlib.Path(circuit_dir) / "circuit.json"
  try:
    fields = files.read_json(path, "a saved circuit")
  except RecursionError:
    raise errors.InputError(
      f"{path}: not JSON (nested too deeply); need a saved circuit"
    ) from None
  if not isinstance(fields, dict):
    raise errors.InputError(
      f"{path} holds {type(fields).__name__}; need an object"
    )
  needed = ("task", "nodes", "edges", "metrics")
  missing = [name for name in needed if name not in fields]
  if missing:
    raise errors.InputError(
      f"{path} has no {', '.join(missing)}; need {', '.join(needed)}"
    )
  known = {field.name for field in dataclasses.fields(CircuitView)}
  kwargs = {k: v for k, v in fields.items() if k in known and v is not None}
  if d_head is not None:
    kwargs["d_head"] = d_head
  try:
    return CircuitView(**kwargs)
  except errors.InputError as e:
    raise errors.InputError(f"{path}: {e}") from e


def _check_type(where: str, value, kind, accepted: str) -> None:
  if not isinstance(value, kind):
    raise errors.bad_value(where, _brief(value), accepted)


def _check_number(where: str, value) -> None:
  """Accepts whatever a float can hold, NaN and infinities included."""
  try:
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
      float(value)
      return
  except OverflowError:
    pass
  raise errors.bad_value(where, _brief(value), "a number")


def _brief(value):
  """Returns a value short enough for one line."""
  text = repr(value)
  return value if len(text) <= 80 else text[:77] + "…"


def _is_index(value) -> bool:
  is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
  return is_whole and value >= 0


@functools.lru_cache(maxsize=4096)
def _split(site: str) -> tuple[str, int | None]:
  """Returns (name, layer) of a full site name of a model of any depth."""
  layer = site.partition(".")[0]
  n_layer = int(layer) + 1 if layer.isdecimal() and len(layer) < 5 else 1
  return sites.parse_site_id(site, min(n_layer, 10_000))


def _node(where: str, value) -> Node:
  _check_type(where, value, Mapping, 'fields "site" and "index"')
  site, index = value.get("site"), value.get("index")
  _check_type(f"{where}.site", site, str, "a site's name")
  if not _is_index(index):
    raise errors.bad_value(f"{where}.index", _brief(index), "a channel, from 0")
  try:
    _split(site)
  except errors.InputError:
    raise errors.bad_value(
      f"{where}.site",
      _brief(site),
      f"a site such as {', '.join(sites.all_site_ids(1))}",
    ) from None
  return Node(site, int(index))


def _check_tokens(where: str, value) -> None:
  ok = isinstance(value, (list, tuple)) and all(
    isinstance(text, str) for text in value
  )
  if not ok:
    raise errors.bad_value(where, _brief(value), "a list of token texts")


def _check_example(where: str, example) -> None:
  _check_type(where, example, Mapping, "a group of fields")
  for name in ("prompt_tokens", "counter_prompt_tokens"):
    _check_tokens(f"{where}.{name}", example.get(name, []))
  for name in ("answer", "counter_answer"):
    _check_type(f"{where}.{name}", example.get(name, ""), str, "a token's text")


def _check_note(where: str, note) -> None:
  _check_type(where, note, Mapping, "a group of fields")
  for name in ("read_tokens", "write_tokens"):
    pairs = note.get(name, [])
    _check_type(f"{where}.{name}", pairs, (list, tuple), "a list of pairs")
    for pair in pairs:
      ok = isinstance(pair, (list, tuple)) and len(pair) == 2
      if not ok or not isinstance(pair[0], str):
        raise errors.bad_value(
          f"{where}.{name}", _brief(pair), "pairs of a token and a weight"
        )
      _check_number(f"{where}.{name}", pair[1])
