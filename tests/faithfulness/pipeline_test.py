"""The way from tasks to saved circuits: what is finished is not made again."""

import dataclasses
import pathlib
import tempfile
from unittest import mock

import helpers
import numpy as np
from absl.testing import absltest, parameterized

from sparse_jax import checkpoint, faithfulness, tasks
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.faithfulness import pipeline
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.pruning import search
from sparse_jax.utils import errors

_CONFIG = config_lib.Config(
  prune=config_lib.PruneConfig(
    num_runs=2,
    num_robust_runs=1,
    num_seeds=0,
    num_train=8,
    num_validation=8,
    num_test=8,
    curve_targets=(0.3,),
  )
)
_FAITHFULNESS = {"verdict": "holds: all", "controls": {"random": 1}}


class PipelineTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    words = tokenizer_lib.Tokenizer.train([], 257)
    cls.task = tasks.make_task("single_double_quote", words)
    cls.model, cls.params, _ = helpers.tiny_model(
      n_layer=1, vocab_size=257, context_length=64
    )
    cls.means = helpers.random_means(cls.model)

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.searched = self.enterContext(
      mock.patch.object(search, "find_circuits", side_effect=self.search)
    )
    self.measured = self.enterContext(
      mock.patch.object(faithfulness, "measure_all", side_effect=self.measure)
    )

  def measure(self, model, params, circuits, task, options):
    """Stands for the measures."""
    return {name: _FAITHFULNESS for name in circuits}

  def search(self, model, params, todo, config, means, seed, **where):
    """Stands for the search, which takes minutes."""
    for task in todo:
      make = lambda stage, task=task: circuit_lib.Circuit(
        task=task.name,
        model_fingerprint=fingerprint_lib.fingerprint(model, params),
        model_config=model.config,
        sparsity=model.sparsity,
        ablation=config.ablation,
        target_loss=config.target_loss,
        logit_scale=1.0,
        node_mask={name: np.zeros(m.shape, bool) for name, m in means.items()},
        means=means,
        edges=[],
        metrics={"num_nodes": 0, "num_edges": 0},
        details={
          "runs": [{}] * stage.num_runs,
          "sizes_at_targets": [{"target_loss": t} for t in stage.curve_targets],
          "identity": search.identity(model, params, task, stage, seed),
        },
      )
      where["on_found"](search.Found(make(config.core), make(config.robust)))

  def run_once(self, learned=True, task=None, seed=0, prune=None, **fields):
    """Runs the pipeline; returns circuits and what had to be done for them."""
    config = dataclasses.replace(
      _CONFIG,
      seed=seed,
      prune=dataclasses.replace(_CONFIG.prune, **(prune or {})),
    )
    self.searched.reset_mock()
    self.measured.reset_mock()
    made = pipeline.Pipeline(
      model=self.model,
      params=self.params,
      means=self.means,
      config=config,
      **{"faithfulness": False, "natural": False, **fields},
    ).run({task or self.task: learned}, self.root)
    (found,) = made.values()
    return found, self.searched.call_count, self.measured.call_count

  def test_again_it_is_loaded(self):
    first, *done = self.run_once(faithfulness=True)
    self.assertEqual(done, [1, 1])
    for fields in ({"faithfulness": True}, {}, {"prune": {"num_runs": 1}}):
      again, *done = self.run_once(**fields)
      self.assertEqual(done, [0, 0])
      for a, b in zip(again, first, strict=True):
        self.assertEqual(a.metrics, b.metrics)
      self.assertEqual(a.details["settings"]["prune"]["num_test"], 8)
      self.assertEqual(a.details["settings"]["seed"], 0)
    self.assertTrue(again.core.metrics["learned"])

  def test_faithfulness_is_added_to_what_is_there(self):
    self.assertEqual(self.run_once()[1:], (1, 0))
    found, *done = self.run_once(faithfulness=True, learned=False)
    self.assertEqual(done, [0, 1])
    stored = circuit_lib.load_all(self.root / self.task.name)
    for c in (*found, *stored.values()):
      self.assertEqual(c.metrics["faithfulness"], _FAITHFULNESS)
      self.assertFalse(c.metrics["learned"])

  @parameterized.named_parameters(
    ("more_runs", {"prune": {"num_runs": 3}}),
    ("more_robust_runs", {"prune": {"num_robust_runs": 2}}),
    ("another_curve", {"prune": {"curve_targets": (0.2,)}}),
    ("another_target", {"prune": {"target_loss": 0.1}}),
    ("another_seed", {"seed": 1}),
  )
  def test_another_search_is_made(self, fields):
    self.run_once()
    self.assertEqual(self.run_once(**fields)[1], 1)

  def test_another_task_of_the_name_is_searched_anew(self):
    self.run_once()
    other = dataclasses.replace(
      self.task,
      generate=lambda split, key: self.task.generate(split, key + "other"),
    )
    self.assertEqual(self.run_once(task=other)[1], 1)

  def test_a_damaged_circuit_is_made_again(self):
    self.run_once()
    for name in ("circuit.json", "robust.json"):
      path = self.root / self.task.name / name
      for text in ("{}", "[]", "nothing"):
        path.write_text(text)
        self.assertEqual(self.run_once()[1], 1)

  def test_prune_takes_a_model_directory_and_settings(self):
    tokenizer = tokenizer_lib.Tokenizer.train([], 257)
    directory = self.root / "model"
    checkpoint.save_model(
      directory, self.model, self.params, tokenizer, means=self.means
    )
    task = directory, self.task.name, self.root / "found"
    few = {f"num_{split}": 8 for split in ("train", "validation", "test")}
    with self.assertRaisesRegex(errors.InputError, "not pruned, not learned"):
      pipeline.prune(*task, **few)
    found = pipeline.prune(*task, unlearned=True, evidence=False, **few)
    self.assertEqual(self.searched.call_args.args[3].num_validation, 8)
    self.assertFalse(found.core.metrics["learned"])
    self.assertNotIn("faithfulness", found.robust.metrics)
    again = pipeline.prune(*task, unlearned=True, **few)
    self.assertEqual(self.searched.call_count, 1)
    self.assertEqual(again.core.metrics["faithfulness"], _FAITHFULNESS)
    with self.assertRaisesRegex(errors.InputError, "unknown setting 'step'"):
      pipeline.prune(*task, step=3)

  def test_a_task_without_enough_pairs_is_skipped_alone(self):
    few = dataclasses.replace(
      self.task, name="few", generate=lambda split, key: iter(())
    )
    learned, skipped = pipeline.Pipeline(
      model=self.model, params=self.params, means=self.means, config=_CONFIG
    ).choose([few, self.task], [self.task.name])
    self.assertEqual(learned, {self.task: False})
    self.assertIn("pairs", skipped["few"])


if __name__ == "__main__":
  absltest.main()
