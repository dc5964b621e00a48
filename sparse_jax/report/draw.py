"""The circuit as an inline SVG picture that needs no script."""

import collections
import heapq
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from sparse_jax.report import layout, markup, view

MAX_EDGES = 400
MAX_NODES = 1500
_HEADER = 52
_MARGIN = 24
_THINNEST, _THICKEST = 0.8, 4.0
_el = markup.el


class Drawing(NamedTuple):
  """An SVG element and what has to be said beside it."""

  svg: markup.Markup
  notes: Sequence[str]


def strongest(
  edges: Sequence[view.Edge], limit: int = MAX_EDGES
) -> list[view.Edge]:
  """Returns at most `limit` edges of largest |weight|, the strongest last."""
  ranked = heapq.nlargest(
    limit,
    enumerate(edges),
    key=lambda item: (_magnitude(item[1].weight), -item[0]),
  )
  return [edge for _, edge in reversed(ranked)]


def _magnitude(weight: float) -> float:
  return abs(weight) if markup.is_number(weight) else 0.0


def _shown(circuit: view.CircuitView) -> tuple[list, list]:
  """Returns the nodes and edges to draw."""
  nodes, edges = circuit.graph
  edges = strongest(edges)
  if len(nodes) > MAX_NODES:
    joined = dict.fromkeys(
      node for e in reversed(edges) for node in (e.source, e.target)
    )
    nodes = list(dict.fromkeys((*joined, *nodes)))[:MAX_NODES]
  return list(nodes), edges


def circuit_svg(circuit: view.CircuitView, prefix: str) -> Drawing:
  """Draws a circuit of at least one node.

  Args:
    circuit: what to draw.
    prefix: starts every id, to keep ids apart on a page.

  Returns:
    The picture, and notes on what was left out of it.
  """
  all_nodes, all_edges = circuit.graph
  nodes, edges = _shown(circuit)
  geometry = layout.place(nodes, edges, _MARGIN)
  notes = []
  if len(edges) < len(all_edges):
    notes.append(
      f"Drawn: the {len(edges)} edges of largest |weight| of"
      f" {markup.count(len(all_edges))}. All are counted."
    )
  if len(nodes) < len(all_nodes):
    notes.append(
      f"Drawn: {markup.count(len(nodes))} of"
      f" {markup.count(len(all_nodes))} nodes, those on the strongest edges"
      " first. All are counted."
    )
  if geometry.num_channels_left_out:
    notes.append(
      f"{geometry.num_channels_left_out} residual channels that skip columns"
      " are not drawn."
    )
  summary = (
    f"{len(nodes)} nodes in {len(geometry.lanes)} columns, in the order of the"
    f" forward pass from left to right, and {len(edges)} edges. The tables"
    " below list them."
  )
  height = geometry.height + _HEADER
  svg = _el(
    "svg",
    _el("title", f"Circuit for {circuit.task}", id=f"{prefix}-title"),
    _el("desc", summary, id=f"{prefix}-desc"),
    _headers(geometry),
    _el(
      "g",
      _lanes(geometry),
      _wires(geometry),
      _head_links(circuit, nodes, geometry),
      _edges(edges, geometry),
      _nodes(circuit, nodes, geometry),
      transform=f"translate(0 {_HEADER})",
    ),
    class_="circuit",
    role="group",
    aria_labelledby=f"{prefix}-title",
    aria_describedby=f"{prefix}-desc",
    width=geometry.width,
    height=height,
    viewBox=f"0 0 {geometry.width} {height}",
  )
  return Drawing(svg, notes)


def _text(x, y, *children, **attributes) -> markup.Markup:
  return _el("text", *children, x=f"{x:g}", y=f"{y:g}", **attributes)


def _headers(geometry: layout.Layout) -> markup.Markup:
  """Names of layers and sites above the columns."""
  half = geometry.node_width / 2
  parts = []
  by_layer = itertools.groupby(
    geometry.lanes, lambda lanes: view.Node(lanes[0].site, 0).layer
  )
  for layer, columns in by_layer:
    columns = list(columns)
    left, right = columns[0][0].x - half, columns[-1][0].x + half
    name = "end" if layer is None else f"layer {layer}"
    parts.append(_text(left, 12, name, class_="layer"))
    parts.append(_el("path", d=f"M{left:.1f} 18H{right:.1f}", class_="rule"))
    for lanes in columns:
      block, _, _ = lanes[0].site.partition(".")[2].partition(".")
      names = [lane.site.rpartition(".")[2] for lane in lanes]
      x = lanes[0].x
      if layer is None:
        block, names = "final", ["resid"]
      parts.append(_text(x, 33, block, class_="site", text_anchor="middle"))
      parts.append(
        _text(x, 46, " ".join(names), class_="site", text_anchor="middle")
      )
  return _el("g", parts, aria_hidden="true")


def _lanes(geometry: layout.Layout) -> markup.Markup:
  parts = []
  pad = 5
  for lanes in geometry.lanes:
    for lane in lanes:
      left = lane.x - geometry.node_width / 2 - pad
      parts.append(
        _el(
          "rect",
          x=f"{left:.1f}",
          y=f"{lane.top - pad:.1f}",
          width=f"{geometry.node_width + 2 * pad:.1f}",
          height=f"{lane.bottom - lane.top + 2 * pad:.1f}",
          rx=6,
          class_="lane",
        )
      )
      if len(lanes) > 1:
        name = lane.site.rpartition(".")[2]
        parts.append(
          _text(
            lane.x,
            lane.top - pad - 3,
            name,
            class_="site",
            text_anchor="middle",
          )
        )
  return _el("g", parts, aria_hidden="true")


def _wires(geometry: layout.Layout) -> markup.Markup:
  """Residual channels from a write to later reads: wiring, not edges."""
  parts = []
  if geometry.tracks:
    parts.append(
      _text(
        _MARGIN,
        geometry.tracks_top - 12,
        "residual channels carried past columns",
        class_="site",
      )
    )
  for wire in geometry.wires:
    parts.append(
      _el("path", d=wire.path, class_="wire", data_channel=wire.channel)
    )
  for track in geometry.tracks:
    parts.append(
      _el(
        "path",
        d=f"M{track.left:.1f} {track.y:.1f}H{track.right:.1f}",
        class_="wire",
        data_channel=track.channel,
      )
    )
    parts.append(
      _text(
        track.left + 3,
        track.y + 3,
        track.channel,
        class_="channel",
        data_channel=track.channel,
      )
    )
  return _el("g", parts, aria_hidden="true")


def _head_links(circuit, nodes, geometry) -> markup.Markup | None:
  """Faint links from q and k to the v channels of the same head."""
  parts = []
  by_head = collections.defaultdict(list)
  for node in sorted(nodes, key=layout.forward_order):
    head = circuit.head(node)
    if head is not None:
      by_head[node.layer, head].append(node)
  half = geometry.node_width / 2
  for group in by_head.values():
    for node, other in itertools.pairwise(group):
      if node.site == other.site:
        continue
      (x, y1), (_, y2) = geometry.at[node], geometry.at[other]
      parts.append(
        _el(
          "path",
          d=f"M{x + half:.1f} {y1:.1f}c16 0 16 {y2 - y1:.1f} 0 {y2 - y1:.1f}",
          class_="headlink",
          data_from=node.key,
          data_to=other.key,
        )
      )
  return _el("g", parts, aria_hidden="true") if parts else None


def _edges(edges, geometry) -> markup.Markup:
  half = geometry.node_width / 2
  largest = max((_magnitude(e.weight) for e in edges), default=0.0) or 1.0
  parts = []
  for edge in edges:
    (x1, y1), (x2, y2) = geometry.at[edge.source], geometry.at[edge.target]
    share = _magnitude(edge.weight) / largest
    weight = markup.number(edge.weight)
    parts.append(
      _el(
        "path",
        _el("title", f"{edge.source.key} → {edge.target.key}: {weight}"),
        d=layout.curve(x1 + half, y1, x2 - half, y2),
        class_="edge neg" if edge.weight < 0 else "edge pos",
        stroke_width=f"{_THINNEST + (_THICKEST - _THINNEST) * share:.2f}",
        data_from=edge.source.key,
        data_to=edge.target.key,
      )
    )
  return _el("g", parts, aria_hidden="true")


def degrees(circuit: view.CircuitView):
  """Returns two counters by node: edges in, edges out."""
  edges = circuit.graph.edges
  return (
    collections.Counter(edge.target for edge in edges),
    collections.Counter(edge.source for edge in edges),
  )


def _nodes(circuit, nodes, geometry) -> markup.Markup:
  num_in, num_out = degrees(circuit)
  width, height = geometry.node_width, geometry.node_height
  ordered = sorted(nodes, key=layout.forward_order)
  column = {}
  for node in ordered:
    column.setdefault(geometry.at[node][0], len(column))
  parts = []
  for position, node in enumerate(ordered):
    x, y = geometry.at[node]
    head = circuit.head(node)
    label = f"{node.site} channel {node.index}"
    if head is not None:
      label += f", head {head}"
    label += f"; edges in {num_in[node]}, out {num_out[node]}"
    is_read, is_write = node.name in layout.READS, node.name in layout.WRITES
    parts.append(
      _el(
        "g",
        _el("title", label),
        _el(
          "rect",
          x=f"{x - width / 2:.1f}",
          y=f"{y - height / 2:.1f}",
          width=f"{width:g}",
          height=f"{height:g}",
          rx=f"{min(8, height / 2):g}",
        ),
        _text(x, y + 3.5, node.index, text_anchor="middle")
        if height > 12
        else None,
        class_="node",
        role="button",
        aria_pressed="false",
        aria_label=label,
        # One tab stop; the arrow keys go on from there.
        tabindex=0 if position == 0 else -1,
        data_key=node.key,
        data_column=column[x],
        data_channel=node.index if is_read or is_write else None,
        data_role="read" if is_read else "write" if is_write else None,
      )
    )
  return _el("g", parts)
