"""Tables of text: Markdown, and aligned columns for a terminal."""

from collections.abc import Collection, Iterable, Sequence

MISSING = "–"


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Returns a Markdown table; None is shown as a dash."""
  lines = [_cells(header), ["---"] * len(header), *map(_cells, rows)]
  joined = ["| " + " | ".join(line) + " |" for line in lines]
  joined[1] = joined[1].replace(" ", "")
  return "\n".join(joined)


def text(
  header: Sequence[str],
  rows: Iterable[Sequence[object]],
  left: Collection[int] = (0,),
) -> str:
  """Returns aligned columns, two spaces apart; None is shown as a dash.

  Args:
    header: what stands above each column.
    rows: each as long as the header.
    left: columns aligned to the left; the others are to the right, as numbers
      are.
  """
  lines = [_cells(header), *map(_cells, rows)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if i in left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in lines
  )


def _cells(row: Sequence[object]) -> list[str]:
  return [MISSING if cell is None else str(cell) for cell in row]
