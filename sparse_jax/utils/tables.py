"""Tables: Markdown, aligned columns for a terminal, and HTML."""

import html as html_lib
from collections.abc import Collection, Iterable, Sequence

MISSING = "–"


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
  """Returns a Markdown table; None is shown as a dash."""
  lines = [f"| {' | '.join(_cells(row))} |" for row in (header, *rows)]
  lines.insert(1, f"|{'---|' * len(header)}")
  return "\n".join(lines)


def text(
  header: Sequence[str],
  rows: Iterable[Sequence[object]],
  left: Collection[int] = (0,),
) -> str:
  """Returns aligned columns, two spaces apart; None is shown as a dash.

  The columns `left` are aligned to the left, the others to the right.
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


def html(
  header: Sequence[str],
  rows: Iterable[Sequence[object]],
  caption: str = "",
) -> str:
  """Returns an HTML table; None is shown as a dash, all text is escaped.

  A row's first cell names it. An empty header or caption is left out.
  """
  parts = [f"<caption>{html_lib.escape(caption)}</caption>"] if caption else []
  if header:
    parts += [_html_row("th", "th", header)]
  parts += [_html_row("th", "td", row) for row in rows]
  return f"<table>{''.join(parts)}</table>"


def _html_row(first: str, other: str, row: Sequence[object]) -> str:
  tags = [first] + [other] * (len(row) - 1)
  cells = zip(tags, map(html_lib.escape, _cells(row)), strict=True)
  return f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for tag, cell in cells)}</tr>"


def _cells(row: Sequence[object]) -> list[str]:
  return [MISSING if cell is None else str(cell) for cell in row]
