"""Circuits by the name of what holds them."""

import pages
import pytest

import sparse_jax as sj
from sparse_jax import reference


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
