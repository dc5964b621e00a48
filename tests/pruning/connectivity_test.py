"""Nodes on a path from the input to the answer, against hand-drawn graphs."""

import helpers
import hypothesis
import jax
import numpy as np
from absl.testing import absltest
from hypothesis import strategies as st

from sparse_jax import sites
from sparse_jax.pruning import connectivity


def empty():
  """A tiny model without edges, and masks that keep everything."""
  model, params, _ = helpers.tiny_model()
  params = jax.tree.map(np.zeros_like, params)
  masks = {
    name: np.ones(model.config.site_shape(name), bool)
    for name in sites.LAYER_NODE_SITES
  }
  return params, masks


def found(params, masks, answers=(1, 2), parallel=False):
  on = connectivity.on_a_path(params, masks, 4, np.array(answers), parallel)
  return {
    (name, int(row), int(index))
    for name, mask in on.items()
    for row, index in zip(*np.nonzero(mask), strict=True)
  }


class PathsTest(absltest.TestCase):
  def test_a_chain_through_an_mlp_is_on_a_path_a_dead_end_is_not(self):
    params, masks = empty()
    params["wte"]["embedding"][7, 3] = 1.0
    params["layers"]["mlp"]["c_fc"]["kernel"][0, 3, 5] = 1.0
    params["layers"]["mlp"]["c_proj"]["kernel"][0, 5, 9] = 1.0
    # A neuron that writes to a channel no answer reads, and one without input.
    params["layers"]["mlp"]["c_fc"]["kernel"][0, 3, 6] = 1.0
    params["layers"]["mlp"]["c_proj"]["kernel"][0, 6, 10] = 1.0
    params["layers"]["mlp"]["c_proj"]["kernel"][0, 8, 9] = 1.0
    params["lm_head"]["embedding"][1, 9] = 1.0
    self.assertEqual(
      found(params, masks),
      {("mlp.act_in", 0, 3), ("mlp.post_act", 0, 5), ("mlp.resid_delta", 0, 9)},
    )
    masks["mlp.post_act"][0, 5] = False
    self.assertEqual(found(params, masks), set())

  def test_queries_and_keys_count_with_the_values_of_their_head(self):
    params, masks = empty()
    params["wte"]["embedding"][7, 0] = 1.0
    attn = params["layers"]["attn"]
    attn["c_attn"]["kernel"][1, 0, 1] = 1.0  # A query of head 0.
    attn["c_attn"]["kernel"][1, 0, 16 + 13] = 1.0  # A key of head 3.
    attn["c_attn"]["kernel"][1, 0, 32 + 2] = 1.0  # A value of head 0.
    attn["c_proj"]["kernel"][1, 2, 4] = 1.0
    params["lm_head"]["embedding"][2, 4] = 1.0
    self.assertEqual(
      found(params, masks),
      {
        ("attn.act_in", 1, 0),
        ("attn.q", 1, 1),
        ("attn.v", 1, 2),
        ("attn.resid_delta", 1, 4),
      },
    )
    self.assertEqual(found(params, masks, answers=(5, 6)), set())

  def test_a_write_reaches_a_later_read_but_not_an_earlier_one(self):
    params, masks = empty()
    params["wte"]["embedding"][7, 0] = 1.0
    fc = params["layers"]["mlp"]["c_fc"]["kernel"]
    proj = params["layers"]["mlp"]["c_proj"]["kernel"]
    fc[0, 0, 1] = proj[0, 1, 2] = 1.0
    fc[1, 2, 3] = proj[1, 3, 4] = 1.0
    params["lm_head"]["embedding"][1, 4] = 1.0
    self.assertLen(found(params, masks), 6)
    fc[:], proj[:] = fc[::-1].copy(), proj[::-1].copy()
    self.assertEqual(found(params, masks), set())

  def test_a_parallel_mlp_does_not_read_the_attention_beside_it(self):
    params, masks = empty()
    params["wte"]["embedding"][7, 0] = 1.0
    attn, mlp = params["layers"]["attn"], params["layers"]["mlp"]
    attn["c_attn"]["kernel"][0, 0, 32 + 2] = 1.0
    attn["c_proj"]["kernel"][0, 2, 4] = 1.0
    mlp["c_fc"]["kernel"][:, 4, 5] = 1.0
    mlp["c_proj"]["kernel"][:, 5, 9] = 1.0
    params["lm_head"]["embedding"][1, 9] = 1.0
    serial = found(params, masks)
    parallel = found(params, masks, parallel=True)
    of_mlp = {"mlp.act_in", "mlp.post_act", "mlp.resid_delta"}
    self.assertEqual(
      serial - parallel,
      {node for node in serial if node[:2] in {(name, 0) for name in of_mlp}},
    )
    # The next layer's MLP reads it.
    self.assertIn(("mlp.act_in", 1, 4), parallel)
    mlp["c_fc"]["kernel"][1] = 0
    self.assertEqual(found(params, masks, parallel=True), set())
    self.assertNotEmpty(found(params, masks))

  @hypothesis.given(st.integers(0, 10_000), st.floats(0.05, 1))
  @hypothesis.settings(max_examples=25, deadline=None)
  def test_a_subset_that_stays(self, seed, share):
    model, params, _ = helpers.tiny_model()
    params = helpers.sparsify(params, 0.15, seed)
    masks = helpers.random_masks(model, share, seed)
    once = connectivity.on_a_path(params, masks, 4, np.array([1, 2]))
    for name, mask in once.items():
      self.assertFalse(np.any(mask & ~masks[name]))
    again = connectivity.on_a_path(params, once, 4, np.array([1, 2]))
    for name, mask in again.items():
      np.testing.assert_array_equal(mask, once[name])


if __name__ == "__main__":
  absltest.main()
