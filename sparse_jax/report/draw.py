"""What the drawing of a circuit shows; `templates/drawing.html` is its SVG."""

import collections
import heapq
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sparse_jax.report import graph, layout, text

MAX_EDGES = 400
MAX_NODES = 1500
_MARGIN = 24
_THINNEST, _THICKEST = 0.8, 4.0


class Drawing(NamedTuple):
  """Everything the template needs, in pixels.

  Attributes:
    layers: (name, left, right, columns); a column is (x, block, sites).
    edges: (edge, path, stroke width, width by the loss without it or None).
    head_links: (node, other node of the same head, path).
    nodes: what each is called, its column, its part in residual wiring.
    support: nodes of the robust circuit that are not in its core.
    shared: nodes that other circuits of the page have, too.
    first: where the keyboard enters: the core's first node, if it has one.
    notes: what was left out.
  """

  task: str
  geometry: layout.Layout
  layers: Sequence[tuple[str, float, float, Sequence[tuple[float, str, str]]]]
  edges: Sequence[tuple[graph.Edge, str, float, float | None]]
  head_links: Sequence[tuple[graph.Node, graph.Node, str]]
  nodes: Mapping[graph.Node, tuple[str, int, str | None]]
  support: frozenset[graph.Node]
  shared: frozenset[graph.Node]
  first: graph.Node
  notes: Sequence[str]

  @property
  def parts(self) -> list[tuple[str, "Drawing"]]:
    """(class, marks) from the back to the front: any support, then the core."""
    if not self.support:
      return [("", self)]
    return [("support", self._part(True)), ("core", self._part(False))]

  def _part(self, is_support: bool) -> "Drawing":
    belongs = lambda *ns: (not self.support.isdisjoint(ns)) == is_support
    mine = lambda marks: [m for m in marks if m.support == is_support]
    g = self.geometry
    return self._replace(
      geometry=g._replace(
        lanes=list(map(mine, g.lanes)),
        wires=mine(g.wires),
        tracks=mine(g.tracks),
      ),
      edges=[e for e in self.edges if belongs(e[0].source, e[0].target)],
      head_links=[link for link in self.head_links if belongs(*link[:2])],
      nodes={n: told for n, told in self.nodes.items() if belongs(n)},
    )

  @property
  def legend(self) -> list[tuple[str, str]]:
    """(class, meaning) of every kind of mark in the drawing."""
    marks = [
      ("key", "core: does the task on its own"),
      ("key support", "support: what the robust circuit adds to the core"),
    ]
    marks = marks if self.support else [("key", "node (its channel)")]
    marks += [
      ("edge pos", "positive edge"),
      ("edge neg", "negative edge; width is |weight|"),
    ]
    if self.shared:
      marks.append(("key shared", "also in another circuit of this page"))
    if self.geometry.wires:
      marks.append(("wire", "residual channel from a write to later reads"))
    if self.head_links:
      marks.append(("headlink", "same attention head"))
    return marks


def strongest(shown: graph.Graph, limit: int = MAX_EDGES) -> list[graph.Edge]:
  """Returns at most `limit` edges of largest |weight|, the strongest last.

  Those of the core go before any other, and so stand behind them.
  """
  rank = lambda e: (not shown.is_support(e.source, e.target), e.magnitude)
  # Like `sorted`, it keeps the order of equal ones.
  return heapq.nlargest(limit, shown.edges, key=rank)[::-1]


def degrees(edges: Sequence[graph.Edge]):
  """Returns two counters by node: edges in, edges out."""
  return (
    collections.Counter(edge.target for edge in edges),
    collections.Counter(edge.source for edge in edges),
  )


def drawing(
  task: str,
  shown: graph.Graph,
  width: float = 1140,
  losses: Mapping[tuple[str, str], float] | None = None,
  elsewhere: frozenset[graph.Node] = frozenset(),
) -> Drawing:
  """Returns the drawing of a graph of at least one node, `width` pixels wide.

  Circuits with many columns are wider. Only the strongest edges, and the nodes
  that they join first, are drawn of a large circuit; the core's before others.
  `losses` are those without an edge, by its ends' keys; `elsewhere` are nodes
  of other circuits.
  """
  edges = strongest(shown)
  nodes = list(shown.nodes)
  if len(nodes) > MAX_NODES:
    joined = [node for e in reversed(edges) for node in (e.source, e.target)]
    nodes.sort(key=shown.is_support)
    nodes = list(dict.fromkeys((*joined, *nodes)))[:MAX_NODES]
  geometry = layout.place(nodes, edges, _MARGIN, width, shown.support)
  notes = []
  core_first = ", the core's first" if shown.support else ""
  if len(edges) < len(shown.edges):
    notes.append(
      f"Drawn: the {len(edges)} edges of largest |weight| of"
      f" {text.count(len(shown.edges))}{core_first}. All are counted."
    )
  if len(nodes) < len(shown.nodes):
    notes.append(
      f"Drawn: {text.count(len(nodes))} of {text.count(len(shown.nodes))}"
      f" nodes, those on the strongest edges first{core_first}. All are"
      " counted."
    )
  if geometry.num_channels_left_out:
    notes.append(
      f"{geometry.num_channels_left_out} residual channels that skip columns"
      " are not drawn."
    )
  nodes.sort(key=layout.forward_order)
  return Drawing(
    task,
    geometry,
    _layers(geometry),
    _edges(edges, geometry, losses or {}),
    _head_links(shown, nodes, geometry),
    _nodes(shown, nodes, geometry, elsewhere),
    shown.support,
    elsewhere.intersection(nodes),
    min(nodes, key=shown.is_support),
    notes,
  )


def _layers(geometry: layout.Layout):
  half, order = geometry.node_width / 2, layout.forward_order
  layers = []
  for layer, group in itertools.groupby(
    geometry.lanes, lambda lanes: graph.Node(lanes[0].site, 0).layer
  ):
    columns = []
    for lanes in group:
      block = graph.Node(lanes[0].site, 0).name.partition(".")[0]
      # Core and support may each have a lane of one site.
      shared = sorted({graph.Node(lane.site, 0) for lane in lanes}, key=order)
      names = " ".join(node.site.rpartition(".")[2] for node in shared)
      if layer is None:
        block, names = "final", "resid"
      columns.append((lanes[0].x, block, names))
    name = "end" if layer is None else f"layer {layer}"
    left, right = columns[0][0] - half, columns[-1][0] + half
    layers.append((name, left, right, columns))
  return layers


def _edges(edges, geometry: layout.Layout, losses):
  half = geometry.node_width / 2
  largest = max((e.magnitude for e in edges), default=0.0) or 1.0
  # An edge that may go at no cost is as thin as can be.
  least, most = min(losses.values(), default=0), max(losses.values(), default=1)
  thick = lambda share: _THINNEST + (_THICKEST - _THINNEST) * share
  drawn = []
  for edge in edges:
    (x1, y1), (x2, y2) = geometry.at[edge.source], geometry.at[edge.target]
    path = layout.curve(x1 + half, y1, x2 - half, y2)
    loss = losses.get((edge.source.key, edge.target.key))
    if loss is not None:
      loss = thick((loss - least) / ((most - least) or 1.0))
    drawn.append((edge, path, thick(edge.magnitude / largest), loss))
  return drawn


def _head_links(shown, nodes, geometry: layout.Layout):
  """Faint links from q and k to the v channels of the same head."""
  by_head = collections.defaultdict(list)
  for node in nodes:
    head = shown.head(node)
    if head is not None:
      by_head[node.layer, head].append(node)
  half = geometry.node_width / 2
  links = []
  for group in by_head.values():
    core = [node for node in group if not shown.is_support(node)]
    pairs = [p for p in itertools.pairwise(group) if shown.is_support(*p)]
    for node, other in (*itertools.pairwise(core), *pairs):
      if node.site != other.site:
        (x, y1), (_, y2) = geometry.at[node], geometry.at[other]
        path = f"M{x + half:.1f} {y1:.1f}c16 0 16 {y2 - y1:.1f} 0 {y2 - y1:.1f}"
        links.append((node, other, path))
  return links


def _nodes(shown, nodes, geometry: layout.Layout, elsewhere):
  num_in, num_out = degrees(shown.edges)
  columns: dict[float, int] = {}
  roles = dict.fromkeys(layout.WRITES, "write")
  roles |= dict.fromkeys(layout.READS, "read")
  drawn = {}
  for node in nodes:
    head = shown.head(node)
    of_head = "" if head is None else f", head {head}"
    label = f"{node.site} channel {node.index}{of_head}"
    label += f"; edges in {num_in[node]}, out {num_out[node]}"
    if shown.support:
      label += "; support" if shown.is_support(node) else "; core"
    if node in elsewhere:
      label += "; also in another circuit"
    column = columns.setdefault(geometry.at[node][0], len(columns))
    drawn[node] = label, column, roles.get(node.name)
  return drawn
