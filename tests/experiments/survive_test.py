"""What the survival runs compare and count; loop_test.py kills in earnest."""

import numpy as np
import optuna
import pytest

from experiments.survive import searches, training
from sparse_jax.pruning import search


def trial(state, seed=0, **params):
  values = {name: space.low for name, space in search.SPACE.items()} | params
  return optuna.trial.create_trial(
    state=state,
    value=1.0 if state == searches._STATES.COMPLETE else None,
    params=values,
    distributions=dict(search.SPACE),
    user_attrs={"seed": seed},
  )


DONE, FAIL, RUNNING = (
  getattr(searches._STATES, name) for name in ("COMPLETE", "FAIL", "RUNNING")
)


@pytest.mark.parametrize(
  "trials, faults",
  [
    ([trial(DONE), trial(DONE, 1)], []),
    ([trial(DONE), trial(FAIL, 1), trial(DONE, 1)], []),
    ([trial(DONE)], ["core: 1 runs finished of 2"]),
    ([trial(DONE), trial(DONE)], ["core: 1 runs finished twice"]),
    ([trial(DONE), trial(DONE, 1), trial(FAIL, 2)], ["core: run 2 was lost"]),
    ([trial(DONE), trial(DONE, 1), trial(RUNNING)], ["core: run 2 was lost"]),
  ],
)
def test_a_study_tells_which_runs_were_lost_or_made_twice(trials, faults):
  study = optuna.create_study()
  study.add_trials(trials)
  assert searches._faults(study.trials, 2, "core") == faults


def test_trees_are_compared_bit_for_bit():
  tree = {"a": np.float32([0.0, np.nan]), "b": [{"x": 1, "y": None}]}
  same = {"a": tree["a"].copy(), "b": [{"x": 1, "y": None}]}
  assert training._equal_bits(tree, same)
  for other in (
    {**tree, "a": np.float32([-0.0, np.nan])},
    {**tree, "b": [{"x": 2, "y": None}]},
    {"a": tree["a"]},
  ):
    assert not training._equal_bits(tree, other)


def test_a_lab_writes_the_same_text_and_config(tmp_path):
  one, two = (training.Lab(tmp_path / name, 40) for name in ("one", "two"))
  assert (one.root / "text.txt").read_bytes() == (
    two.root / "text.txt"
  ).read_bytes()
  names = {}
  exec(one.config.read_text(), names)
  config = names["get_config"]()
  assert config.train.steps == 40
  assert config.data.source == str(one.root / "text.txt")
