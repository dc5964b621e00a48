"""HTML that cannot be broken from inside: every string is escaped once.

`el` builds elements; whatever is not already `Markup` is text and gets escaped.
Characters that could change how the page reads (controls, bidi overrides, lone
surrogates, line separators) are spelled out as `U+202E`.
"""

import html
import itertools
import math
import numbers
import unicodedata

# What a missing, NaN or infinite figure looks like.
MISSING = "–"
_VOID = frozenset({"br", "col", "img", "link", "meta"})
_WHITESPACE = {" ": "·", "\n": "⏎", "\t": "→", "\r": "␍"}
_LONGEST_TOKEN = 200


class Markup(str):
  """A string that is already HTML."""

  __slots__ = ()


def el(tag: str, *children, **attributes) -> Markup:
  """Returns an element.

  Args:
    tag: element name.
    *children: `Markup`, text (escaped), iterables of these, or None (left out).
    **attributes: `class_` is `class`, `data_key` is `data-key`; None and False
      leave an attribute out, True writes it without a value.
  """
  parts = ["<", tag]
  for name, value in attributes.items():
    if value is None or value is False:
      continue
    parts.append(" " + name.rstrip("_").replace("_", "-"))
    if value is not True:
      parts.append(f'="{html.escape(spell_out(str(value)))}"')
  parts.append(">")
  if tag not in _VOID:
    parts += [join(children), f"</{tag}>"]
  return Markup("".join(parts))


def join(children) -> Markup:
  """Returns the concatenation of children as `el` takes them."""
  parts = []
  for child in children:
    if isinstance(child, Markup):
      parts.append(child)
    elif isinstance(child, (str, int, float)):
      parts.append(html.escape(spell_out(str(child))))
    elif child is not None:
      parts.append(join(child))
  return Markup("".join(parts))


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


def token(text: str, class_: str = "") -> Markup:
  """Returns a token in a box, with its whitespace made visible.

  Args:
    text: any string at all, as a byte-level tokenizer decodes one token.
    class_: further classes of the box.
  """
  shown = text[:_LONGEST_TOKEN]
  parts = []
  for kind, run in itertools.groupby(shown, _kind):
    chars = "".join(run)
    if kind == "space":
      spelled = "".join(_WHITESPACE[char] for char in chars)
      parts.append(el("span", spelled, class_="ws"))
    elif kind == "unsafe":
      parts += [el("span", spell_out(char), class_="esc") for char in chars]
    else:
      # A combining mark needs something to stand on.
      lead = "◌" if unicodedata.category(chars[0])[0] == "M" else ""
      parts.append(lead + chars)
  if not text:
    parts.append(el("span", "∅", class_="ws", title="empty token"))
  if len(text) > len(shown):
    more = f"… {len(text) - len(shown)} more"
    parts.append(el("span", more, class_="esc"))
  # <bdi> keeps right-to-left letters from reordering their neighbours.
  return el("bdi", parts, class_=f"tok {class_}".strip())


def _kind(char: str) -> str:
  if char in _WHITESPACE:
    return "space"
  return "unsafe" if _is_unsafe(char) else "text"


def tokens(texts, marked=frozenset()) -> Markup:
  """Returns a run of token boxes; a line break follows each newline token.

  Args:
    texts: the tokens.
    marked: positions to set off.
  """
  parts = []
  for position, text in enumerate(texts):
    parts.append(token(text, "mark" if position in marked else ""))
    if text.endswith("\n") and position + 1 < len(texts):
      parts.append(el("br"))
  return el("div", parts, class_="toks")


def is_number(value) -> bool:
  """Whether `value` is a finite number (a bool is not)."""
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:  # A whole number too large for a float.
    return False


def number(value, digits: int = 3) -> str:
  """Returns a figure with `digits` significant digits; `–` if there is none."""
  if isinstance(value, bool):
    return "yes" if value else "no"
  if not is_number(value):
    return MISSING
  if value == int(value) and abs(value) < 1e15:
    return count(value)
  if 1e-3 <= abs(value) < 1e6:
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return minus(f"{value:,.{decimals}f}")
  return minus(f"{value:.{digits - 1}e}")


def count(value) -> str:
  """Returns a whole number with commas between thousands."""
  return minus(f"{int(value):,}") if is_number(value) else MISSING


def percent(value) -> str:
  """Returns a share of 1 as a percentage with one decimal."""
  return minus(f"{100 * value:.1f}%") if is_number(value) else MISSING


def minus(text: str) -> str:
  """Returns a number's text with a true minus sign."""
  return text.replace("-", "−")
