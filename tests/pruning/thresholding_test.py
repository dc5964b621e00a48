"""Calibration, ordering, cutting and cleaning up."""

import functools

import helpers
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from hypothesis import strategies as st

from sparse_jax.model import hooks
from sparse_jax.pruning import calibrate, thresholding
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.pruning import target as target_lib
from sparse_jax.tasks import logit_difference as logit_difference_lib

_FIT = jax.jit(calibrate.fit, static_argnames="shifts")


class CalibrationTest(absltest.TestCase):
  @hypothesis.given(
    st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)
  )
  @hypothesis.settings(max_examples=60, deadline=None)
  def test_fitted_scale_is_the_best_of_a_grid(self, diffs):
    diff = jnp.resize(jnp.asarray(diffs, jnp.float32), (12,))
    found = _FIT(diff, jnp.ones(12), shifts=False)
    self.assertEqual(float(found.shift), 0)
    best = float(calibrate.smoothed_loss(diff * found.scale))
    for scale in np.geomspace(0.01, 100, 60):
      loss = float(calibrate.smoothed_loss(diff * scale))
      self.assertLessEqual(best, loss + 2e-3)

  def test_right_answers_alone_do_not_ask_for_an_endless_scale(self):
    found = _FIT(jnp.full(256, 0.5), jnp.ones(256), shifts=False)
    # 256 correct answers and one incorrect: the diff is the log of the odds.
    self.assertAlmostEqual(
      0.5 * float(found.scale), float(np.log(256)), places=1
    )

  def test_shift_undoes_a_preference_for_one_answer(self):
    rng = np.random.default_rng(0)
    sign = jnp.asarray(np.resize([1.0, -1.0], 200))
    clean = jnp.asarray(rng.normal(1.5, 1.0, 200), jnp.float32)
    biased = clean + 3.0 * sign
    plain = _FIT(clean, sign, shifts=True)
    found = _FIT(biased, sign, shifts=True)
    loss = lambda diff, c: float(
      logit_difference_lib.task_loss(
        logit_difference_lib.calibrate(diff, sign, c)
      )
    )
    self.assertAlmostEqual(loss(biased, found), loss(clean, plain), places=3)
    want = float(plain.shift - 3.0 * plain.scale)
    self.assertAlmostEqual(float(found.shift), want, places=1)

  def test_sign_tells_the_answers_apart(self):
    sign = logit_difference_lib.answer_sign(
      jnp.array([3, 9]), jnp.array([9, 3])
    )
    np.testing.assert_array_equal(sign, [1, -1])


class SmallestCountTest(absltest.TestCase):
  @hypothesis.given(
    st.integers(2, 3000), st.floats(0, 1), st.integers(1, 4000) | st.none()
  )
  @hypothesis.settings(max_examples=200)
  def test_exact_where_the_loss_is_monotone(self, size, share, hint):
    threshold = max(1, round(share * size))
    shares = lambda counts: np.where(counts >= threshold, 0.7, 4.0)
    found = thresholding.smallest_count(shares, size, hint)
    self.assertEqual(found, threshold)

  @hypothesis.given(st.integers(1, 400), st.integers(1, 600))
  def test_on_a_bumpy_loss_it_returns_a_count_seen_to_meet_it(self, seed, hint):
    bumpy = 3 * np.random.default_rng(seed).random(501)
    tried = {}

    def shares_of(counts):
      tried.update(zip(counts, bumpy[counts], strict=True))
      return bumpy[counts]

    found = thresholding.smallest_count(shares_of, 500, hint)
    if min(tried.values()) <= 1:
      self.assertLessEqual(tried[found], 1)
    else:
      self.assertEqual(tried[found], min(tried.values()))

  def test_with_a_tolerance_it_ends_near_the_smallest(self):
    passes = []

    def shares_of(counts):
      passes.append(counts)
      return np.where(counts >= 777, 0.7, 4.0)

    found = thresholding.smallest_count(shares_of, 3000, 700, 0.05)
    self.assertBetween(found, 777, 777 * 1.06)
    self.assertLessEqual(len(passes), 2)

  def test_a_miss_returns_the_nearest_count_tried(self):
    share = lambda counts: 1.5 + np.abs(counts - 40) / 1000
    for hint in (None, 40):
      found = thresholding.smallest_count(share, 500, hint)
      self.assertLess(share(np.array([found]))[0], 1.53)


class ScoresTest(absltest.TestCase):
  def test_masks_are_scored_as_one_at_a_time(self):
    evaluator = helpers.tiny_evaluator()
    model, params = evaluator.model, evaluator.params
    masks = [helpers.random_masks(model, 0.7, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *m: np.stack(m), *masks)
    scores = calibrate.score_masks(evaluator, stacked, False)
    self.assertLen(scores.losses, 3)
    diff = jax.jit(
      lambda seqs, mask: logit_difference_lib.logit_difference(
        model, params, seqs, hooks.gate(mask, evaluator.means)
      )
    )
    for i, mask in enumerate(masks):
      seqs = evaluator.sequences
      sign = logit_difference_lib.answer_sign(seqs.correct, seqs.incorrect)
      want = _FIT(diff(seqs, mask), sign, shifts=False)
      scale = scores.calibration(i).scale
      np.testing.assert_allclose(scale, want.scale, rtol=1e-2)
      loss = logit_difference_lib.task_loss(diff(seqs, mask), scale)
      np.testing.assert_allclose(scores.losses[i], loss, rtol=1e-4)

  def test_a_circuit_without_nodes_has_none_to_leave_out(self):
    evaluator = helpers.tiny_evaluator()
    nodes, scores = thresholding.leave_one_out(
      evaluator, helpers.random_masks(evaluator.model, 0.0)
    )
    self.assertEmpty(nodes)
    self.assertEqual(scores.diffs.shape, (0, 16))
    self.assertEmpty(scores.losses)

  def test_nodes_outside_the_order_are_never_kept(self):
    masks = masks_lib.masks_of_order(
      {"attn.q": (1, 4)}, np.array([2, 0]), [1, 2]
    )
    np.testing.assert_array_equal(
      masks["attn.q"][:, 0], [[0, 0, 1, 0], [1, 0, 1, 0]]
    )

  def test_leave_one_out_is_the_loss_without_the_node(self):
    evaluator = helpers.tiny_evaluator()
    mask = helpers.random_masks(evaluator.model, 0.04, 5)
    nodes, without_each = thresholding.leave_one_out(evaluator, mask)
    losses = without_each.losses
    self.assertLen(nodes, sum(m.sum() for m in mask.values()))
    flat = np.concatenate([np.ravel(m) for m in mask.values()])
    for node, loss in list(zip(nodes, losses, strict=True))[:3]:
      without = flat.copy()
      without[node] = False
      shapes = {name: m.shape for name, m in mask.items()}
      gates = masks_lib.unflatten(shapes, without[None])
      want = calibrate.score_masks(evaluator, gates, False).losses
      np.testing.assert_allclose(loss, want[0], rtol=1e-4)
    np.testing.assert_allclose(
      np.logaddexp(0, -without_each.diffs).mean(1), losses, rtol=1e-4
    )
    order = thresholding.importance_order(evaluator, mask)
    importance = dict(zip(nodes, losses, strict=True))
    np.testing.assert_array_equal(
      [importance[n] for n in order], sorted(losses, reverse=True)
    )


def candidate(edges, share, nodes=5):
  return thresholding.Candidate(
    node_mask={},
    num_nodes=nodes,
    num_edges=edges,
    calibration=logit_difference_lib.Calibration(),
    validation_loss=0.1,
    validation_accuracy_lost=None,
    share=share,
    order=np.arange(nodes),
  )


class CandidateTest(absltest.TestCase):
  def test_fewest_edges_first_among_those_that_meet(self):
    small_miss, near_miss = candidate(3, 2.7), candidate(90, 1.3)
    big, small = candidate(80, 0.1), candidate(40, 0.9)
    best = functools.partial(min, key=thresholding.rank)
    self.assertIs(best([small_miss, big, small]), small)
    self.assertIs(best([small_miss, near_miss]), near_miss)

  def test_clean_up_keeps_the_target_and_reports_each_step(self):
    evaluator = helpers.tiny_evaluator(share=0.3)
    order = np.random.default_rng(0).permutation(
      sum(int(np.prod(s)) for s in evaluator.shapes.values())
    )[:60]
    gates = masks_lib.masks_of_order(evaluator.shapes, order, [60])
    reached = target_lib.Target(evaluator, 1.0).measure(gates)
    # The bound of these nodes, and a little: they meet it, few others do.
    target = target_lib.Target(evaluator, float(reached.shares[0]) + 1e-3)
    start = thresholding.keep_first(target, order, 60)
    self.assertTrue(start.meets_target)
    cleaned, steps = thresholding.clean_up(
      target, start, helpers.random_sequences(16, seed=1)
    )
    self.assertTrue(cleaned.meets_target)
    self.assertIsNone(cleaned.validation_accuracy_lost)
    self.assertEqual(set(cleaned.order), set(start.order))
    self.assertLessEqual(cleaned.num_edges, start.num_edges)
    self.assertEqual(steps[0]["num_edges"], start.num_edges)
    self.assertEqual(steps[-1]["num_nodes"], cleaned.num_nodes)
    kept = np.flatnonzero(masks_lib.flatten(cleaned.node_mask))
    self.assertLen(kept, cleaned.num_nodes)
    self.assertContainsSubset(kept, order)

  def test_a_robust_circuit_is_cut_again_without_nodes_on_no_path(self):
    evaluator = helpers.tiny_evaluator(share=0.3)
    total = evaluator.num_nodes
    order = np.random.default_rng(0).permutation(total)[:60]
    # Any circuit meets it: the second cut goes all the way.
    target = target_lib.Target(evaluator, 1e6, accuracy_lost=2.0, steps=2)
    start = thresholding.keep(target, order, 60)
    cleaned, steps = thresholding.clean_up(
      target, start, helpers.random_sequences(16, seed=1)
    )
    names = [step["step"] for step in steps]
    self.assertEqual(
      names, ["thresholded", "without nodes on no path", "cut again"]
    )
    sizes = [step["num_nodes"] for step in steps]
    self.assertLess(sizes[1], 60)
    self.assertLess(sizes[2], sizes[1])
    self.assertTrue(cleaned.meets_target)
    self.assertEqual(set(cleaned.order), set(start.order))
    self.assertIsNotNone(cleaned.validation_accuracy_lost)

  def test_a_robust_circuit_is_shortened_to_the_first_that_meet(self):
    evaluator = helpers.tiny_evaluator(share=0.3)
    order = np.random.default_rng(0).permutation(evaluator.num_nodes)[:80]

    class Meets(target_lib.Target):
      """Met by 33 nodes and more."""

      def measure(self, masks, edge_masks=None):
        del edge_masks
        reached = target_lib.Target(evaluator, 1.0).measure(masks)
        counts = masks_lib.flatten({n: m[0] for n, m in masks.items()}).sum()
        return reached._replace(shares=np.where(counts >= 33, [0.5], 2.0))

    target = Meets(evaluator, 1.0, accuracy_lost=0.1)
    start = thresholding.keep(target, order, 80)
    got = thresholding.shorten(target, start)
    self.assertBetween(got.num_nodes, 33, 34)
    np.testing.assert_array_equal(
      got.order[: got.num_nodes], order[: got.num_nodes]
    )
    self.assertEqual(set(got.order), set(order))

  def test_where_growing_fails_the_cut_goes_on_along_the_order(self):
    evaluator = helpers.tiny_evaluator(share=0.3)
    order = np.random.default_rng(0).permutation(evaluator.num_nodes)
    target = target_lib.Target(evaluator, 1e6, accuracy_lost=1e-9, steps=5)
    found = thresholding.cut(target, order, 10)
    self.assertTrue(found.meets_target)
    self.assertGreater(found.num_nodes, 20)

  def test_curve_falls_where_more_nodes_help_and_sizes_meet_their_targets(self):
    evaluator = helpers.tiny_evaluator()
    order = np.arange(100)
    curve, reached = thresholding.size_curve(evaluator, order, [1e-6, 50.0])
    self.assertEqual(curve[-1]["num_nodes"], 100)
    sizes = [p["num_edges"] for p in curve]
    self.assertEqual(sizes, sorted(sizes))
    self.assertIsNone(reached[0]["num_edges"])
    self.assertEqual(reached[1]["num_nodes"], 1)


if __name__ == "__main__":
  absltest.main()
