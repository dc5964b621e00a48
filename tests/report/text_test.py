"""Tokens and numbers as text that cannot break a page."""

import math

import hypothesis
import pages
from absl.testing import absltest, parameterized

from sparse_jax.report import text as text_lib


class TokenTest(parameterized.TestCase):
  @hypothesis.given(pages.HOSTILE_TEXT)
  @hypothesis.settings(max_examples=200, deadline=None)
  def test_token_shows_every_character_and_nothing_invisible(self, text):
    (_, shown), *_ = pages.Page(text_lib.token(text)).find("bdi")
    spaces = {" ": "·", "\n": "⏎", "\t": "→", "\r": "␍"}
    want = "".join(
      spaces.get(c)
      or (c if not text_lib.spell_out(c) != c else f"U+{ord(c):04X}")
      for c in text
    )
    self.assertEqual(shown.replace("◌", ""), (want or "∅").replace("◌", ""))
    self.assertTrue(all(c.isprintable() for c in shown))

  @parameterized.parameters(
    ("\u202e", "U+202E"),
    ("\u2028", "U+2028"),
    ("\x00", "U+0000"),
    ("\ud800", "U+D800"),
    ("\u00a0", "U+00A0"),
    ("\u200b", "U+200B"),
    ("é", "é"),
    ("漢", "漢"),
    ("\ufffd", "\ufffd"),
  )
  def test_spells_out(self, char, want):
    self.assertEqual(text_lib.spell_out(char), want)


class NumberTest(parameterized.TestCase):
  @parameterized.parameters(
    (0.12345, "0.123"),
    (-0.5, "−0.500"),
    (12.34, "12.3"),
    (1234.5, "1,234"),
    (3, "3"),
    (1234567, "1,234,567"),
    (2.0, "2"),
    (0.0, "0"),
    (1.5e-7, "1.50e−07"),
    (True, "yes"),
    (math.nan, "–"),
    (-math.inf, "–"),
    (None, "–"),
    ("1", "–"),
    (10**400, "–"),
  )
  def test_number(self, value, want):
    self.assertEqual(text_lib.number(value), want)


if __name__ == "__main__":
  absltest.main()
