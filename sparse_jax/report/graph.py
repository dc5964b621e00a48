"""A circuit's nodes and edges in the form that layout and tables use."""

from typing import NamedTuple

from sparse_jax import circuit as circuit_lib
from sparse_jax import sites
from sparse_jax.report import text
from sparse_jax.utils import errors


class Node(NamedTuple):
  """One channel of one site; `site` is the full name, `0.attn.q`."""

  site: str
  index: int

  @property
  def key(self) -> str:
    """The node's name in circuit files and pages, `0.attn.q:3`."""
    return f"{self.site}:{self.index}"

  @property
  def name(self) -> str:
    """The site's name without the layer."""
    return self.site if self.layer is None else self.site.partition(".")[2]

  @property
  def layer(self) -> int | None:
    """The layer; None for the site behind the last one."""
    layer = self.site.partition(".")[0]
    return int(layer) if layer.isdecimal() else None


class Edge(NamedTuple):
  """A nonzero weight from a node to a node."""

  source: Node
  target: Node
  weight: float

  @property
  def magnitude(self) -> float:
    """|weight|, or 0 where the weight is not finite."""
    return abs(self.weight) if text.is_number(self.weight) else 0.0


class Graph(NamedTuple):
  """Nodes in forward order; edges in the order of the file.

  `support` are the nodes of a robust circuit that are not in its core.
  """

  nodes: tuple[Node, ...]
  edges: tuple[Edge, ...]
  d_head: int
  support: frozenset[Node] = frozenset()

  def is_support(self, *nodes: Node) -> bool:
    """Whether an edge between, or a mark of, these nodes is not the core's."""
    return not self.support.isdisjoint(nodes)

  def head(self, node: Node) -> int | None:
    """Returns the attention head of a q, k or v channel."""
    if sites.SITES[node.name].width != "d_attn":
      return None
    return node.index // self.d_head


def from_circuit(
  circuit: circuit_lib.Circuit, file: str = "circuit.json"
) -> Graph:
  """Returns a circuit's graph; messages call its file as told.

  Raises InputError if an edge does not join two of the circuit's nodes.
  """
  nodes = tuple(Node(n["site"], n["index"]) for n in circuit.nodes)
  known = set(nodes)
  edges = []
  for position, edge in enumerate(circuit.edges):
    try:
      ends = [Node(edge[k]["site"], edge[k]["index"]) for k in ("from", "to")]
      edges.append(Edge(*ends, float(edge["weight"])))
      is_known = known.issuperset(ends)
    except (KeyError, TypeError, ValueError, OverflowError):
      is_known = False
    if not is_known:
      shown = repr(edge)
      raise errors.InputError(
        f"{file} of {circuit.task}: edges[{position}]="
        f"{shown if len(shown) <= 160 else shown[:159] + '…'} is not accepted;"
        ' need "from" and "to", two of the nodes, and "weight", a number'
      )
  return Graph(nodes, tuple(edges), circuit.model_config.d_head)


def nest(core: Graph, robust: Graph) -> Graph:
  """Returns a robust circuit's graph that knows its core, which it contains."""
  return robust._replace(support=frozenset(robust.nodes).difference(core.nodes))
