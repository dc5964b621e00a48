"""Which circuits of a model share more machinery than chance would have it.

By chance, a circuit is a draw without replacement of as many nodes of every
site and layer, as random circuits are elsewhere (`sufficiency.random_mask`):
the number that two share is a sum of hypergeometric ones. Edges likewise, of
every kind and layer. p-values of all pairs are corrected together (Benjamini
and Hochberg 1995).
"""

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from sparse_jax import circuit as circuit_lib
from sparse_jax import sites
from sparse_jax.model import edges as edges_lib

# A pair shares machinery if its corrected p-value is at most this.
LEVEL = 0.05

# A stratum, such as a site and layer, and which element of it.
_Element = tuple[Hashable, Hashable]


class Shared(NamedTuple):
  """What two circuits share, against chance."""

  first: str
  second: str
  count: int
  expected: float  # By chance.
  p: float  # Of at least as many, by chance.
  p_corrected: float  # For all pairs of the kind.


class Group(NamedTuple):
  """Tasks on the same machinery: joined by pairs that share enough nodes."""

  names: tuple[str, ...]
  nodes: tuple[str, ...]  # In more than one of them, in most first.


def nodes(circuit: circuit_lib.Circuit) -> set[_Element]:
  """Returns a circuit's nodes, by site and layer."""
  return {(node["site"], node["index"]) for node in circuit.nodes}


def num_nodes(circuit: circuit_lib.Circuit) -> dict[Hashable, int]:
  """Returns how many nodes a circuit could have, by site and layer."""
  config = circuit.model_config
  return {
    sites.site_id(name, row): config.width(name)
    for name in circuit.node_mask
    for row in range(sites.num_rows(name, config.n_layer))
  }


def edges(circuit: circuit_lib.Circuit) -> set[_Element]:
  """Returns a circuit's edges, by kind and layer."""
  return {
    (
      (edge["kind"], edges_lib.layer_of(edge)),
      (edge["from"]["index"], edge["to"]["index"]),
    )
    for edge in circuit.edges
  }


def num_edges(params) -> dict[Hashable, int]:
  """Returns how many weights are not zero, by kind of edge and layer."""
  counts = {}
  for kind in sites.EDGE_KINDS:
    for layer, weight in enumerate(edges_lib.edge_weights(kind, params, {})):
      counts[kind.name, layer] = int(np.count_nonzero(weight))
  return counts


def chance(
  first: Mapping[Hashable, int],
  second: Mapping[Hashable, int],
  total: Mapping[Hashable, int],
) -> np.ndarray:
  """Returns the probability of 0, 1, … shared elements, by chance.

  All are counts by stratum: of both draws, and of what is drawn from.
  """
  shared = np.ones(1)
  for stratum in first.keys() & second.keys():
    size = total[stratum], first[stratum], second[stratum]
    most = min(size[1:])
    drawn = scipy.stats.hypergeom(*size).pmf(np.arange(most + 1))
    shared = np.convolve(shared, drawn)
  return shared


def compare(
  elements: Mapping[Hashable, set[_Element]],
  total: Mapping[Hashable, int],
  pairs: Iterable[tuple[Hashable, Hashable]] | None = None,
) -> list[Shared]:
  """Returns what two circuits share, of every two or of these pairs, by name.

  `total` is how many elements the model has, by stratum.
  """
  counts = {
    name: Counter(stratum for stratum, _ in of) for name, of in elements.items()
  }
  found = []
  for a, b in itertools.combinations(elements, 2) if pairs is None else pairs:
    p_of = chance(counts[a], counts[b], total)
    count = len(elements[a] & elements[b])
    expected = float(p_of @ np.arange(len(p_of)))
    # Rounding may take a sum over all beyond 1.
    found.append((a, b, count, expected, min(1.0, float(p_of[count:].sum()))))
  if not found:
    return []
  corrected = scipy.stats.false_discovery_control([p for *_, p in found])
  return [
    Shared(*each, float(p)) for each, p in zip(found, corrected, strict=True)
  ]


def groups(
  shared: Sequence[Shared], elements: Mapping[str, set[_Element]]
) -> list[Group]:
  """Returns the groups of at least two circuits, the largest first."""
  of = {name: {name} for name in elements}
  for pair in shared:
    if pair.p_corrected <= LEVEL:
      joined = of[pair.first] | of[pair.second]
      of |= dict.fromkeys(joined, joined)
  sets = {frozenset(names) for names in of.values() if len(names) > 1}
  found = []
  for names in sets:
    uses = Counter(e for name in names for e in elements[name])
    common = sorted((-n, e) for e, n in uses.items() if n > 1)
    texts = tuple(f"{site}:{index}" for _, (site, index) in common)
    found.append(Group(tuple(n for n in elements if n in names), texts))
  return sorted(found, key=lambda group: (-len(group.names), group.names))


def to_dict(
  shared_nodes: Sequence[Shared],
  shared_edges: Sequence[Shared],
  found: Sequence[Group],
) -> dict[str, Any]:
  """Returns plain values, fit for JSON."""
  return {
    "level": LEVEL,
    "nodes": [pair._asdict() for pair in shared_nodes],
    "edges": [pair._asdict() for pair in shared_edges],
    "groups": [group._asdict() for group in found],
  }
