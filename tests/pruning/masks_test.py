"""Mask training and the order of nodes."""

import functools

import chex
import helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import hooks
from sparse_jax.model import means as means_lib
from sparse_jax.pruning import masks as masks_lib
from sparse_jax.tasks import logit_difference as logit_difference_lib
from sparse_jax.tasks import mask_evaluator, outside
from sparse_jax.tasks import means as task_means_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors


class GateTest(absltest.TestCase):
  def test_forward_is_a_step_backward_a_sigmoid(self):
    tau = jnp.array([-1.0, -1e-6, 0.0, 0.5])
    np.testing.assert_array_equal(
      masks_lib.binarize(tau, jnp.array(2.0)), [0, 0, 1, 1]
    )
    grad = jax.grad(lambda t: jnp.sum(masks_lib.binarize(t, jnp.array(2.0))))(
      tau
    )
    s = 1 / (1 + np.exp(-np.asarray(tau) / 2))
    np.testing.assert_allclose(grad, s * (1 - s) / 2, rtol=1e-6)


class LossTest(absltest.TestCase):
  def test_diff_equals_the_full_logits_difference(self):
    model, params, _ = helpers.tiny_model()
    seqs = helpers.random_sequences()
    logits = jax.jit(model.apply)(params, seqs.tokens)
    rows = np.arange(8)
    last = logits[rows, seqs.positions]
    want = last[rows, seqs.correct] - last[rows, seqs.incorrect]
    got = jax.jit(
      functools.partial(logit_difference_lib.logit_difference, model)
    )(params, seqs)
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_only_the_answers_position_is_computed_alike(self):
    for fields in ({}, {"positions": "concatenated", "d_position": 4}):
      model, params, _ = helpers.tiny_model(**fields)
      seqs = helpers.random_sequences()
      masks = helpers.random_masks(model, 0.7)
      hook = hooks.gate(masks, helpers.random_means(model))
      run = jax.jit(functools.partial(model.residual, hook=hook))
      everywhere = run(params, seqs.tokens)
      alone = run(params, seqs.tokens, positions_B=seqs.positions)
      self.assertEqual(alone.shape, (8, 1, 16))
      want = everywhere[np.arange(8), seqs.positions]
      np.testing.assert_allclose(alone[:, 0], want, atol=1e-5)

  def test_loss_is_the_two_token_cross_entropy(self):
    logits = np.array([[2.0, 0.5], [-1.0, 1.0]])
    diff = jnp.asarray(logits[:, 0] - logits[:, 1])
    want = -np.log(np.exp(logits[:, 0]) / np.exp(logits).sum(-1)).mean()
    np.testing.assert_allclose(
      logit_difference_lib.task_loss(diff), want, rtol=1e-6
    )
    self.assertEqual(logit_difference_lib.task_accuracy(diff), 0.5)

  def test_padding_after_the_answer_position_changes_nothing(self):
    model, params, _ = helpers.tiny_model()
    seqs = helpers.random_sequences()._replace(positions=jnp.full(8, 4))
    other = seqs._replace(tokens=seqs.tokens.at[:, 5:].set(0))
    diff = jax.jit(
      functools.partial(logit_difference_lib.logit_difference, model, params)
    )
    np.testing.assert_allclose(diff(seqs), diff(other), atol=1e-5)


class MeansTest(parameterized.TestCase):
  def test_means_are_those_of_the_recording(self):
    model, params, tokens = helpers.tiny_model()
    means = means_lib.mean_activations(
      model, params, [tokens, tokens[::-1] // 2]
    )
    run = jax.jit(functools.partial(hooks.run_with_sites, model, params))
    acts = [run(t)[1] for t in (tokens, tokens[::-1] // 2)]
    self.assertCountEqual(means, sites.NODE_SITES)
    for name in sites.NODE_SITES:
      for row in range(sites.num_rows(name, 2)):
        both = np.concatenate([a[sites.site_id(name, row)] for a in acts])
        np.testing.assert_allclose(
          means[name][row], both.mean((0, 1)), atol=1e-6
        )

  @parameterized.parameters(3, 70)
  def test_task_means_leave_padding_out(self, count):
    model, params, _ = helpers.tiny_model()
    seqs = helpers.random_sequences(count)
    means = task_means_lib.task_means(model, params, seqs)
    site = "1.mlp.post_act"
    _, acts = hooks.run_with_sites(model, params, seqs.tokens, [site])
    rows = zip(np.asarray(acts[site]), seqs.positions, strict=True)
    want = np.concatenate([a[: p + 1] for a, p in rows]).mean(0)
    np.testing.assert_allclose(means["mlp.post_act"][1], want, atol=1e-6)


class StepTest(parameterized.TestCase):
  @parameterized.parameters(*config_lib.OUTSIDE)
  def test_vmapped_runs_equal_single_runs_and_respect_the_box(
    self, ablation_outside
  ):
    model, params, _ = helpers.tiny_model()
    means = helpers.random_means(model)
    seqs = helpers.random_sequences()
    config = config_lib.PruneConfig(
      learning_rate=0.7, steps=6, ablation_outside=ablation_outside
    )
    allowed = helpers.random_masks(model, 1.0)
    many = masks_lib.Hyperparameters.from_config(
      config, k_coef=[1e-3, 0.3], seed=5
    )
    init = functools.partial(masks_lib.init_prune, model.config, config)
    step = functools.partial(masks_lib.prune_step, model, config)
    given = masks_lib.Run(0, None, None, None)
    many_step = jax.jit(jax.vmap(step, in_axes=(0, None, given)))
    one_step = jax.jit(step)
    states = jax.vmap(init, (0, None))(many, allowed)
    for _ in range(6):
      states, logs = many_step(
        states, params, masks_lib.Run(many, means, seqs, allowed)
      )
    chex.assert_tree_shape_prefix(states, (2,))
    for run in range(2):
      one = jax.tree.map(lambda x, i=run: x[i], many)
      state = init(one, allowed)
      for _ in range(6):
        state, log = one_step(
          state, params, masks_lib.Run(one, means, seqs, allowed)
        )
      want = jax.tree.map(lambda x, i=run: x[i], states.tau)
      chex.assert_trees_all_close(state.tau, want, atol=1e-4)
      self.assertEqual(log["open_gates"], logs["open_gates"][run])
      for tau in state.tau.values():
        self.assertLessEqual(float(jnp.abs(tau).max()), 1.0)
    # The dearer run closes more.
    self.assertLess(logs["open_gates"][1], logs["open_gates"][0])

  def first_step(self, model, config, k_coef, count=8):
    """Returns a run on so many prompts, its first state and its step."""
    run = masks_lib.Run(
      masks_lib.Hyperparameters.from_config(config, k_coef=k_coef, seed=0),
      helpers.random_means(model),
      helpers.random_sequences(count),
      helpers.random_masks(model, 1.0),
    )
    state = masks_lib.init_prune(
      model.config, config, run.hyperparameters, run.allowed
    )
    step = jax.jit(functools.partial(masks_lib.prune_step, model, config))
    return run, state, step

  def trained(self, k_coef, **fields):
    """Returns a tiny model's parameters and a mask after eight steps."""
    model, params, _ = helpers.tiny_model()
    config = config_lib.PruneConfig(learning_rate=0.3, steps=8, **fields)
    run, state, step = self.first_step(model, config, k_coef)
    for _ in range(8):
      state, _ = step(state, params, run)
    return params, {n: np.asarray(tau) >= 0 for n, tau in state.tau.items()}

  def test_a_site_that_costs_more_closes_more(self):
    open_gates = []
    for cost in ("0", "1e4"):
      _, is_open = self.trained(1e-4, site_costs=(f"attn.q={cost}",))
      open_gates.append(int(np.sum(is_open["attn.q"])))
    self.assertGreater(open_gates[0], open_gates[1])
    self.assertEqual(open_gates[1], 0)

  def test_edges_that_cost_are_closed(self):
    open_edges = [
      edges_lib.count_edges(*self.trained(1e-6, edge_cost=cost))
      for cost in (0.0, 1e4)
    ]
    self.assertLess(open_edges[1], 0.5 * open_edges[0])

  def test_the_adversary_climbs_and_draws_are_new(self):
    model, params, _ = helpers.tiny_model()
    config = config_lib.PruneConfig(
      steps=6, outside_sources=2, outside_draws=1, init_bias=-0.1
    )
    run, state, step = self.first_step(model, config, 0.0, 12)
    after, _ = step(state, params, run)
    parts = sequences_lib.deal(run.sequences, 3)
    for name, r in after.r.items():
      moved = np.asarray(r - state.r[name])
      at_the_ends = (r == 0) | (r == 1) | (moved == 0)
      climbed = np.isclose(np.abs(moved), 0.1, atol=1e-6) | at_the_ends
      self.assertTrue(np.all(climbed[:2]), name)
      self.assertFalse(np.allclose(np.abs(moved[2]), 0.1))
    for source in range(2):
      loss = lambda r, i=source: logit_difference_lib.task_loss(
        mask_evaluator.masked_logit_difference(
          model,
          False,
          params,
          run.means,
          {n: x[i] for n, x in r.items()},
          jax.tree.map(lambda x, i=i: x[i], parts),
        )
      )
      # All gates are closed, so the gate of every node is its r.
      self.assertGreater(loss(after.r), loss(state.r))

  @parameterized.parameters(8, 6)
  def test_its_losses_are_those_of_gates_and_of_what_is_left_on(self, count):
    model, params, _ = helpers.tiny_model()
    config = config_lib.PruneConfig(init_bias=0.0, init_scale=0.1)
    run, state, step = self.first_step(model, config, 0.0, count)
    _, metrics = step(state, params, run)
    loss = lambda gates, sequences: logit_difference_lib.task_loss(
      mask_evaluator.masked_logit_difference(
        model, False, params, run.means, gates, sequences
      )
    )
    gates = {n: (t >= 0).astype(jnp.float32) for n, t in state.tau.items()}
    self.assertAlmostEqual(
      metrics["task_loss"], loss(gates, run.sequences), places=5
    )
    parts = sequences_lib.deal(run.sequences, 2)
    under = []
    for i in range(2):
      r = {n: x[i] for n, x in state.r.items()}
      part = jax.tree.map(lambda x, i=i: x[i], parts)
      under.append(float(loss(outside.leave_on(gates, r), part)))
    self.assertAlmostEqual(metrics["robust_loss"], np.mean(under), places=5)

  def under_fresh(self, **fields):
    """Returns a step's robust loss, and what it is by hand for any r's."""
    model, params, _ = helpers.tiny_model()
    config = config_lib.PruneConfig(
      outside_sources=1, outside_draws=1, init_scale=0.1, **fields
    )
    run, state, step = self.first_step(model, config, 0.0, 8)
    self.assertEmpty(state.r)
    after, metrics = step(state, params, run)
    self.assertEmpty(after.r)
    parts = sequences_lib.deal(run.sequences, 2)
    gates = {n: (t >= 0).astype(jnp.float32) for n, t in state.tau.items()}
    draw = lambda axes=(): masks_lib._draw_r(
      config, run.hyperparameters, state.step, state.tau, axes
    )

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def loss(r, source, prompt=None):
      only = slice(None) if prompt is None else slice(prompt, prompt + 1)
      sequences = jax.tree.map(lambda x: x[source][only], parts)
      diff_S = mask_evaluator.masked_logit_difference(
        model, False, params, run.means, outside.leave_on(gates, r), sequences
      )
      return logit_difference_lib.task_loss(diff_S)

    return metrics["robust_loss"], draw, loss

  def test_a_fresh_adversary_climbs_its_batch_from_a_draw(self):
    got, draw, loss = self.under_fresh(outside_ascents=3, outside_rate=0.2)
    drawn = {n: x[1] for n, x in draw().items()}
    r = start = {n: x[0] for n, x in draw().items()}
    for _ in range(3):
      r = outside.ascend(r, jax.grad(loss)(r, 0), 0.2)
    self.assertNotAlmostEqual(loss(r, 0), loss(start, 0), places=3)
    want = (loss(r, 0) + loss(drawn, 1)) / 2
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_every_prompt_may_have_an_r_of_its_own(self):
    fields = {"outside_ascents": 2, "outside_per_example": True}
    got, draw, loss = self.under_fresh(**fields)
    losses = []
    for source in range(2):
      for prompt in range(4):
        r = {n: x[source, :, prompt, 0] for n, x in draw((4, 1)).items()}
        for _ in range(0 if source else 2):
          r = outside.ascend(r, jax.grad(loss)(r, source, prompt), 0.1)
        losses.append(loss(r, source, prompt))
    np.testing.assert_allclose(got, np.mean(losses), rtol=1e-5)

  def test_an_r_for_a_prompt_is_not_kept(self):
    with self.assertRaisesRegex(errors.InputError, "outside_per_example"):
      config_lib.PruneConfig(outside_per_example=True)

  def test_rate_warms_up_then_falls_to_zero(self):
    hyperparameters = masks_lib.Hyperparameters(
      *[jnp.array(0.0)] * 9,
    )._replace(
      learning_rate=jnp.array(1.0),
      warmup_fraction=jnp.array(0.5),
      beta2=jnp.array(0.9),
    )
    optimizer = masks_lib.mask_optimizer(hyperparameters, 4)
    tau = {"a": jnp.array([0.0])}
    state = optimizer.init(tau)
    moved = []
    for _ in range(4):
      updates, state = optimizer.update({"a": jnp.array([1e-3])}, state, tau)
      moved.append(-float(updates["a"][0]))
    # Adam's step is the rate while the gradient is constant.
    np.testing.assert_allclose(moved, [0.5, 0.75, 0.5, 0.25], rtol=1e-3)


class OrderTest(absltest.TestCase):
  def _state(self, tau, moment):
    optimizer = optax.scale_by_adam()
    state = optimizer.init(tau)._replace(mu=moment)
    return masks_lib.PruneState(jnp.array(0), tau, state, {}, {})

  def test_order_does_not_depend_on_the_order_of_keys(self):
    model, _, _ = helpers.tiny_model()
    rng = np.random.default_rng(0)
    tau = {
      n: rng.normal(size=m.shape)
      for n, m in helpers.random_means(model).items()
    }
    pull = {n: np.zeros_like(t) for n, t in tau.items()}
    # What passes through JAX comes back with sorted keys.
    mapped = jax.tree.map(np.asarray, tau)
    self.assertNotEqual(list(tau), list(mapped))
    want = masks_lib.node_order(self._state(tau, pull))
    np.testing.assert_array_equal(
      masks_lib.node_order(self._state(mapped, pull)), want
    )
    shapes = {n: tau[n].shape for n in masks_lib.in_order(mapped)}
    first = masks_lib.masks_of_order(shapes, want, [1])
    top = max(float(t.max()) for t in tau.values())
    for name, mask in first.items():
      np.testing.assert_array_equal(mask[0], tau[name] == top)

  def test_order_breaks_saturated_ties_by_the_pull(self):
    tau = {
      "attn.q": jnp.array([[1.0, -1.0, 1.0]]),
      "attn.k": jnp.array([[0.5, 1.0]]),
    }
    pull = {
      "attn.q": jnp.array([[-1.0, 0.0, -3.0]]),
      "attn.k": jnp.array([[0.0, -1.0]]),
    }
    order = masks_lib.node_order(self._state(tau, pull))
    np.testing.assert_array_equal(order, [2, 0, 4, 3, 1])
    masks = masks_lib.masks_of_order(
      {k: v.shape for k, v in tau.items()}, order, [0, 3, 5]
    )
    np.testing.assert_array_equal(
      masks["attn.q"][:, 0], [[0, 0, 0], [1, 0, 1], [1, 1, 1]]
    )
    np.testing.assert_array_equal(
      masks["attn.k"][:, 0], [[0, 0], [0, 1], [1, 1]]
    )


if __name__ == "__main__":
  absltest.main()
