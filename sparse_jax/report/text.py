"""Text that cannot break the page: tokens, numbers, and what must be spelled.

Templates escape every value. Before that, `spell_out` writes the characters
that could change how the page reads (controls, bidi overrides, lone surrogates,
line separators) as `U+202E`.
"""

import itertools
import math
import numbers
import unicodedata
from collections.abc import Collection, Sequence

import markupsafe
from markupsafe import Markup

# What a missing, NaN or infinite metric looks like.
MISSING = "–"
_WHITESPACE = {" ": "·", "\n": "⏎", "\t": "→", "\r": "␍"}
_LONGEST_TOKEN = 200


def finalize(value):
  """Returns a template's value ready to be escaped; None is left out."""
  if isinstance(value, str) and not isinstance(value, Markup):
    return spell_out(value)
  return "" if value is None else value


def _is_unsafe(char: str) -> bool:
  """Whether a character is invisible, unassigned or moves its neighbours."""
  if char in " \n\t":
    return False
  category = unicodedata.category(char)
  return category[0] == "C" or category in ("Zl", "Zp", "Zs")


def spell_out(text: str) -> str:
  """Returns text with unsafe characters written as their code points."""
  if text.isascii() and text.isprintable():
    return text
  return "".join(
    f"U+{ord(char):04X}" if _is_unsafe(char) else char for char in text
  )


def pieces(text: str) -> list[tuple[str, str]]:
  """Returns what a token, any string at all, looks like: (kind, text).

  Kinds are "ws" for whitespace, made visible, "esc" for what is spelled out,
  "empty" for the mark of an empty token, and "" for text as it stands.
  """
  found = []
  for kind, run in itertools.groupby(text[:_LONGEST_TOKEN], _kind):
    chars = "".join(run)
    if kind == "ws":
      found.append((kind, "".join(_WHITESPACE[char] for char in chars)))
    elif kind == "esc":
      found += [(kind, spell_out(char)) for char in chars]
    else:
      # A combining mark needs something to stand on.
      lead = "◌" if unicodedata.category(chars[0])[0] == "M" else ""
      found.append((kind, lead + chars))
  if not text:
    found.append(("empty", "∅"))
  if len(text) > _LONGEST_TOKEN:
    found.append(("esc", f"… {len(text) - _LONGEST_TOKEN} more"))
  return found


def token(text: str, class_: str = "") -> Markup:
  """Returns a token, any string at all, in a box, its whitespace visible."""
  # <bdi> keeps right-to-left letters from reordering their neighbours.
  return Markup('<bdi class="{}">{}</bdi>').format(
    f"tok {class_}".strip(), Markup().join(map(_piece, pieces(text)))
  )


def _piece(piece: tuple[str, str]) -> Markup:
  kind, text = piece
  if not kind:
    return markupsafe.escape(text)
  if kind == "empty":
    return Markup('<span class="ws" title="empty token">{}</span>').format(text)
  return Markup('<span class="{}">{}</span>').format(kind, text)


def _kind(char: str) -> str:
  if char in _WHITESPACE:
    return "ws"
  return "esc" if _is_unsafe(char) else ""


def tokens(texts: Sequence[str], marked: Collection[int] = ()) -> Markup:
  """Returns token boxes: `marked` ones set off, newlines break lines."""
  pieces = []
  for position, text in enumerate(texts):
    pieces.append(token(text, "mark" if position in marked else ""))
    if text.endswith("\n") and position + 1 < len(texts):
      pieces.append(Markup("<br>"))
  return Markup('<div class="toks">{}</div>').format(Markup().join(pieces))


def is_number(value) -> bool:
  """Whether `value` is a finite number (a bool is not)."""
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:  # A whole number too large for a float.
    return False


def number(value, digits: int = 3) -> str:
  """Returns a number with `digits` significant digits; `–` if there is none."""
  if isinstance(value, bool):
    return "yes" if value else "no"
  if not is_number(value):
    return MISSING
  if value == int(value) and abs(value) < 1e15:
    return count(value)
  if 1e-3 <= abs(value) < 1e6:
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return _minus(f"{value:,.{decimals}f}")
  return _minus(f"{value:.{digits - 1}e}")


def count(value) -> str:
  """Returns a whole number with commas between thousands."""
  return _minus(f"{int(value):,}") if is_number(value) else MISSING


def percent(value) -> str:
  """Returns a share of 1 as a percentage with one decimal."""
  return _minus(f"{100 * value:.1f}%") if is_number(value) else MISSING


def plural(value: int, noun: str) -> str:
  """Returns a count and its noun."""
  return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def _minus(text: str) -> str:
  return text.replace("-", "−")
