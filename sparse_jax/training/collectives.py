"""What the devices of a compiled program send to each other, from its HLO."""

import collections
import re
from collections.abc import Iterator
from typing import NamedTuple

import jax

_KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# A computation begins in the first column, its instructions are indented.
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(rf"= (.+?) ({'|'.join(_KINDS)})(?:-start)?\(")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation)="
  r"%?([\w.\-]+)|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b(pred|[a-z]+?(\d+)\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
  """One instruction.

  Attributes:
    kind: such as "all-reduce"
    shapes: its results', on one device
    size: their bytes
    count: how often a run of the program executes it, one pass of every loop of
      unknown length counted
    is_in_search: whether it stands in such a loop: those of a top-k
  """

  kind: str
  shapes: tuple[tuple[int, ...], ...]
  size: int
  count: int
  is_in_search: bool


def of_program(compiled: jax.stages.Compiled) -> list[Collective]:
  """Returns every collective of a program, as often as it is executed."""
  computations, entry = _computations(compiled.as_text())
  return list(_walk(computations, entry, 1, False))


def total(found: list[Collective]) -> dict[str, tuple[int, int]]:
  """Returns (executions, bytes a device) by kind."""
  sums = collections.defaultdict(lambda: (0, 0))
  for one in found:
    count, size = sums[one.kind]
    sums[one.kind] = count + one.count, size + one.count * one.size
  return dict(sums)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  """Returns the instructions of every computation, and the entry's name."""
  lines_of: dict[str, list[str]] = {}
  entry = name = ""
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      name = match[1]
      lines_of[name] = []
      if line.startswith("ENTRY"):
        entry = name
    elif name and line.startswith(" "):
      lines_of[name].append(line)
  return lines_of, entry


def _walk(lines_of, name, times, is_in_search) -> Iterator[Collective]:
  for line in lines_of[name]:
    if match := _COLLECTIVE.search(line):
      shapes, size = _arrays(match[1])
      yield Collective(match[2], shapes, size, times, is_in_search)
      continue  # What it applies is an addition.
    trips, is_search = 1, is_in_search
    if " while(" in line:
      known = _TRIP_COUNT.search(line)
      trips, is_search = (int(known[1]), is_search) if known else (1, True)
    for one, several in _CALLED.findall(line):
      for called in [one] if one else re.findall(r"[\w.\-]+", several):
        yield from _walk(lines_of, called, times * trips, is_search)


def _arrays(text: str) -> tuple[tuple[tuple[int, ...], ...], int]:
  """Returns the shapes of a type and the bytes that they take together."""
  shapes, size = [], 0
  for kind, bits, dimensions in _ARRAY.findall(text):
    shape = tuple(int(n) for n in dimensions.split(",") if n)
    count = 1
    for n in shape:
      count *= n
    shapes.append(shape)
    size += count * (1 if kind == "pred" else max(1, int(bits) // 8))
  return tuple(shapes), size
