"""Tables by hand."""

import pytest

from sparse_jax.utils import tables

_ROWS = [("a", 1), ("long name", None)]


def test_markdown_by_hand():
  assert tables.markdown(("task", "edges"), _ROWS) == (
    "| task | edges |\n|---|---|\n| a | 1 |\n| long name | – |"
  )


def test_markdown_of_no_rows_is_a_header():
  assert tables.markdown(("a b",), []) == "| a b |\n|---|"


def test_text_by_hand():
  want = "task       edges\na              1\nlong name      –"
  assert tables.text(("task", "edges"), _ROWS) == want


def test_text_left_columns_have_no_trailing_space():
  want = "task       edges\na          1\nlong name  –"
  assert tables.text(("task", "edges"), _ROWS, left=(0, 1)) == want


def test_html_by_hand():
  want = (
    "<table><caption>x &lt; y</caption><tr><th>task</th><th>edges</th></tr>"
    "<tr><th>a</th><td>1</td></tr><tr><th>long name</th><td>–</td></tr></table>"
  )
  assert tables.html(("task", "edges"), _ROWS, "x < y") == want


def test_html_escapes_every_cell():
  assert tables.html((), [("<b>", "'\"")]) == (
    "<table><tr><th>&lt;b&gt;</th><td>&#x27;&quot;</td></tr></table>"
  )


def test_a_row_of_another_length_is_an_error():
  with pytest.raises(ValueError, match="shorter"):
    tables.text(("a", "b"), [("c",)])
