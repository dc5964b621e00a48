"""Faithfulness: identities, hand-computed cases, and planted circuits."""

import copy
import dataclasses
import types

import helpers
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import faithfulness, sites, tasks
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.faithfulness import (
  agreement,
  attention,
  context,
  controls,
  criteria,
  curve,
  importance,
  interchange,
  robustness,
  sufficiency,
)
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.pruning import calibrate
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import means as means_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors

_SITES = sites.LAYER_NODE_SITES
_TEXT = "\n".join(
  f"x = ['{w}', \"{w}\", ({w}, 1)]\ndef {w}():\n  return {w}"
  for w in ("alpha", "beta", "gamma", "delta")
)


def planted():
  """A one-layer model that answers by its second-last token, by construction.

  Token 1 is followed by 3, token 2 by 4. Tokens 1 and 2 put +1 and -1 into
  channel 0. A head that looks everywhere alike carries channel 0 as value 0,
  writes it to channel 1, and the unembedding of 3 and 4 reads channel 1. All
  other weights are noise that no answer reads.
  """
  config = config_lib.ModelConfig(
    n_layer=1,
    # Wide enough for a random circuit to miss the true one.
    d_model=64,
    d_head=64,
    d_mlp=64,
    vocab_size=8,
    context_length=8,
    bigram="none",
    sink=False,
  )
  sparsity = config_lib.SparsityConfig(activation_fraction=1.0, min_alive=0)
  model = transformer.Model(config, sparsity)
  params = jax.tree.map(
    np.zeros_like, jax.device_get(model.init(jax.random.key(0)))
  )
  for norm in ("ln_1", "ln_2"):
    params["layers"][norm]["scale"][:] = 1
  params["ln_f"]["scale"][:] = 1
  embed = params["wte"]["embedding"]
  embed[1, 0], embed[2, 0] = 1, -1
  embed[:, 7] = 1  # A constant channel keeps the norms' size alike.
  attn = params["layers"]["attn"]
  attn["c_attn"]["kernel"][0, 0, 2 * 64] = 1  # Value 0 reads channel 0.
  attn["c_proj"]["kernel"][0, 0, 1] = 6  # Written to channel 1.
  rng = np.random.default_rng(0)
  # Two dead neurons: they write to channel 5, which no answer reads.
  params["layers"]["mlp"]["c_fc"]["kernel"][0, 0, :2] = rng.normal(size=2)
  params["layers"]["mlp"]["c_proj"]["kernel"][0, :2, 5] = rng.normal(size=2)
  head = params["lm_head"]["embedding"]
  head[3, 1], head[4, 1] = 3, -3
  n = 32
  tokens = rng.integers(5, 8, (n, 4))
  tokens[: n // 2, 2], tokens[n // 2 :, 2] = 1, 2
  tokens[n // 2 :, [0, 1, 3]] = tokens[: n // 2, [0, 1, 3]]
  side = np.arange(n) < n // 2
  sequences = sequences_lib.Sequences(
    jnp.asarray(tokens),
    jnp.full(n, 3),
    jnp.asarray(np.where(side, 3, 4)),
    jnp.asarray(np.where(side, 4, 3)),
    jnp.tile(jnp.arange(n // 2), 2),
  )
  return model, jax.tree.map(jnp.asarray, params), sequences


def cut(model, params, sequences, nodes):
  """Returns the context of a circuit that keeps the given nodes."""
  means = means_lib.task_means(model, params, sequences)
  means = {name: np.asarray(means[name]) for name in _SITES}
  mask = {name: np.zeros(mean.shape, bool) for name, mean in means.items()}
  for name, index in nodes:
    mask[name][0, index] = True
  circuit = circuit_lib.Circuit(
    task="planted",
    model_fingerprint=fingerprint_lib.fingerprint(model, params),
    model_config=model.config,
    sparsity=model.sparsity,
    ablation="mean_task",
    target_loss=0.15,
    logit_scale=1.0,
    node_mask=mask,
    means=means,
    edges=edges_lib.find_edges(params, mask),
    metrics={"num_nodes": len(nodes)},
  )
  circuit.metrics["num_edges"] = len(circuit.edges)
  return context.make_context(model, params, circuit, sequences, 0)


TRUE_NODES = [("attn.act_in", 0), ("attn.v", 0), ("attn.resid_delta", 1)]


def measure(subject):
  means = subject.circuit.means
  zero = {name: np.zeros_like(mean) for name, mean in means.items()}
  test = subject.evaluator.sequences
  return {
    "ablation": subject.circuit.ablation,
    "target_loss": subject.circuit.target_loss,
    "sufficiency_and_necessity": sufficiency.sufficiency_and_necessity(
      subject, {subject.circuit.ablation: means, "zero": zero}
    ),
    "agreement": agreement.agreement(subject, {"test": test}),
    "interchange": interchange.interchange(subject),
    "partial_ablation": robustness.partial_ablation(subject),
    "frozen_norms": robustness.frozen_norms(subject),
    "attention": attention.attention(subject),
  }


class PlantedTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.parts = planted()
    cls.subject = cut(*cls.parts, TRUE_NODES)
    cls.found = measure(cls.subject)

  def test_the_model_does_the_task(self):
    full = self.found["sufficiency_and_necessity"]["full_model"]
    self.assertEqual(full["accuracy"]["value"], 1.0)
    self.assertLess(full["loss"]["value"], 0.1)

  def test_the_true_circuit_holds_in_every_criterion(self):
    self.assertEqual(
      [c.name for c in criteria.check_criteria(self.found) if not c.holds], []
    )
    self.assertIn("nothing fails", criteria.verdict(self.found))
    fvu = self.found["interchange"]["fvu"]
    for name in ("0.attn.act_in", "0.attn.v", "0.attn.resid_delta"):
      self.assertAlmostEqual(fvu[name]["value"], 0, places=5)
    self.assertEqual(self.found["attention"]["0.0"]["value"], 0)

  def test_controls_that_are_measured_later_contradict_nothing(self):
    stored = {**self.found, "verdict": criteria.verdict(self.found)}
    control = {"meets_target": False, "num_nodes": 9, "test_accuracy": 0.5}
    same = {**control, "meets_target": True}
    names = ("nonsense", "reinitialised")
    again = {**self.found, "controls": dict.fromkeys(names, control)}
    again["controls"]["same"] = same
    again["verdict"] = criteria.verdict(again)
    self.assertNotEqual(again["verdict"], stored["verdict"])
    self.assertEqual(faithfulness.reproduce(stored, again), [])
    edited = {**stored, "verdict": again["verdict"]}
    self.assertLen(faithfulness.reproduce(edited, again), 1)

  def test_a_decoy_that_only_fits_labels_is_flagged(self):
    # In the template the last token goes with the label. Two neurons read it
    # and whisper the answer; the model answers by the token before. Kept alone
    # and turned up by calibration, the neurons fit every label.
    model, params, sequences = self.parts
    decoyed = jax.tree.map(np.array, params)
    tokens = np.array(sequences.tokens)
    half = len(tokens) // 2
    tokens[:half, 3], tokens[half:, 3] = 5, 6
    decoyed["wte"]["embedding"][5, 2] = 1
    decoyed["wte"]["embedding"][6, 2] = -1
    mlp = decoyed["layers"]["mlp"]
    mlp["c_fc"]["kernel"][0, 2, 3:5] = 4, -4
    mlp["c_proj"]["kernel"][0, 3:5, 1] = 0.05, -0.05
    decoyed = jax.tree.map(jnp.asarray, decoyed)
    sequences = sequences._replace(tokens=jnp.asarray(tokens))
    decoy = [("mlp.act_in", 2), ("mlp.post_act", 3), ("mlp.post_act", 4)]
    decoy += [("mlp.resid_delta", 1)]
    subject = cut(model, decoyed, sequences, decoy)
    sign = logit_difference_lib.answer_sign(
      sequences.correct, sequences.incorrect
    )
    fitted = calibrate.fit(
      jnp.asarray(subject.evaluator.logit_difference(subject.mask)), sign, False
    )
    scaled = dataclasses.replace(
      subject.circuit, logit_scale=float(fitted.scale)
    )
    subject = dataclasses.replace(subject, circuit=scaled)
    other = tokens.copy()  # Where the template's coincidence does not hold.
    other[:, 3] = 11 - other[:, 3]
    other = sequences._replace(tokens=jnp.asarray(other))
    found = measure(subject)
    found["agreement"] = agreement.agreement(
      subject, {"test": sequences, "corrupted": other}
    )
    held = {c.name: c.holds for c in criteria.check_criteria(found)}
    self.assertTrue(held["sufficient"])
    self.assertTrue(held["agrees with the model on test prompts"])
    self.assertFalse(held["necessary"])
    self.assertFalse(held["agrees with the model on corrupted prompts"])
    failed = criteria.verdict(found).partition("fails: ")[2]
    self.assertIn("necessary (need", failed)

  def test_importance_is_all_in_the_true_nodes_and_edges(self):
    found = importance.importance(self.subject)
    self.assertLen(found["nodes"], 3)
    for part in ("nodes", "edges"):
      for row in found[part]:
        loss = row["loss_without"]
        self.assertGreater(loss["value"], 0.5)
        self.assertLessEqual(loss["low"], loss["value"])
        self.assertGreaterEqual(loss["high"], loss["value"])
    self.assertLen(found["edges"], 2)

  def test_the_loss_without_an_edge_is_that_of_its_ablated_source(self):
    # The edge from value 0 to channel 1 is all that its source does.
    measured = importance.importance(self.subject)
    (edge,) = (e for e in measured["edges"] if e["to"]["index"] == 1)
    self.assertEqual(edge["from"], {"site": "0.attn.v", "index": 0})
    (node,) = (n for n in measured["nodes"] if n["site"] == "0.attn.v")
    self.assertAlmostEqual(
      edge["loss_without"]["value"], node["loss_without"]["value"], places=5
    )

  def test_random_circuits_keep_the_sizes(self):
    gates = self.subject.mask
    for seed in range(3):
      drawn = sufficiency.random_mask(gates, seed)
      for name, gate in gates.items():
        np.testing.assert_array_equal(
          drawn[name].sum(1), gate.sum(1), err_msg=name
        )

  def test_random_others_lie_outside_and_keep_the_sizes(self):
    rng = np.random.default_rng(0)
    # A site of few nodes, one that is full, one with fewer closed than open.
    kept = np.array([[2] + [0] * 7, [8] + [0] * 7, [5, 0, 0, 0, 0, 0, 0, 0]])
    gates = {"attn.v": np.arange(8) < kept[:, :1]}
    gates = {name: rng.permuted(gate, axis=1) for name, gate in gates.items()}
    drawn = [sufficiency.random_others(gates, s)["attn.v"] for s in range(40)]
    for others in drawn:
      self.assertFalse((others & gates["attn.v"]).any())
      np.testing.assert_array_equal(others.sum(1), [2, 0, 3])
    # Every closed node has its turn.
    np.testing.assert_array_equal(np.any(drawn, axis=0)[0], ~gates["attn.v"][0])


class IdentityTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model, cls.params, cls.tokens = helpers.tiny_model()

  def subject(self, share):
    model, params = self.model, self.params
    sequences = helpers.random_sequences(12)
    means = helpers.random_means(model)
    mask = {
      name: np.asarray(m) | (share == 1)
      for name, m in helpers.random_masks(model, share).items()
    }
    circuit = helpers.make_circuit(model, params, mask, task="x", means=means)
    return context.make_context(model, params, circuit, sequences, 3)

  def test_a_longer_search_for_the_worst_ablation_is_never_milder(self):
    subject = self.subject(0.5)
    first, third = (robustness.frank_wolfe(subject, n) for n in (1, 3))
    full = subject.score(subject.full_difference())["loss"]["value"]
    self.assertGreater(first["loss"]["value"], full)
    self.assertGreaterEqual(third["loss"]["value"], first["loss"]["value"])
    outside = sum(int(np.sum(g == 0)) for g in subject.mask.values())
    self.assertBetween(third["num_ablated"], 1, outside)

  def test_sign_steps_start_between_circuit_and_model_and_only_climb(self):
    subject = self.subject(0.5)
    found = robustness.sign_ascent(subject)
    alone = subject.evaluator.task_loss(subject.mask)
    for start, least in (
      ("zeros", alone),
      ("ones", subject.evaluator.task_loss(subject.evaluator.constant(1))),
    ):
      loss = found[f"sign_ascent_{start}"]["loss"]["value"]
      self.assertGreaterEqual(loss, least - 1e-5)
    steps = robustness.loss_by_steps(subject, subject.mask)
    losses = [point["loss"] for point in steps]
    self.assertEqual(losses, sorted(losses))
    self.assertEqual(steps[0]["steps"], 0)

  def test_larger_circuits_are_attacked_up_to_the_whole_model(self):
    subject = self.subject(0.3)
    points = robustness.attack_by_size(subject)
    counts = [point["num_nodes"] for point in points]
    self.assertEqual(counts[0], subject.circuit.num_nodes)
    self.assertEqual(counts, sorted(set(counts)))
    # Nothing is outside the whole model: no accuracy to lose.
    self.assertAlmostEqual(points[-1]["accuracy_lost"], 0)
    self.assertGreater(points[0]["loss"], points[-1]["loss"])

  def test_the_curve_runs_from_nothing_to_the_whole_model(self):
    subject = self.subject(0.5)
    found = curve.faithfulness_curve(subject)
    values = [point["faithfulness"] for point in found["points"]]
    self.assertEqual(values[0], 0)
    self.assertAlmostEqual(values[-1], 1)
    shares = [point["share"] for point in found["points"]]
    by_hand = sum(
      (x2 - x1) * (y1 + y2) / 2
      for x1, x2, y1, y2 in zip(
        shares, shares[1:], values, values[1:], strict=False
      )
    )
    self.assertAlmostEqual(found["cpr"], by_hand)
    self.assertGreaterEqual(found["cmd"], abs(1 - found["cpr"]) - 1e-9)

  def test_nothing_outside_is_nothing_to_ablate(self):
    subject = self.subject(1)
    found = robustness.frank_wolfe(subject)
    full = subject.score(subject.full_difference())
    self.assertEqual(found["num_ablated"], 0)
    self.assertEqual(found["loss"], full["loss"])

  def test_the_whole_model_agrees_with_itself(self):
    subject = self.subject(1)
    found = agreement.agreement(subject, {"test": subject.evaluator.sequences})[
      "test"
    ]
    self.assertAlmostEqual(found["kl"]["value"], 0, places=6)
    self.assertEqual(found["agreement"]["value"], 1)
    for found in attention.attention(subject).values():
      self.assertAlmostEqual(found["value"], 0, places=5)
    frozen = robustness.frozen_norms(subject)
    full = subject.score(subject.full_difference())
    self.assertLessEqual(frozen["loss"]["value"], full["loss"]["value"] + 1e-4)

  def test_all_values_swapped_in_are_the_models_where_all_is_kept(self):
    subject = self.subject(0.6)
    curve = interchange.interchange(subject)["curve"]
    circuit = subject.score(subject.evaluator.logit_difference(subject.mask))[
      "loss"
    ]["value"]
    self.assertAlmostEqual(curve[0]["loss"]["value"], circuit, places=5)
    partial = robustness.partial_ablation(subject)
    full = subject.score(subject.full_difference())["loss"]["value"]
    for name in ("random", "relaxed"):
      ends = partial[name][0], partial[name][-1]
      self.assertAlmostEqual(ends[0]["loss"]["value"], full, places=5)
      self.assertAlmostEqual(ends[1]["loss"]["value"], circuit, places=5)

  def test_frozen_norms_undo_a_scaled_stream(self):
    model, params, tokens = self.model, self.params, self.tokens
    full, seen = {}, {}
    model.apply(params, tokens, hooks.record(full))
    model.apply(
      params,
      tokens,
      hooks.compose(hooks.freeze_norms_at(full), hooks.record(seen)),
    )
    for name, x in full.items():
      np.testing.assert_allclose(seen[name], x, atol=1e-4, err_msg=name)

  def test_a_circuit_of_no_nodes_has_every_measure(self):
    subject = self.subject(0)
    self.assertEqual(subject.circuit.num_nodes, 0)
    self.assertEqual(importance.importance(subject), {"nodes": [], "edges": []})
    measured = measure(subject)
    self.assertEqual(measured["interchange"]["fvu"], {})
    self.assertEqual(measured["attention"], {})
    scores = measured["sufficiency_and_necessity"]
    self.assertEqual(
      scores["mean_pretrain"]["without_circuit"], scores["full_model"]
    )
    self.assertStartsWith(criteria.verdict(measured), "holds: ")

  def test_binary_kl_by_hand(self):
    diff = np.array([0.0, np.log(3.0)])
    other = np.array([0.0, 0.0])
    want = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    np.testing.assert_allclose(
      agreement.binary_kl(diff, other), [0, want], atol=1e-12
    )

  def test_an_edited_or_foreign_circuit_is_refused(self):
    subject = self.subject(0.3)
    evaluator, circuit = subject.evaluator, subject.circuit
    model, params = evaluator.model, evaluator.params
    faithfulness.check_circuit(model, params, circuit)
    other = jax.tree.map(lambda w: w + 1, params)
    with self.assertRaisesRegex(errors.InputError, "model_fingerprint"):
      faithfulness.check_circuit(model, other, circuit)
    edges = copy.deepcopy(circuit.edges)
    edges[0]["weight"] += 0.1
    edited = dataclasses.replace(circuit, edges=edges)
    with self.assertRaisesRegex(errors.InputError, "not edited"):
      faithfulness.check_circuit(model, params, edited)
    edited = dataclasses.replace(circuit, edges=edges[1:])
    with self.assertRaisesRegex(errors.InputError, "num_edges"):
      faithfulness.check_circuit(model, params, edited)


class ControlsTest(absltest.TestCase):
  def test_reinitialised_weights_keep_zeros_and_size_and_nothing_learnt(self):
    model, params, _ = helpers.tiny_model()
    params = helpers.sparsify(params, 0.3)
    fresh = controls.reinitialised(model, params, 1)
    rms = lambda w: float(np.sqrt(np.mean(np.square(w))))
    started = jax.tree.leaves(model.init(jax.random.key(1)))
    for old, new, start in zip(
      jax.tree.leaves(params), jax.tree.leaves(fresh), started, strict=True
    ):
      if not np.any(start):
        np.testing.assert_array_equal(new, np.zeros_like(new))
        continue
      np.testing.assert_array_equal(np.asarray(old) == 0, np.asarray(new) == 0)
      self.assertAlmostEqual(rms(old), rms(new), places=5)

  def test_nonsense_answers_are_consistent_and_none_of_the_tasks(self):
    tokenizer = tokenizer_lib.Tokenizer.train([_TEXT] * 4, 300)
    task = tasks.make_task("single_double_quote", tokenizer)
    nonsense = controls.nonsense(task, 3)
    self.assertEqual(
      controls.nonsense(task, 3).meaningless, nonsense.meaningless
    )
    for split in tasks.SPLITS:
      true, made = (t.pairs(split, 6) for t in (task, nonsense))
      np.testing.assert_array_equal(true.prompts, made.prompts)
      sides = np.stack([made.answers, made.counter_answers])
      np.testing.assert_array_equal(
        sides, np.array(nonsense.meaningless)[:, None].repeat(6, 1)
      )
      self.assertNoCommonElements(
        nonsense.meaningless, {*true.answers, *true.counter_answers}
      )

  def test_a_control_as_small_as_the_circuit_is_not_beaten(self):
    figures = lambda n, meets: {
      "num_nodes": n,
      "meets_target": meets,
      "test_accuracy": 0.5,
    }
    for size, meets, same_meets, want in (
      (30, True, True, False),
      (59, True, True, False),
      (60, True, True, True),
      (30, False, True, True),
      (60, True, False, False),
    ):
      found = {"same": figures(40, same_meets), "x": figures(size, meets)}
      self.assertEqual(
        criteria._beats_control(found, "x").holds, want, (size, meets)
      )

  def test_jaccard_by_hand(self):
    a = {"attn.q": np.array([[1, 1, 0]], bool)}
    b = {"attn.q": np.array([[0, 1, 1]], bool)}
    self.assertAlmostEqual(controls.jaccard(a, b), 1 / 3)
    self.assertEqual(controls.jaccard(a, a), 1)


class ReproduceTest(absltest.TestCase):
  def test_reproduction_names_what_moved(self):
    value = {"value": 0.5, "low": 0.4, "high": 0.6}
    stored = {
      "a": {"loss": dict(value)},
      "curve": [{"loss": dict(value)}],
      "seed": 1,
    }
    self.assertEqual(faithfulness.reproduce(stored, stored), [])
    again = copy.deepcopy(stored)
    again["curve"][0]["loss"]["value"] = 0.7
    (line,) = faithfulness.reproduce(stored, again)
    self.assertStartsWith(line, "curve[0].loss: 0.5")
    edited = copy.deepcopy(stored)
    edited["a"]["loss"]["value"] = 0.1
    self.assertLen(faithfulness.reproduce(edited, stored), 1)
    del again["a"]
    self.assertIn(
      "a was not measured again", faithfulness.reproduce(stored, again)
    )

  def test_stretched_intervals_and_edited_figures_do_not_reproduce(self):
    value = lambda v, low, high: {"value": v, "low": low, "high": high}
    measured = {
      "loss": value(2.0, 1.9, 2.1),
      "fvu": {"0.attn.q": 0.5, "0.attn.k": None},
      "verdict": "holds: nothing",
      "nodes": [{"index": 3, "loss_without": 0.7}],
    }
    self.assertEqual(faithfulness.reproduce(measured, measured), [])
    for key, edited in (
      ("loss", value(0.1, -9.0, 9.0)),
      ("loss", 2.0),
      ("fvu", {"0.attn.q": 0.01, "0.attn.k": None}),
      ("fvu", {"0.attn.q": 0.5, "0.attn.k": 0.0}),
      ("verdict", "holds: all"),
      ("nodes", []),
      ("nodes", [{"index": 3, "loss_without": 0.1}]),
    ):
      with self.subTest(key=key, edited=edited):
        self.assertLen(
          faithfulness.reproduce({**measured, key: edited}, measured), 1
        )
    for malformed in (5, [1], "x", None):
      self.assertLen(faithfulness.reproduce(malformed, measured), 1)

  def test_controls_reproduce_by_target_and_rough_size(self):
    control = {"meets_target": True, "num_nodes": 100, "test_loss": 0.1}
    stored = {"controls": {"nonsense": control, "jaccard_over_seeds": 0.5}}
    near = {"nonsense": {**control, "num_nodes": 120, "test_loss": 0.3}}
    self.assertEqual(faithfulness.reproduce(stored, {"controls": near}), [])
    for changed in ({"num_nodes": 300}, {"meets_target": False}):
      other = {"controls": {"nonsense": {**control, **changed}}}
      self.assertLen(faithfulness.reproduce(stored, other), 1)
    self.assertEqual(faithfulness.reproduce(stored, {}), [])
    self.assertEqual(faithfulness.left_out(stored, {}), ["controls"])
    self.assertNotEmpty(
      faithfulness.reproduce({"controls": {}}, {"controls": near})
    )

  def test_the_circuits_own_test_figures_are_held_against_it(self):
    value = lambda v: {"value": v, "low": v - 0.02, "high": v + 0.02}
    scored = {"loss": value(0.2), "accuracy": value(0.9)}
    again = {
      "ablation": "zero",
      "sufficiency_and_necessity": {
        "zero": {"circuit": scored, "without_circuit": scored},
        "full_model": scored,
      },
    }
    self.assertEqual(
      faithfulness.reproduce_metrics({"test_loss": 0.2}, again), []
    )
    (line,) = faithfulness.reproduce_metrics(
      {"test_loss": 0.1, "test_accuracy": 0.9}, again
    )
    self.assertStartsWith(line, "metrics.test_loss: 0.1, now 0.2")
    self.assertLen(
      faithfulness.reproduce_metrics({"full_model_test_loss": None}, again), 1
    )


def of_groups(*groups):
  """Returns a context without a circuit whose prompts are of those groups."""
  prompts = types.SimpleNamespace(groups=np.array(groups))
  return context.Context(None, types.SimpleNamespace(sequences=prompts), 0)


class ScoreTest(absltest.TestCase):
  def test_draws_are_scored_one_by_one_and_not_as_an_ensemble(self):
    diff = np.array([[3.0, 3.0, -1.0, -1.0], [-1.0, -1.0, 3.0, 3.0]])
    on = of_groups(0, 1, 0, 1)
    found = on.score(diff)
    self.assertEqual(found["accuracy"]["value"], 0.5)
    want = np.logaddexp(0, -diff).mean()
    self.assertAlmostEqual(found["loss"]["value"], want)
    self.assertEqual(on.score(diff.mean(0))["accuracy"]["value"], 1)

  def test_ratio_by_hand(self):
    on = of_groups(0, 1, 0, 1)
    found = on.ratio(np.array([1.0, 0, 2, 3]), np.full(4, 2.0))
    self.assertAlmostEqual(found["value"], 6 / 8)
    self.assertLessEqual(found["low"], 0.75)
    self.assertGreaterEqual(found["high"], 0.75)
    self.assertIsNone(on.ratio(np.ones(4), np.zeros(4)))

  def test_intervals_resample_groups_and_not_prompts(self):
    # Four prompts of one template are one observation: nothing to resample.
    values = np.array([0.0, 1.0, 0.0, 1.0])
    one = of_groups(7, 7, 7, 7).estimate(values)
    self.assertEqual((one["low"], one["high"]), (0.5, 0.5))
    two = of_groups(0, 1, 0, 1).estimate(values)
    self.assertEqual((two["low"], two["high"]), (0.0, 1.0))

  def test_unexplained_variance_leaves_padding_out(self):
    rng = np.random.default_rng(0)
    full, positions = rng.normal(size=(4, 5, 3)), np.array([1, 4, 2, 0])
    seen = full + 0.1
    mask = {"attn.q": np.array([[True, False, True]])}
    on = dataclasses.replace(
      of_groups(0, 1, 0, 1), circuit=types.SimpleNamespace(node_mask=mask)
    )
    run = lambda f, s: interchange.unexplained(
      on, {"0.attn.q": (f, s)}, positions
    )["0.attn.q"]["value"]
    used = np.arange(5)[None] <= positions[:, None]
    kept = full[used][:, [0, 2]]
    want = 0.01 * kept.size / np.square(kept - kept.mean(0)).sum()
    self.assertAlmostEqual(run(full, seen), want)
    noise = np.where(used[..., None], 0, 100 * rng.normal(size=full.shape))
    self.assertAlmostEqual(run(full + noise, seen - noise), want)


if __name__ == "__main__":
  absltest.main()
