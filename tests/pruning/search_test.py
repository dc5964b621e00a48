"""The search: proposals, studies that resume, batches of runs."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import tempfile
from unittest import mock

import chex
import helpers
import jax
import numpy as np
import optuna
from absl.testing import absltest

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import tasks as tasks_lib
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import transformer
from sparse_jax.pruning import batched, masks, search, thresholding
from sparse_jax.tasks import evaluation
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors, host

_CONFIG = config_lib.PruneConfig(
  steps=4,
  batch_size=4,
  num_runs=4,
  num_robust_runs=2,
  num_seeds=1,
  round_size=2,
  k_coefs=(1e-3, 1e-2),
  num_train=16,
  num_validation=8,
  num_test=8,
  edge_steps=3,
  curve_targets=(0.3, 5.0),
  target_loss=5.0,
  robust_k_coefs=(1e-4, 1e-3),
  outside_steps=3,
)
# One circuit, as the paper's.
_PLAIN = dataclasses.replace(_CONFIG, ablation_outside="plain")


def make_tokenizer():
  text = "\n".join(
    f"x = ['{w}', \"{w}\", ({w}, 1)]\ndef {w}():\n  return {w}"
    for w in ("alpha", "beta", "gamma", "delta")
  )
  return tokenizer_lib.Tokenizer.train([text] * 4, 300)


class RunsTest(absltest.TestCase):
  def _train(self, rows, free=None, allowed=None, outside="plain", **fields):
    self.model, self.params, _ = helpers.tiny_model()
    config = dataclasses.replace(
      _CONFIG, steps=6, learning_rate=0.2, ablation_outside=outside
    )
    allowed = allowed or helpers.random_masks(self.model, 1.0)
    values = {"k_coef": [1e-3, 3e-2, 1e-2], "seed": [0, 1, 2]} | fields
    runs = masks.Run(
      masks.Hyperparameters.from_config(config, **values),
      batched.stack([helpers.random_means(self.model)] * 3),
      batched.stack([helpers.random_sequences(12, seed=i) for i in range(3)]),
      batched.stack([allowed] * 3),
    )
    runs = jax.tree.map(lambda x: x[np.array(rows)], runs)
    before = host.free_memory
    if free is not None:
      host.free_memory = lambda: free
    try:
      return batched.train_masks(
        self.model, self.params, config, runs, 7, "test"
      )
    finally:
      host.free_memory = before

  def test_a_run_does_not_depend_on_its_neighbours(self):
    for outside in config_lib.OUTSIDE:
      together = self._train([0, 1, 2], outside=outside)
      alone = self._train([1], outside=outside)
      chex.assert_trees_all_close(
        batched.take(together, 1).tau, batched.take(alone, 0).tau, atol=1e-4
      )

  def test_with_little_memory_fewer_run_at_once_with_the_same_result(self):
    chex.assert_trees_all_close(
      self._train([0, 1, 2], free=1).tau,
      self._train([0, 1, 2]).tau,
      atol=1e-4,
    )

  def test_nodes_that_are_not_allowed_stay_closed(self):
    allowed = helpers.random_masks(helpers.tiny_model()[0], 0.5)
    states = self._train(
      [0], allowed=allowed, k_coef=[0.0] * 3, learning_rate=1e-3
    )
    for name, tau in states.tau.items():
      self.assertTrue(np.all(tau[0][~allowed[name]] < 0))
      self.assertTrue(np.all(tau[0][allowed[name]] >= 0))

  def test_weights_stay(self):
    before = jax.tree.map(np.array, helpers.tiny_model()[1])
    self._train([0, 1, 2])
    chex.assert_trees_all_equal(self.params, before)

  def test_runs_of_one_shape_share_a_program(self):
    self._train([0, 1, 2])
    compiled = batched._compiled.cache_info().misses
    self._train([2, 1, 0], learning_rate=0.1)
    self.assertEqual(batched._compiled.cache_info().misses, compiled)


class ObjectiveTest(absltest.TestCase):
  def test_hits_by_edges_then_misses_by_distance(self):
    mask = lambda edges, share: thresholding.Candidate(
      {}, 1, edges, None, 0.1, None, share, np.arange(1)
    )
    cases = [mask(0, 0.7), mask(9, 0.1), mask(10**9, 0.7)]
    cases += [mask(1, 1.1), mask(1, 4.0)]
    values = [search.objective(c) for c in cases]
    self.assertEqual(values, sorted(values))
    self.assertLess(values[3], values[4])

  def test_small_robust_masks_are_cut_although_they_miss(self):
    trial = lambda edges, meets: optuna.trial.create_trial(
      value=0.0, user_attrs={"num_edges": edges, "meets_target": meets}
    )
    first, small, large = trial(90, False), trial(50, False), trial(900, False)
    for others in ([small], [large]):
      worth = search._worth_cutting([first, *others], _CONFIG.robust)
      self.assertLen(worth, 2 if others == [small] else 1)
    # Under plain ablation a cut goes along the whole order and still misses.
    self.assertLen(search._worth_cutting([first, small], _PLAIN), 1)


class FindCircuitsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = make_tokenizer()
    config = config_lib.ModelConfig(
      n_layer=1,
      d_model=16,
      d_head=4,
      d_mlp=32,
      vocab_size=cls.tokenizer.vocab_size,
      context_length=64,
    )
    cls.model = transformer.Model(
      config, config_lib.SparsityConfig(min_alive=0)
    )
    cls.params = jax.jit(cls.model.init)(jax.random.key(0))
    cls.means = helpers.random_means(cls.model)
    cls.task = tasks_lib.make_task("single_double_quote", cls.tokenizer)

  def find(self, workdir, config=_PLAIN, **kwargs):
    return self.find_both(workdir, config, **kwargs).core

  def find_both(self, workdir, config=_CONFIG, **kwargs):
    task = kwargs.pop("task", self.task)
    return search.find_circuits(
      self.model,
      kwargs.pop("params", self.params),
      [task],
      config,
      self.means,
      0,
      storage=workdir and workdir / "search.journal",
      **kwargs,
    )[task.name]

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )

  def own_task(self, word, **counts):
    """Returns a user's task named "own", of so many pairs by split."""
    lines = [
      {
        "prompt": f"x = ['{word}{split}{i}",
        "answer": "'",
        "counter_prompt": f'x = ["{word}{split}{i}',
        "counter_answer": '"',
        "split": split,
      }
      for split, count in (
        {"train": 16, "validation": 8, "test": 8} | counts
      ).items()
      for i in range(count)
    ]
    file = self.workdir / word / "own.jsonl"
    file.parent.mkdir()
    file.write_text("\n".join(map(json.dumps, lines)))
    return tasks_lib.make_task(str(file), self.tokenizer)

  def study(self, stage="core"):
    storage = search.open_storage(self.workdir / "search.journal")
    name = f"{self.task.name}/{stage}"
    return optuna.load_study(storage=storage, study_name=name)

  def test_it_finds_resumes_and_repeats_nothing(self):
    short = dataclasses.replace(_PLAIN, num_runs=2, num_seeds=0)
    self.find(self.workdir, short)
    first = self.study().trials
    self.assertEqual([t.params["k_coef"] for t in first], [1e-3, 1e-2])
    circuit = self.find(self.workdir)
    trials = self.study().trials
    self.assertLen(trials, 4)
    self.assertEqual(
      [t.datetime_complete for t in trials[:2]],
      [t.datetime_complete for t in first],
    )
    # The last run repeats the best setting with another seed.
    seeds = [t.user_attrs["seed"] for t in trials]
    self.assertEqual(seeds[:3], [0, 0, 0])
    self.assertNotIn(seeds[3], seeds[:3])
    settings = [tuple(t.params.values()) for t in trials]
    self.assertIn(settings[3], settings[:3])
    self.assertLen(circuit.details["runs"], 4)
    self.assertEqual(
      circuit.details["identity"],
      search.identity(self.model, self.params, self.task, _PLAIN, 0),
    )
    self.assertTrue(circuit.metrics["meets_target"])
    self.assertEqual(circuit.metrics["num_nodes"], circuit.num_nodes)
    self.assertLessEqual(
      circuit.metrics["num_essential_edges"], circuit.metrics["num_edges"]
    )
    again = self.find(self.workdir)
    self.assertEqual(again.metrics, circuit.metrics)
    self.assertLen(self.study().trials, 4)

  def test_a_coefficient_that_stands_again_gets_the_next_seed(self):
    config = dataclasses.replace(_CONFIG, k_coefs=(1e-3, 1e-2, 1e-3, 1e-3))
    study = search.open_study(None, "name", {}, config, 5)
    trials = search.propose(study, config, 5, 4)
    self.assertEqual(
      [(t.params["k_coef"], t.user_attrs["seed"]) for t in trials],
      [(1e-3, 5), (1e-2, 5), (1e-3, 6), (1e-3, 7)],
    )

  def test_a_trial_lost_with_its_process_is_run_again(self):
    short = dataclasses.replace(_PLAIN, num_runs=2, num_seeds=0)
    self.find(self.workdir, short)
    lost = self.study().ask(fixed_distributions=dict(search.SPACE))
    lost.set_user_attr("seed", 0)
    owner = search._owner().rpartition(":")[0] + ":999999999"
    lost.set_user_attr("owner", owner)
    self.find(self.workdir, dataclasses.replace(short, num_runs=3))
    done = [
      t
      for t in self.study().trials
      if t.state == optuna.trial.TrialState.COMPLETE
    ]
    self.assertLen(done, 3)
    self.assertEqual(done[-1].params, lost.params)

  def open_study(self):
    storage = search.open_storage(self.workdir / "search.journal")
    return search.open_study(storage, "name", {}, _PLAIN, 5)

  def test_whoever_dies_while_queueing_or_asking_loses_no_run(self):
    wanted = [(1e-3, 5), (1e-2, 5)]
    self.enterContext(mock.patch.object(search, "_SIGNING_SECONDS", 0.0))
    # Only the first of the two coefficients had been queued.
    storage = search.open_storage(self.workdir / "search.journal")
    study = optuna.create_study(storage=storage, study_name="name")
    study.set_user_attr("identity", {})
    first = search.default_hyperparameters(_PLAIN) | {"k_coef": 1e-3}
    search.enqueue(study, first, 5)
    # One was asked for by a process that died before it could sign.
    self.open_study().ask(fixed_distributions=dict(search.SPACE))
    # Another was queued again, and not yet taken from the process that died.
    trial = self.open_study().ask(fixed_distributions=dict(search.SPACE))
    trial.set_user_attr("owner", search._owner(os.getppid()) + "0")
    search.enqueue(study, trial.params, 5, trial.number)
    study = self.open_study()
    self.open_study()
    asked = search.propose(study, _PLAIN, 5, 2)
    self.assertCountEqual(
      [(t.params["k_coef"], t.user_attrs["seed"]) for t in asked], wanted
    )
    states = [t.state.name for t in study.trials]
    self.assertEqual(states.count("RUNNING"), 2)
    self.assertNotIn("WAITING", states)

  def test_half_a_line_of_a_journal_is_cut_off(self):
    search.propose(self.open_study(), _PLAIN, 5, 1)
    path = self.workdir / "search.journal"
    whole = path.read_bytes()
    for torn in (b'{"op_code":4,"study', whole[:-1].rpartition(b"\n")[2]):
      path.write_bytes(whole + torn)
      search.open_storage(path)
      self.assertEqual(path.read_bytes(), whole)
    self.assertLen(self.open_study().trials, 3)
    # A file that is no journal stays as it is.
    path.write_bytes(b"mine")
    with self.assertRaises(errors.InputError):
      search.open_study(search.open_storage(path), "name", {}, _PLAIN, 5)
    self.assertEqual(path.read_bytes(), b"mine")

  def test_a_target_out_of_reach_leaves_the_nearest_miss(self):
    config = dataclasses.replace(
      _PLAIN, target_loss=1e-6, num_runs=2, num_seeds=0
    )
    circuit = self.find(None, config)
    self.assertFalse(circuit.metrics["meets_target"])
    self.assertGreater(circuit.num_nodes, 0)
    circuit.save(self.workdir / "c")
    self.assertTrue((self.workdir / "c" / "circuit.json").is_file())

  def test_a_study_of_another_model_or_setting_is_refused(self):
    short = dataclasses.replace(_PLAIN, num_runs=1, num_seeds=0)
    self.find(self.workdir, short)
    other = jax.tree.map(lambda w: w + 1, self.params)
    fingerprint = fingerprint_lib.fingerprint(self.model, other)
    with self.assertRaisesRegex(errors.InputError, fingerprint):
      self.find(self.workdir, short, params=other)
    with self.assertRaisesRegex(errors.InputError, "prune_config"):
      self.find(self.workdir, dataclasses.replace(short, steps=5))

  def test_a_study_of_another_task_of_the_same_name_is_refused(self):
    short = dataclasses.replace(_PLAIN, num_runs=1, num_seeds=0)
    self.find(self.workdir, short, task=self.own_task("alpha"))
    with self.assertRaisesRegex(
      errors.InputError,
      "^study own/core belongs to another task.*; need another --workdir or",
    ):
      self.find(self.workdir, short, task=self.own_task("beta"))

  def test_a_study_without_an_identity_is_refused(self):
    short = dataclasses.replace(_PLAIN, num_runs=1, num_seeds=0)
    storage = search.open_storage(self.workdir / "search.journal")
    study = optuna.create_study(
      storage=storage, study_name=f"{self.task.name}/core"
    )
    study.add_trial(optuna.trial.create_trial(value=0.0))
    with self.assertRaisesRegex(errors.InputError, "model_fingerprint None"):
      self.find(self.workdir, short)

  def test_a_small_task_gives_what_it_has_beside_others(self):
    short = dataclasses.replace(_PLAIN, num_runs=1, num_seeds=0)
    small = self.own_task("zzaa", train=10, test=9)
    # Prompts of one length, but more of them: they cannot train side by side.
    big = dataclasses.replace(self.own_task("zzbb"), name="big")
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed):
      found = search.find_circuits(
        self.model, self.params, [big, small], short, self.means, 0
      )
    self.assertIn(
      "task own: 10 training pairs instead of the 16 that prune.num_train asks"
      " for\n",
      printed.getvalue(),
    )
    self.assertNotIn("task big", printed.getvalue())
    self.assertEqual(found["own"].core.metrics["num_test_pairs"], 8)

  def test_a_task_of_too_few_pairs_names_every_field_at_once(self):
    tiny = self.own_task("delta", train=3, validation=9, test=2)
    check = lambda: evaluation.check_learned(
      evaluation.make_difference_function(self.model, self.params),
      tiny,
      _CONFIG,
      0,
    )
    with self.assertRaisesRegex(
      sequences_lib.TooFewPairs,
      "'own' has so few.*: 3 train, 8 validation, 2 test; need at least 8 of"
      " each.*num_train=16, prune.num_validation=8, prune.num_test=8",
    ):
      check()

  def test_a_broken_journal_is_one_line(self):
    (self.workdir / "search.journal").write_text("{not json\n{}\n")
    with self.assertRaisesRegex(errors.InputError, "search.journal|study"):
      self.find(self.workdir)

  def test_only_allowed_nodes_are_kept_and_frozen_norms_are_saved(self):
    allowed = helpers.random_masks(self.model, 0.5)
    config = dataclasses.replace(
      _PLAIN, num_runs=1, num_seeds=0, freeze_norms=True
    )
    circuit = self.find(None, config, allowed=allowed)
    for name, mask in circuit.node_mask.items():
      self.assertFalse(np.any(mask & ~allowed[name]))
    self.assertTrue(circuit.freeze_norms)

  def test_the_robust_circuit_contains_the_core_and_both_are_saved(self):
    config = dataclasses.replace(_CONFIG, num_runs=1, num_seeds=0)
    found = self.find_both(self.workdir, config)
    core, robust = found
    for name, mask in core.node_mask.items():
      self.assertFalse(np.any(mask & ~robust.node_mask[name]))
    self.assertLen(self.study("robust").trials, 2)
    self.assertIsNone(core.metrics["validation_accuracy_lost"])
    self.assertTrue(robust.metrics["meets_target"])
    lost = robust.metrics["validation_accuracy_lost"]
    # A mean lies below the upper end of its interval, which met the target.
    self.assertLessEqual(lost, config.target_accuracy_lost)
    core.save(self.workdir / "c", robust=robust)
    again = circuit_lib.load_all(self.workdir / "c")
    self.assertEqual(again["robust"].nodes, robust.nodes)
    self.assertEqual(again["core"].nodes, core.nodes)
    with self.assertRaisesRegex(errors.InputError, "that contains it"):
      if robust.num_nodes == core.num_nodes:
        self.skipTest("both are one")
      robust.save(self.workdir / "d", robust=core)

  def test_norms_that_cannot_be_frozen_are_refused(self):
    config = dataclasses.replace(self.model.config, norm="layer")
    model = transformer.Model(config, self.model.sparsity)
    frozen = dataclasses.replace(_CONFIG, freeze_norms=True)
    with self.assertRaisesRegex(errors.InputError, "freeze_norms=True.*RMS"):
      search.check_norms(model, frozen)


if __name__ == "__main__":
  absltest.main()
