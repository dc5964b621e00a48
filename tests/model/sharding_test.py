"""The same step on one device and on meshes of four; who holds what."""

import functools

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec as P

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import edges, sharding, transformer
from sparse_jax.training import collectives, loop, transforms
from sparse_jax.utils import errors

CONFIG = config_lib.from_config_dict(
  {
    "data": {"context_length": 8},
    "model": {
      "n_layer": 1,
      "d_model": 16,
      "d_head": 4,
      "d_mlp": 32,
      "vocab_size": 40,
      "bigram": "none",
      "tied": True,
    },
    "sparsity": {
      "density": 0.4,
      "min_alive": 2,
      "activation_sites": ["mlp.post_act"],
      "anneal_start": 0.0,
      "anneal_stop": 0.0,
    },
    "train": {"steps": 4, "warmup_fraction": 0.0, "batch_size": 4},
  }
)
MESHES = ((4, 1), (2, 2), (1, 4))


@functools.cache
def model_and_optimizer():
  model = transformer.Model(CONFIG.model, CONFIG.sparsity)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  return model, transforms.sparse_adam(CONFIG, shapes)


@functools.cache
def initial_state():
  init = functools.partial(loop.init_state, *model_and_optimizer())
  return jax.device_get(jax.jit(init)(jax.random.key(0)))


def two_steps(state, **shardings):
  """Returns the state and metrics after two steps; traces the step once."""
  model, optimizer = model_and_optimizer()

  @functools.partial(jax.jit, **shardings)
  @chex.assert_max_traces(n=1)
  def step(state, windows):
    return loop.train_step(model, optimizer, state, windows)

  rng = np.random.default_rng(0)
  for _ in range(2):
    windows = rng.integers(0, 40, (4, 9)).astype(np.int32)
    if shardings:
      mesh = shardings["in_shardings"][1].mesh
      windows = sharding.global_batch(mesh, windows)
    state, metrics = step(state, windows)
  return state, metrics


@functools.cache
def on_one_device():
  return jax.device_get(two_steps(initial_state()))


class ShardedStepTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    chex.clear_trace_counter()

  @parameterized.parameters(*MESHES)
  def test_equals_the_step_on_one_device(self, num_data, num_model):
    mesh = sharding.make_mesh(num_model)
    self.assertEqual(dict(mesh.shape), {"data": num_data, "model": num_model})
    where = sharding.tree_shardings(mesh, initial_state())
    state, metrics = two_steps(
      jax.device_put(initial_state(), where),
      in_shardings=(where, sharding.batch_sharding(mesh)),
      out_shardings=(where, sharding.replicated(mesh)),
    )
    for path, axis in (
      (sites.C_ATTN, 2),
      (sites.C_FC, 2),
      (sites.ATTN_C_PROJ, 1),
      (sites.MLP_C_PROJ, 1),
      (sites.EMBED, 0),
    ):
      moments = state.opt_state.inner_states["trained"].inner_state[1]
      for tree in (state.params, moments.mu, moments.nu):
        leaf = edges.parameter(tree, path)
        shards = leaf.addressable_shards
        self.assertLen(shards, 4)
        for shard in shards:
          want = list(leaf.shape)
          want[axis] //= num_model
          self.assertEqual(list(shard.data.shape), want)
    self.assertTrue(state.params["ln_f"]["scale"].sharding.is_fully_replicated)
    want_state, want_metrics = on_one_device()
    chex.assert_trees_all_close(
      jax.device_get(state.params), want_state.params, atol=1e-5
    )
    chex.assert_trees_all_close(
      jax.device_get(metrics), want_metrics, rtol=1e-4
    )
    chex.assert_trees_all_equal(
      jax.tree.map(lambda w: w != 0, state.params["layers"]["attn"]["c_attn"]),
      jax.tree.map(
        lambda w: w != 0, want_state.params["layers"]["attn"]["c_attn"]
      ),
    )


class KeepLargestTest(parameterized.TestCase):
  @parameterized.parameters(
    (sites.C_ATTN, (2, 16, 64), -2), (sites.MLP_C_PROJ, (2, 64, 16), -1)
  )
  def test_of_a_split_matrix_is_exact_and_moves_no_weight(
    self, path, shape, unit_axis
  ):
    # Small whole numbers: ties at the threshold, and on both sides of a cut.
    w = np.random.default_rng(0).integers(-9, 10, shape).astype(np.float32)
    size = w[0].size
    kept = transforms.Kept(np.array([size // 5]), True, unit_axis, 3)
    mesh = sharding.make_mesh(4)
    (where,) = jax.tree.leaves(sharding.tree_shardings(mesh, nested(path, w)))
    self.assertIn("model", where.spec)
    split = jax.device_put(w, where)
    with jax.set_mesh(mesh):
      program = (
        jax.jit(kept.mask, out_shardings=where).lower(split, 0).compile()
      )
    found = collectives.of_program(program)
    self.assertNotEmpty(found)
    for one in found:
      self.assertEqual(one.kind, "all-reduce")
      for counts in one.shapes:  # One a matrix, of two.
        self.assertLessEqual(np.prod(counts), 2)
    np.testing.assert_array_equal(program(split, 0), kept.mask(w, 0))


def nested(path, leaf):
  """Returns the tree that holds a leaf at a path."""
  for key in reversed(path.split("/")):
    leaf = {key: leaf}
  return leaf


class TableTest(parameterized.TestCase):
  @parameterized.parameters(
    (sites.C_ATTN, (2, 16, 48), P(None, None, "model")),
    (sites.C_FC, (2, 16, 64), P(None, None, "model")),
    (sites.ATTN_C_PROJ, (2, 16, 16), P(None, "model", None)),
    (sites.MLP_C_PROJ, (2, 64, 16), P(None, "model", None)),
    ("layers/attn/c_attn/bias", (2, 48), P(None, "model")),
    ("layers/mlp/c_fc/bias", (2, 64), P(None, "model")),
    ("layers/mlp/c_proj/bias", (2, 16), P()),
    (sites.EMBED, (40, 16), P("model", None)),
    (sites.UNEMBED, (40, 16), P("model", None)),
    (sites.BIGRAM, (40, 40), P("model", None)),
    (sites.SINK, (2, 4), P()),
    (sites.LOGIT_BIAS, (40,), P()),
    # 41 rows do not divide by 2, so they stay whole.
    (sites.EMBED, (41, 16), P()),
  )
  def test_by_parameter_path(self, path, shape, want):
    tree = nested(path, jax.ShapeDtypeStruct(shape, np.float32))
    (got,) = jax.tree.leaves(
      sharding.tree_shardings(sharding.make_mesh(2), tree)
    )
    self.assertEqual(got.spec, want)

  def test_mesh_that_the_devices_do_not_fill(self):
    with self.assertRaisesRegex(
      errors.InputError, "train.model_parallel=3 .* a divisor of 4 devices"
    ):
      sharding.make_mesh(3)

  def test_global_batch_is_split_over_data(self):
    rows = np.arange(8).reshape(4, 2)
    batch = sharding.global_batch(sharding.make_mesh(2), rows)
    np.testing.assert_array_equal(batch, rows)
    self.assertEqual(
      {shard.data.shape for shard in batch.addressable_shards}, {(2, 2)}
    )


if __name__ == "__main__":
  absltest.main()
