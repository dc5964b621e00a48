"""The shipped model and its circuits, and circuits by what holds them."""

import numpy as np
import pages
import pytest

import sparse_jax as sj
from sparse_jax import checkpoint, reference
from sparse_jax.model import compact, fingerprint
from sparse_jax.tasks import evaluation


def test_circuits_of_a_directory_by_task(tmp_path):
  for task in ("b", "a"):
    pages.small(task).save(tmp_path / f"of_{task}")
  found = sj.load_circuits(tmp_path)
  assert list(found) == ["a", "b"]
  assert found["a"].num_nodes == 8


def test_a_directory_without_circuits_is_named(tmp_path):
  with pytest.raises(sj.InputError, match=f"{tmp_path} holds no circuits"):
    sj.load_circuits(tmp_path)


def test_the_shipped_circuits_are_meant_by_their_name(tmp_path, monkeypatch):
  monkeypatch.setattr(reference, "CIRCUITS", tmp_path)
  pages.small("a").save(tmp_path / "a")
  assert list(sj.load_circuits("reference")) == ["a"]


@pytest.fixture(scope="module")
def shipped():
  return *sj.load_model("reference"), sj.load_tokenizer("reference")


def test_the_shipped_model_is_small_and_rounded(shipped):
  _, params, _ = shipped
  assert sum(p.stat().st_size for p in reference.MODEL.iterdir()) <= 10_000_000
  kernels = [
    params["layers"][part][name]["kernel"]
    for part, names in {"attn": "c_attn c_proj", "mlp": "c_fc c_proj"}.items()
    for name in names.split()
  ]
  shares = [np.count_nonzero(k) / k.size for k in kernels]
  assert max(shares) <= 1 / 8
  again = compact.rounded(params)
  for name in ("wte", "lm_head"):
    np.testing.assert_array_equal(
      again[name]["embedding"], params[name]["embedding"]
    )
  means = checkpoint.load_means("reference")
  assert all(np.isfinite(mean).all() for mean in means.values())


def test_the_shipped_model_closes_strings(shipped):
  model, params, tokenizer = shipped
  task = sj.tasks.make_task("single_double_quote", tokenizer)
  diffs = evaluation.make_difference_function(model, params)
  found = evaluation.score(diffs, task.pairs("validation", 32, 0))
  assert found.accuracy.value >= 0.95


def test_the_shipped_circuits_are_of_the_shipped_model(shipped):
  model, params, _ = shipped
  own = fingerprint.fingerprint(model, params)
  circuits = sj.load_circuits("reference")
  assert "single_double_quote" in circuits
  assert all(c.model_fingerprint == own for c in circuits.values())
  files = [p for p in reference.CIRCUITS.rglob("*") if p.is_file()]
  assert sum(p.stat().st_size for p in files) <= 5_000_000
