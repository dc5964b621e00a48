"""What notebooks show: pages in cells, tables, curves."""

import base64
import html
import re

import helpers
import numpy as np
import pages
import pytest
import small_circuits

import sparse_jax as sj
from sparse_jax import report
from sparse_jax.faithfulness import criteria
from sparse_jax.report import notebook

_PNG = b"\x89PNG"
_HOSTILE = '</iframe><script>window.pwned = 1</script>"'


def test_a_circuit_shows_its_page_in_a_frame_that_reaches_nothing():
  circuit = pages.small(task=_HOSTILE)
  shown = circuit.show(height=300)._repr_mimebundle_()
  frame = shown["text/html"]
  (tag,) = re.findall(r"<iframe[^>]*>", frame)
  assert 'sandbox="allow-scripts"' in tag and "height: 300px" in tag
  assert frame == f"{tag}</iframe>"
  (source,) = re.findall(r'srcdoc="([^"]*)"', tag)
  page = report.render([{"core": circuit}], title=_HOSTILE)
  # Links within the page stay there.
  base = '<head><base href="about:srcdoc">'
  assert html.unescape(source) == page.replace("<head>", base, 1)
  assert base64.b64decode(shown["image/png"]).startswith(_PNG)
  assert "8 nodes, 5 edges" in shown["text/plain"]


def test_a_core_and_its_robust_circuit_share_a_page():
  both = pages.nested()
  found = both["core"].show(both["robust"])
  assert found.content == report.render([both], title=both["core"].task)
  assert found.content != both["core"].show().content


def test_an_empty_circuit_has_no_drawing():
  empty = pages.small(nodes=[], edges=[], metrics={})
  assert "image/png" not in empty.show()._repr_mimebundle_()


def test_a_model_is_a_small_table():
  model, *_ = helpers.tiny_model()
  table = model._repr_html_()
  assert "<tr><th>heads</th><td>4 of 4 channels</td></tr>" in table
  assert "25.0%" in table


def test_evidence_is_a_table_and_lines():
  measured = pages.faithfulness_metrics() | {"target_loss": 1e-3}
  metrics = {"faithfulness": measured}
  circuit = pages.small(metrics=metrics, task="<b>")
  found = sj.evidence(circuit)
  want = criteria.check_criteria(metrics["faithfulness"])
  assert found.criteria == tuple(want)
  assert not found.holds
  assert "FAILS  sufficient: test loss" in repr(found)
  held = sum(c.holds for c in want)
  assert f"<b>: {held} of {len(want)} criteria hold" in repr(found)
  assert len(repr(found).splitlines()) == 1 + len(want)
  table = found._repr_html_()
  assert "&lt;b&gt;" in table and table.count("<tr>") == 1 + len(want)


def test_without_evidence_it_says_what_measures_it():
  with pytest.raises(sj.InputError, match=r"no evidence.*experiments\.verify"):
    sj.evidence(pages.small())


def test_parameters_are_drawn_and_listed():
  pytest.importorskip("treescope", reason="needs treescope")
  _, params, _ = helpers.tiny_model()
  half = params["logit_bias"].at[:20].set(0)
  shown = notebook.show_params({"a": {"b": half}})
  assert repr(shown) == "a/b: (40,), 50.0% not zero"
  assert "treescope" in shown._repr_html_()
  circuit, own = small_circuits.make()
  of_circuit = notebook.show_params(own, circuit)
  weights = of_circuit.params.values()
  assert sum(map(np.count_nonzero, weights)) == circuit.num_edges > 0
  assert "layers/mlp/c_fc/kernel: (2, 16, 32)" in repr(of_circuit)


def test_a_curve_outside_a_notebook_prints_its_evaluations(capsys):
  curve = notebook.TrainingCurve()
  assert "no steps" in repr(curve)
  row = {"train_loss": 5.0, "density": 0.5}
  curve({"step": 10, **row, "eval_loss": 4.5})
  curve({"step": 11, **row})  # Too soon after the last one to be drawn.
  curve({"step": 20, **row, "eval_loss": 4.25})
  first, last = capsys.readouterr().out.splitlines()
  assert first == (
    "step 10: held-out loss 4.50 nats a token, 50.0% of block weights not zero"
  )
  assert last.startswith("step 20: held-out loss 4.25")
  assert curve._repr_png_().startswith(_PNG)
  assert curve._repr_png_() == curve._repr_png_()
