"""Where nodes and lines of a circuit go: a layered drawing, left to right.

Columns follow the forward pass; q, k and v share one, each in its own lane.
Nodes are ordered to cross few edges (barycentres, Sugiyama et al. 1981) and
moved towards their neighbours (isotonic regression keeps order and distances).
Residual wiring that skips columns runs on tracks below. Support, what a robust
circuit adds, takes the same columns below its core, so that the core lies where
it would lie with no support in them.
"""

import bisect
import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sparse_jax import sites
from sparse_jax.report import graph

_SOURCES = {kind.source for kind in sites.EDGE_KINDS}
_TARGETS = {kind.target for kind in sites.EDGE_KINDS}
# Sites whose channels are residual channels: what reads them, what writes them.
READS = frozenset(_SOURCES - _TARGETS) | {
  site.name for site in sites.SITES.values() if not site.per_layer
}
WRITES = frozenset(
  name for name in _TARGETS - _SOURCES if sites.SITES[name].width == "d_model"
)

_NARROWEST_GAP, _WIDEST_GAP = 46, 104
_LANE_GAP = 26
_TRACK_PITCH = 11
_MAX_TRACKS = 48
_SWEEPS = 8
# Between the core and the support below it; holds a line of text.
_BAND_GAP = 34
# Draws unconnected parts to a common middle while the rest settles.
_INWARD = 0.95


class Lane(NamedTuple):
  """One site of one layer: its place in the drawing, in pixels."""

  site: str
  x: float
  top: float
  bottom: float
  support: bool = False


class Wire(NamedTuple):
  """A piece of residual wiring: an SVG path of one residual channel."""

  channel: int
  path: str
  support: bool = False


class Track(NamedTuple):
  """A residual channel's line below the columns, in pixels."""

  channel: int
  left: float
  right: float
  y: float
  support: bool = False


class Layout(NamedTuple):
  """A drawing's geometry, in pixels from its top left corner.

  Attributes:
    at: centre of each node.
    lanes: by column, in forward order, the core's first.
    tracks: residual wiring that skips columns.
    num_channels_left_out: residual channels with no track left for them.
    node_heights: of a core node and of a support node.
    core_height: how much of the height shows the core.
  """

  at: Mapping[graph.Node, tuple[float, float]]
  lanes: Sequence[Sequence[Lane]]
  wires: Sequence[Wire]
  tracks: Sequence[Track]
  num_channels_left_out: int
  node_width: float
  node_heights: tuple[float, float]
  width: float
  height: float
  core_height: float


def _depth(name: str) -> int:
  """Returns how many edges lead to a site within its sublayer."""
  sources = [kind.source for kind in sites.EDGE_KINDS if kind.target == name]
  return 1 + _depth(sources[0]) if sources else 0


# Sites of a layer that share a column, in forward order.
_COLUMNS = tuple(
  tuple(group)
  for _, group in itertools.groupby(
    sites.SITES, lambda name: (name.partition(".")[0], _depth(name))
  )
)
_COLUMN_OF = {name: i for i, names in enumerate(_COLUMNS) for name in names}
_RANK = {name: i for i, name in enumerate(sites.SITES)}


def forward_order(node: graph.Node):
  """Returns a sort key: forward order of sites, then the channel."""
  layer = math.inf if node.layer is None else node.layer
  return layer, _RANK[node.name], node.index


def _column_key(node: graph.Node):
  return forward_order(node)[0], _COLUMN_OF[node.name]


def columns(nodes: Sequence[graph.Node]) -> list[list[list[graph.Node]]]:
  """Returns the nodes by column and lane, in forward order."""
  ordered = sorted(nodes, key=forward_order)
  return [
    [list(lane) for _, lane in itertools.groupby(column, lambda n: n.site)]
    for _, column in itertools.groupby(ordered, _column_key)
  ]


def _flat(column) -> list[graph.Node]:
  return list(itertools.chain.from_iterable(column))


def _columns_of(cols) -> dict[graph.Node, int]:
  return {node: i for i, col in enumerate(cols) for node in _flat(col)}


def residual_pairs(
  nodes: Sequence[graph.Node],
) -> list[tuple[graph.Node, graph.Node]]:
  """Returns all pairs (write, later read) of one residual channel."""
  ordered = sorted(nodes, key=forward_order)
  reads = defaultdict(list)
  for node in ordered:
    if node.name in READS:
      reads[node.index].append(node)
  return [
    (write, read)
    for write in ordered
    if write.name in WRITES
    for read in reads[write.index]
    if _column_key(read) > _column_key(write)
  ]


def crossings(links: Sequence[tuple[float, float]]) -> int:
  """Returns how many pairs of links, (left place, right place), cross."""
  seen, total = [], 0
  for _, group in itertools.groupby(sorted(links), lambda link: link[0]):
    rights = [right for _, right in group]
    total += sum(len(seen) - bisect.bisect_right(seen, r) for r in rights)
    for right in rights:
      bisect.insort(seen, right)
  return total


def spread(wanted: Sequence[float], offsets: Sequence[float]) -> list[float]:
  """Returns places nearest to `wanted` (least squares) that keep distances.

  Item j stays at least `offsets[j] - offsets[i]` below item i.
  """
  blocks = []  # (mean, size), pooled until the means ascend.
  for want, offset in zip(wanted, offsets, strict=True):
    mean, size = want - offset, 1
    while blocks and blocks[-1][0] > mean:
      other, more = blocks.pop()
      mean = (mean * size + other * more) / (size + more)
      size += more
    blocks.append((mean, size))
  means = itertools.chain.from_iterable([m] * size for m, size in blocks)
  return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _order(cols, neighbours) -> list[list[list[graph.Node]]]:
  """Returns the columns with lanes reordered to cross few links."""
  column_of = _columns_of(cols)

  def places(cols):
    flat = map(_flat, cols)
    return {n: (i + 0.5) / len(col) for col in flat for i, n in enumerate(col)}

  def total(cols):
    place = places(cols)
    links = defaultdict(list)
    for node, others in neighbours.items():
      for other in others:
        if column_of[other] == column_of[node] + 1:
          links[column_of[node]].append((place[node], place[other]))
    return sum(crossings(group) for group in links.values())

  best, fewest = cols, total(cols)
  for sweep in range(_SWEEPS):
    if fewest == 0:
      break
    place = places(cols)
    back = sweep % 2
    cols = list(cols)
    for i in reversed(range(len(cols))) if back else range(len(cols)):

      def barycentre(node, i=i, back=back, place=place):
        side = [
          place[other]
          for other in neighbours[node]
          if (column_of[other] > i if back else column_of[other] < i)
        ]
        return sum(side) / len(side) if side else place[node]

      cols[i] = [sorted(lane, key=barycentre) for lane in cols[i]]
      place |= places([cols[i]])
    now = total(cols)
    if now < fewest:
      best, fewest = cols, now
  return best


def _heights(cols, neighbours, pitch: float) -> dict[graph.Node, float]:
  """Returns each node's height, the topmost at 0."""
  flat, offsets = list(map(_flat, cols)), []
  for col in cols:
    below, here = [], 0.0
    for lane in col:
      below += [here + i * pitch for i in range(len(lane))]
      here = below[-1] + pitch + _LANE_GAP
    offsets.append(below)
  pairs = list(zip(flat, offsets, strict=True))
  y = {}
  for nodes, below in pairs:
    y |= {n: o - below[-1] / 2 for n, o in zip(nodes, below, strict=True)}
  for sweep in range(2 * _SWEEPS):
    for nodes, below in pairs if sweep % 2 == 0 else reversed(pairs):
      wanted = []
      for node in nodes:
        near = [y[other] for other in neighbours[node]]
        wanted.append(_INWARD * sum(near) / len(near) if near else 0.0)
      y |= dict(zip(nodes, spread(wanted, below), strict=True))
  top = min(y.values())
  return {node: height - top for node, height in y.items()}


def _pack(spans: Sequence[tuple[int, float, float]]) -> dict[int, int]:
  """Returns a row for each (channel, left, right) so that none overlap."""
  ends, rows = [], {}
  for channel, left, right in sorted(spans, key=lambda s: (s[1], s[2], s[0])):
    row = next((i for i, end in enumerate(ends) if end < left), len(ends))
    ends[row : row + 1] = [right]
    rows[channel] = row
  return rows


def curve(x1: float, y1: float, x2: float, y2: float, bend: float = 0.5) -> str:
  """Returns the SVG path of a level start, an S and a level end."""
  c1, c2 = x1 + bend * (x2 - x1), x2 - bend * (x2 - x1)
  return (
    f"M{x1:.1f} {y1:.1f}C{c1:.1f} {y1:.1f} {c2:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
  )


def place(
  nodes: Sequence[graph.Node],
  edges: Sequence[graph.Edge],
  margin: float,
  width: float = 1140,
  support: frozenset[graph.Node] = frozenset(),
) -> Layout:
  """Returns where to draw nodes, at least one, and the edges among them.

  The same input gives the same drawing. Margin and width are in pixels; the
  drawing is wider where its columns need it. Nodes of `support` lie below.
  """
  cols = columns(nodes)
  column_of = _columns_of(cols)
  pairs = residual_pairs(nodes)
  short = [p for p in pairs if column_of[p[1]] == column_of[p[0]] + 1]
  links = [link[:2] for link in itertools.chain(edges, short)]
  digits = max(len(str(node.index)) for node in nodes)
  node_width = max(30, 8 * digits + 8)
  gap = (width - 2 * margin - len(cols) * node_width) / max(1, len(cols) - 1)
  gap = round(min(_WIDEST_GAP, max(_NARROWEST_GAP, gap)))
  half, strength = node_width / 2, _strength(edges)
  x = [margin + half + i * (node_width + gap) for i in range(len(cols))]
  at, lanes, wires, tracks = {}, [[] for _ in cols], [], []
  node_heights, heights, bottom, left_out = [], [], 0.0, 0
  for is_support in (False, True):
    belongs = lambda *ns: (not support.isdisjoint(ns)) == is_support
    band = [[list(filter(belongs, lane)) for lane in col] for col in cols]
    band = [[lane for lane in col if lane] for col in band]
    tallest = max(sum(map(len, col)) for col in band)
    pitch, node_height = (24, 17) if tallest <= 60 else (11, 8)
    node_heights.append(node_height)
    if tallest:
      band, y = _settle(band, links, pitch)
      high = node_height / 2
      top = (bottom + _BAND_GAP if bottom else margin) + high
      at |= {node: (x[column_of[node]], top + y[node]) for node in y}
      for i, lane in ((i, lane) for i, col in enumerate(band) for lane in col):
        ends = at[lane[0]][1] - high, at[lane[-1]][1] + high
        lanes[i].append(Lane(lane[0].site, x[i], *ends, is_support))
      bottom = top + max(y.values()) + high
      *marks, num = _route(
        [pair for pair in pairs if belongs(*pair)],
        *(column_of, x, at, half, gap, bottom + 1.5 * margin, strength),
      )
      for found, mine in zip((wires, tracks), marks, strict=True):
        found += [mark._replace(support=is_support) for mark in mine]
      left_out += num
      bottom = max((track.y for track in marks[1]), default=bottom)
    heights.append(round(bottom + margin))
  return Layout(
    at=at,
    lanes=lanes,
    wires=wires,
    tracks=tracks,
    num_channels_left_out=left_out,
    node_width=node_width,
    node_heights=tuple(node_heights),
    width=round(x[-1] + half + margin),
    height=heights[1],
    core_height=heights[0],
  )


def _settle(band, links, pitch: float):
  """Returns (columns in order, heights) by the links among their nodes."""
  inside = _columns_of(band)
  neighbours = defaultdict(list)
  for source, target in links:
    if source in inside and target in inside:
      neighbours[source].append(target)
      neighbours[target].append(source)
  band = _order(band, neighbours)
  return band, _heights(band, neighbours, pitch)


def _strength(edges) -> dict[int, float]:
  """Returns the summed magnitude of edges at each residual channel."""
  total = defaultdict(float)
  for edge in edges:
    for node in (edge.source, edge.target):
      if node.name in READS or node.name in WRITES:
        total[node.index] += abs(edge.weight)
  return total


def _route(pairs, column_of, x, at, half, gap, tracks_top, strength):
  """Returns (wires, tracks, channels left out) of the residual wiring."""
  wires, entries, exits = {}, defaultdict(set), defaultdict(set)
  for write, read in pairs:
    if column_of[read] == column_of[write] + 1:
      (x1, y1), (x2, y2) = at[write], at[read]
      path = curve(x1 + half, y1, x2 - half, y2)
      wires[Wire(write.index, path)] = None
    else:
      entries[write.index].add(write)
      exits[write.index].add(read)
  spans = [
    (
      channel,
      min(at[node][0] for node in entries[channel]) + half + gap,
      max(at[node][0] for node in exits[channel]) - half - gap,
    )
    for channel in entries
  ]
  spans.sort(key=lambda s: (-strength.get(s[0], 0.0), s[0]))
  spans = [(c, left, max(left, right)) for c, left, right in spans]
  rows = _pack(spans)
  while rows and max(rows.values()) >= _MAX_TRACKS:
    spans = spans[: -max(1, len(spans) // 10)]
    rows = _pack(spans)
  tracks = []
  for channel, left, right in sorted(spans):
    y = tracks_top + _TRACK_PITCH * rows[channel]
    tracks.append(Track(channel, left, right, y))
    for node in sorted(entries[channel], key=forward_order):
      x1, y1 = at[node][0] + half, at[node][1]
      wires[Wire(channel, curve(x1, y1, x1 + gap, y, 0.8))] = None
    for node in sorted(exits[channel], key=forward_order):
      x2, y2 = at[node][0] - half, at[node][1]
      wires[Wire(channel, curve(x2 - gap, y, x2, y2, 0.8))] = None
  return list(wires), tracks, len(entries) - len(spans)
