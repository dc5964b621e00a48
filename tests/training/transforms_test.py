"""Transforms by hand on small arrays, and one contract for all of them."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from flax import traverse_util

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.training import rules, schedules, transforms


def kept(k, is_stacked=False, unit_axis=None, min_alive=0):
  """Returns the `Kept` of k entries at every step, or of k[step]."""
  table = np.atleast_1d(np.asarray(k, np.int64))
  return transforms.Kept(table, is_stacked, unit_axis, min_alive)


def sorted_mask(value, k, unit_axis=None, min_alive=0):
  """Reference for one matrix: stable sorts, protected entries first."""
  size = np.abs(np.asarray(value, np.float64))
  if min_alive:
    order = np.argsort(-size, unit_axis, kind="stable")
    first = np.take(order, range(min_alive), unit_axis)
    np.put_along_axis(size, first, np.inf, unit_axis)
  mask = np.zeros(size.size, bool)
  mask[np.argsort(-size.ravel(), kind="stable")[:k]] = True
  return mask.reshape(size.shape)


def step(transform, params, updates):
  """Returns the new parameters after one step from a fresh state."""
  updates, _ = transform.update(updates, transform.init(params), params)
  return optax.apply_updates(params, updates)


def tiny_config(**sparsity):
  return config_lib.from_config_dict(
    {
      "data": {"context_length": 8},
      "model": {"d_model": 8, "d_head": 4, "d_mlp": 16, "vocab_size": 20},
      "sparsity": {"density": 0.5, "min_alive": 2, **sparsity},
      "train": {"steps": 6, "learning_rate": 0.05, "adam_eps": 1e-3},
    }
  )


def tiny_params(config, seed=0):
  """Returns random parameters of the config's paths, without the model."""
  m, rng = config.model, np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  linear = lambda a, b: {"kernel": normal(2, a, b), "bias": normal(2, b)}
  return {
    "wte": {"embedding": normal(m.vocab_size, m.d_model)},
    "bigram_table": normal(m.vocab_size, m.vocab_size),
    "logit_bias": normal(m.vocab_size),
    "ln_f": {"scale": normal(m.d_model)},
    "layers": {
      "attn": {
        "c_attn": linear(m.d_model, 3 * m.d_model),
        "c_proj": linear(m.d_model, m.d_model),
        "sink": normal(2, m.n_head),
      },
      "mlp": {
        "c_fc": linear(m.d_model, m.d_mlp),
        "c_proj": linear(m.d_mlp, m.d_model),
      },
    },
    "wpe": {"embedding": normal(8, m.d_model)},
  }


class GradientScaleTest(absltest.TestCase):
  def test_normalize_divides_by_rms_plus_eps(self):
    # RMS of (1, 2, 2) is sqrt(9 / 3).
    updates = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([[2.0]])}
    got, _ = transforms.normalize_rms(eps=0.5).update(updates, ())
    factor = 1 / (3**0.5 + 0.5)
    np.testing.assert_allclose(got["a"], [factor, 2 * factor], rtol=1e-6)
    np.testing.assert_allclose(got["b"], [[2 * factor]], rtol=1e-6)

  def test_normalize_leaves_zeros(self):
    got, _ = transforms.normalize_rms().update(jnp.zeros(3), ())
    np.testing.assert_array_equal(got, np.zeros(3))

  def test_clip_scales_down_to_the_limit(self):
    updates = jnp.array([3.0, -3.0, 3.0])
    got, _ = transforms.clip_rms(1.5).update(updates, ())
    np.testing.assert_allclose(got, [1.5, -1.5, 1.5], rtol=1e-6)

  def test_clip_leaves_small_updates(self):
    updates = jnp.array([0.5, -1.0, 1.0])
    got, _ = transforms.clip_rms(1.0).update(updates, ())
    np.testing.assert_array_equal(got, updates)


class KeepLargestTest(parameterized.TestCase):
  @parameterized.named_parameters(
    # New values are 1.5, -1.9 and 0.5.
    ("two", 2, [1.5, -1.9, 0]),
    ("one", 1, [0, -1.9, 0]),
    ("none", 0, [0, 0, 0]),
    ("all", 3, [1.5, -1.9, 0.5]),
  )
  def test_by_hand(self, k, want):
    params = jnp.array([1.0, -2.0, 3.0])
    updates = jnp.array([0.5, 0.1, -2.5])
    got = step(transforms.keep_largest(kept(k)), params, updates)
    np.testing.assert_array_equal(got == 0, np.array(want) == 0)
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_ties_go_to_the_lower_index(self):
    got = step(
      transforms.keep_largest(kept(2)),
      jnp.array([1.0, -1.0, 1.0]),
      jnp.zeros(3),
    )
    np.testing.assert_array_equal(got, [1, -1, 0])

  def test_each_column_keeps_its_largest(self):
    # A unit's weights lie along axis 0; the small column keeps one of its own.
    params = jnp.array([[9.0, 0.1], [8.0, 0.2], [7.0, 0.3]])
    rule = kept(3, unit_axis=-2, min_alive=1)
    got = step(transforms.keep_largest(rule), params, jnp.zeros((3, 2)))
    np.testing.assert_array_equal(got, np.float32([[9, 0], [8, 0], [0, 0.3]]))

  def test_a_unit_shorter_than_min_alive_is_kept_whole(self):
    params = jnp.array([[9.0, 0.1], [8.0, 0.2]])
    rule = kept(3, unit_axis=-2, min_alive=4)
    got = step(transforms.keep_largest(rule), params, jnp.zeros((2, 2)))
    self.assertEqual(np.count_nonzero(got), 3)

  def test_each_layer_is_a_matrix_of_its_own(self):
    params = jnp.array([[9.0, 8.0, 7.0], [0.1, 0.2, 0.3]])
    rule = kept(1, is_stacked=True)
    got = step(transforms.keep_largest(rule), params, jnp.zeros((2, 3)))
    np.testing.assert_array_equal(got, np.float32([[9, 0, 0], [0, 0, 0.3]]))

  def test_reads_the_step_and_stays_on_the_last(self):
    transform = transforms.keep_largest(kept([3, 1]))
    params = jnp.array([1.0, 2.0, 3.0])
    state = transform.init(params)
    for want in (3, 1, 1):
      updates, state = transform.update(jnp.zeros(3), state, params)
      new = optax.apply_updates(params, updates)
      self.assertEqual(np.count_nonzero(new), want)

  def test_dense_parameters_pass(self):
    params = {"sparse": jnp.array([1.0, 2.0]), "dense": jnp.array([1.0, 2.0])}
    transform = transforms.keep_largest({"sparse": kept(1), "dense": None})
    got = step(transform, params, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_array_equal(got["sparse"], [0, 2])
    np.testing.assert_array_equal(got["dense"], [1, 2])

  def test_an_entry_returns_when_one_update_beats_the_threshold(self):
    transform = transforms.keep_largest(kept(1))
    params = jnp.array([0.0, 2.0])
    got = step(transform, params, jnp.array([1.9, 0.0]))
    np.testing.assert_array_equal(got, [0, 2])
    got = step(transform, params, jnp.array([2.1, 0.0]))
    np.testing.assert_array_equal(got, np.float32([2.1, 0]))


class DecayAndBoxTest(absltest.TestCase):
  def test_decay_shrinks_the_new_value(self):
    transform = transforms.decay([0.5, 0.0], 0.2, {"a": True, "b": False})
    params = {k: jnp.array([1.0, -2.0, 4.0]) for k in "ab"}
    updates = {k: jnp.array([1.0, 2.0, -2.0]) for k in "ab"}
    got = step(transform, params, updates)
    # 1 - 0.5 * 0.2 = 0.9 of (2, 0, 2).
    np.testing.assert_allclose(got["a"], [1.8, 0, 1.8], rtol=1e-6)
    np.testing.assert_array_equal(got["b"], [2, 0, 2])

  def test_decay_reads_the_step(self):
    transform = transforms.decay([0.5, 0.0], 0.2, True)
    params, zero = jnp.ones(3), jnp.zeros(3)
    first, state = transform.update(zero, transform.init(params), params)
    second, _ = transform.update(zero, state, params)
    np.testing.assert_allclose(first, np.full(3, -0.1), rtol=1e-6)
    np.testing.assert_array_equal(second, np.zeros(3))

  def test_box_clamps_the_new_value(self):
    params = jnp.array([0.5, -0.5, 0.0])
    got = step(transforms.box(-1.0, 1.0), params, jnp.array([1.0, -1.0, 0.25]))
    np.testing.assert_array_equal(got, [1, -1, 0.25])


# By name: the transform of a number by step.
_inject = optax.inject_hyperparams
CONTRACT = {
  "normalize_rms": lambda at: _inject(transforms.normalize_rms)(eps=at),
  "clip_rms": lambda at: _inject(transforms.clip_rms)(limit=at),
  "keep_largest": lambda at: transforms.keep_largest(
    {"w": kept([8 * float(at(i)) for i in range(2)]), "b": None}
  ),
  "decay": lambda at: transforms.decay(
    [at(0), at(1)], 0.1, {"w": True, "b": False}
  ),
  "box": lambda at: _inject(transforms.box)(low=-1.0, high=at),
}
NEED_PARAMS = ("keep_largest", "decay", "box")


class ContractTest(parameterized.TestCase):
  """What every transform owes to optax."""

  def tree(self, dtype, seed):
    rng = np.random.default_rng(seed)
    return {
      "w": jnp.asarray(rng.normal(size=(3, 4)), dtype),
      "b": jnp.asarray(rng.normal(size=4), dtype),
    }

  @parameterized.parameters(*CONTRACT)
  def test_keeps_dtypes_shapes_and_state(self, name):
    transform = CONTRACT[name](transforms.lookup([0.5, 0.5]))
    for dtype in (jnp.float32, jnp.bfloat16):
      params, updates = self.tree(dtype, 0), self.tree(dtype, 1)
      state = transform.init(params)
      got, new_state = transform.update(updates, state, params)
      chex.assert_trees_all_equal_shapes_and_dtypes(got, updates)
      chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)

  @parameterized.parameters(*CONTRACT)
  def test_jit_equals_eager(self, name):
    transform = CONTRACT[name](transforms.lookup([0.5, 0.5]))
    params, updates = self.tree(jnp.float32, 0), self.tree(jnp.float32, 1)
    state = transform.init(params)
    eager = transform.update(updates, state, params)
    jitted = jax.jit(transform.update)(updates, state, params)
    chex.assert_trees_all_close(jitted, eager, rtol=1e-6)

  @parameterized.parameters(*CONTRACT)
  def test_follows_a_schedule(self, name):
    params, updates = self.tree(jnp.float32, 0), self.tree(jnp.float32, 1)
    second = {}
    for way, table in (("rises", [0.25, 0.75]), ("stays", [0.75, 0.75])):
      transform = CONTRACT[name](transforms.lookup(table))
      state = transform.init(params)
      first, state = transform.update(updates, state, params)
      second[way], _ = transform.update(updates, state, params)
      if way == "rises":
        difference = np.abs(first["w"] - second[way]["w"]).max()
        self.assertGreater(difference, 1e-3)
    chex.assert_trees_all_close(second["rises"], second["stays"], rtol=1e-6)

  @parameterized.parameters(*CONTRACT)
  def test_extra_args_are_accepted_and_chain(self, name):
    params, updates = self.tree(jnp.float32, 0), self.tree(jnp.float32, 1)
    transform = CONTRACT[name](transforms.lookup([0.5, 0.5]))
    want, _ = transform.update(updates, transform.init(params), params)
    chain = optax.with_extra_args_support(optax.chain(transform))
    state = chain.init(params)
    got, _ = chain.update(updates, state, params, value=1.0)
    chex.assert_trees_all_equal(got, want)

  @parameterized.parameters(*CONTRACT)
  def test_missing_params(self, name):
    transform = CONTRACT[name](transforms.lookup([0.5, 0.5]))
    updates = self.tree(jnp.float32, 0)
    state = transform.init(updates)
    if name in NEED_PARAMS:
      with self.assertRaisesRegex(ValueError, "params"):
        transform.update(updates, state)
    else:
      transform.update(updates, state)


class SparseAdamTest(absltest.TestCase):
  """The whole chain, jitted once, on random gradients."""

  def test_exactly_k_survive_with_protected_ones_at_every_step(self):
    config = tiny_config(biases="sparse")
    params = tiny_params(config)
    optimizer = transforms.sparse_adam(config, params)
    update = jax.jit(optimizer.update)
    state = optimizer.init(params)
    density = schedules.block_density(config.sparsity, config.train.steps)
    self.assertEqual(density[0], 1)
    for i in range(config.train.steps):
      updates, state = update(tiny_params(config, i + 1), state, params)
      params = optax.apply_updates(params, updates)
      named = traverse_util.flatten_dict(jax.device_get(params), sep="/")
      units = config_lib.block_units(config.model)
      table = rules.table(config.model, config.sparsity)
      for path, (numel, num_units, _) in units.items():
        axis = rules.match(table, path).unit_axis
        for matrix in named[path]:
          self.assertEqual(np.count_nonzero(matrix), int(density[i] * numel))
          alive = np.count_nonzero(matrix, axis)
          self.assertLen(alive, num_units)
          self.assertGreaterEqual(alive.min(), config.sparsity.min_alive)
          for bias in named[path.replace("kernel", "bias")]:
            self.assertEqual(
              np.count_nonzero(bias), int(density[i] * bias.size)
            )
      embedding = named[sites.EMBED]
      self.assertEqual(
        np.count_nonzero(embedding), int(density[i] * embedding.size)
      )
      self.assertTrue(named[sites.SINK].all())

  def test_projection_inside_the_chain_equals_projection_after_it(self):
    config = tiny_config()
    # One matrix read by its units, one written, one without units, a vector.
    few = lambda seed: {
      "wte": (tree := tiny_params(config, seed))["wte"],
      "layers": {"attn": tree["layers"]["attn"]},
    }
    params = few(0)
    kept_of = transforms.kept_tree(config, params)
    adam = lambda: optax.chain(
      transforms.normalize_rms(), optax.adam(0.05, eps=1e-3)
    )
    inside = optax.chain(adam(), transforms.keep_largest(kept_of))
    outside = adam()
    update_inside = jax.jit(inside.update)
    update_outside = jax.jit(outside.update)
    state, other_state = inside.init(params), outside.init(params)
    other = params

    def masked(i, k, p, u):
      new = np.asarray(p) + np.asarray(u)
      if k is None:
        return jnp.asarray(new)
      mask = functools.partial(
        sorted_mask,
        k=k.table[i],
        unit_axis=k.unit_axis,
        min_alive=k.min_alive if k.unit_axis is not None else 0,
      )
      matrices = new if k.is_stacked else new[None]
      keep = np.stack([mask(m) for m in matrices]).reshape(new.shape)
      return jnp.asarray(np.where(keep, new, np.float32(0)))

    for i in range(6):
      grads = few(i + 1)
      updates, state = update_inside(grads, state, params)
      params = optax.apply_updates(params, updates)
      updates, other_state = update_outside(grads, other_state, other)
      other = jax.tree.map(
        functools.partial(masked, i),
        kept_of,
        other,
        updates,
        is_leaf=transforms.is_kept,
      )
      chex.assert_trees_all_equal(
        jax.tree.map(lambda p: p == 0, params),
        jax.tree.map(lambda p: p == 0, other),
      )
      chex.assert_trees_all_close(params, other, rtol=1e-5)
      # Rounding may differ by the order of a fused sum; start level again.
      other = params

  def test_constants_never_change(self):
    config = tiny_config(density=1.0)
    fixed = {"bigram": "fixed", "positions": "sinusoidal"}
    model = dataclasses.replace(config.model, **fixed)
    config = dataclasses.replace(config, model=model)
    params, grads = tiny_params(config), tiny_params(config, 1)
    optimizer = transforms.sparse_adam(config, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    updates = traverse_util.flatten_dict(updates, sep="/")
    for name in (sites.LOGIT_BIAS, sites.BIGRAM, sites.POSITION):
      self.assertFalse(np.any(updates[name]))
    self.assertTrue(np.any(updates[sites.EMBED]))

  def test_dense_run_has_no_projection(self):
    config = tiny_config(density=1.0)
    tree = transforms.kept_tree(config, tiny_params(config))
    self.assertEmpty(jax.tree.leaves(tree))

  def test_survivors_are_whole_numbers_of_the_schedule(self):
    config = tiny_config(anneal_start=0.0, anneal_stop=0.5)
    shapes = jax.eval_shape(lambda: tiny_params(config))
    tree = transforms.kept_tree(config, shapes)
    # 64 of a matrix: densities 1, 5/6, 4/6, then 1/2.
    of = tree["layers"]["attn"]["c_proj"]["kernel"]
    np.testing.assert_array_equal(of.table, [64, 53, 42, 32, 32, 32])
    self.assertTrue(of.is_stacked)
    self.assertIsNone(tree["bigram_table"])


if __name__ == "__main__":
  absltest.main()
