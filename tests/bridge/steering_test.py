"""Steering and carry-over by identities: a model bridged to itself."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.bridge import carry, directory, maps, objective, steering
from sparse_jax.model import fingerprint, hooks
from sparse_jax.tasks import pairs as pairs_lib
from sparse_jax.tasks import sequences as sequences_lib
from sparse_jax.utils import errors


def own_bridge(**fields):
  """Returns a model bridged to itself by identities."""
  model, params, _ = helpers.tiny_model(n_layer=1, **fields)
  settings = config_lib.BridgeConfig(activation_fraction=1.0)
  span = objective.Span(model, model, settings)
  bridges = maps.identity(len(span.points), model.config.d_model)
  arrays = directory.Arrays(span, params, params, bridges)
  return directory.Bridge(span, arrays, tokenizer=None)


def some_pairs(count=4, length=6):
  """Returns pairs of random prompts, as many tokens on both sides."""
  rng = np.random.default_rng(0)
  lengths = np.full(count, length, np.int32)
  sides = rng.integers(0, 40, (2, count, length), np.int32)
  # The bigram table reads the last token, and no bridge lies before it.
  sides[1, :, -1] = sides[0, :, -1]
  return pairs_lib.Pairs(
    prompts=sides[0],
    counter_prompts=sides[1],
    lengths=lengths,
    counter_lengths=lengths,
    answers=np.full(count, 3, np.int32),
    counter_answers=np.full(count, 7, np.int32),
    prompt_texts=("",) * count,
    counter_texts=("",) * count,
    templates=np.arange(count, dtype=np.int32),
  )


def own_circuit(bridge, share):
  """Returns a circuit with a random share of the sparse model's nodes."""
  model = bridge.span.sparse
  return circuit_lib.Circuit(
    task="pairs",
    model_fingerprint=fingerprint.fingerprint(model, bridge.arrays.sparse),
    model_config=model.config,
    sparsity=model.sparsity,
    ablation="mean_pretrain",
    target_loss=0.15,
    logit_scale=1.0,
    node_mask=helpers.random_masks(model, share),
    means=helpers.random_means(model),
    edges=[],
    metrics={},
  )


class SteerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.bridge, self.pairs = own_bridge(), some_pairs()
    self.sequences = sequences_lib.task_sequences(self.pairs)

  def patched(self, site, shares):
    """Returns a site's most different node, and the answers as it is patched.

    These are the other answer's probabilities, by share of the other value.
    """
    model, params = self.bridge.span.dense, self.bridge.arrays.dense
    tokens = self.sequences.tokens

    @jax.jit
    def answers(params):
      own: dict[str, jax.Array] = {}
      model.apply(params, tokens, hooks.record(own))
      change = jnp.roll(own[f"0.{site}"], len(tokens) // 2, 0)
      change -= own[f"0.{site}"]
      index = jnp.argmax(jnp.sum(jnp.abs(change), (0, 1)))

      def patched(share):
        step = share * change[..., index]
        add = lambda name, _, x: (
          x.at[..., index].add(step) if name == site else x
        )
        logits = model.apply(params, tokens, add)[:, -1]
        rows = jnp.arange(len(tokens)), self.sequences.incorrect
        return jax.nn.softmax(logits)[rows]

      return index, jax.vmap(patched)(jnp.asarray(shares))

    index, probability = answers(params)
    return int(index), probability

  @parameterized.parameters(("mlp.post_act", True), ("attn.act_in", False))
  def test_identity_bridges_patch_the_node(self, site, with_controls):
    shares = (0.0, 0.5, 1.0)
    index, want = self.patched(site, shares)
    node = {"site": f"0.{site}", "index": index}
    found = steering.steer(self.bridge, node, shares, self.pairs)
    np.testing.assert_allclose(found.probability, want, rtol=1e-4, atol=1e-6)
    self.assertFalse(np.allclose(want[0], want[2]))
    self.assertEqual(found.node, f"0.{site}:{index}")
    if not with_controls:
      return
    for kind in steering.CONTROLS:
      control = steering.control(
        self.bridge, found.node, (0, 1), kind, self.pairs
      )
      np.testing.assert_array_equal(
        control.probability[0], found.probability[0]
      )
      self.assertFalse(np.allclose(*control.probability))
      self.assertFalse(
        np.allclose(control.probability[1], found.probability[2])
      )

  @parameterized.parameters(
    ("0.mlp.post_act:32", "index from 0 to 31"),
    ("0.mlp.post_act", "site '0.mlp.post_act'|site ''"),
    ("0.resid_in:0", "site of nodes"),
    ({"site": "3.attn.q"}, "3.attn.q"),
  )
  def test_no_such_node(self, node, message):
    with self.assertRaisesRegex(errors.InputError, message):
      steering.steer(self.bridge, node, 1, self.pairs)

  def test_sides_of_unequal_length(self):
    pairs = self.pairs.take(np.arange(2))
    pairs.counter_lengths[:] = 5
    with self.assertRaisesRegex(errors.InputError, "differ in length"):
      steering.steer(self.bridge, "0.attn.q:0", 1, pairs)


class CarryOverTest(absltest.TestCase):
  def test_all_channels_carry_everything_and_none_nothing(self):
    bridge, pairs = own_bridge(), some_pairs()
    found = carry.carry_over(bridge, own_circuit(bridge, 0.2), pairs)
    self.assertAlmostEqual(found["all"]["value"], 1, 4)
    self.assertNotAlmostEqual(found["share"]["value"], 1, 2)
    for n in found["num_channels"]:
      self.assertBetween(n, 1, 15)
    empty = carry.carry_over(bridge, own_circuit(bridge, 0), pairs)
    self.assertEqual(empty["num_channels"], [0, 0, 0])
    self.assertAlmostEqual(empty["share"]["value"], 0, 5)

  def test_channels_are_written_before_a_bridge_or_read_behind_it(self):
    bridge = own_bridge()
    circuit = own_circuit(bridge, 0)
    for i, site in enumerate(
      ("attn.act_in", "attn.resid_delta", "mlp.act_in", "mlp.resid_delta")
    ):
      circuit.node_mask[site][0, i] = True
    found = carry.circuit_channels(bridge, circuit)
    want = [[0, 2], [1, 2], [1, 3]]
    self.assertEqual([np.flatnonzero(row).tolist() for row in found], want)

  def test_circuit_of_another_model(self):
    bridge = own_bridge()
    other = own_circuit(own_bridge(sink=False), 0.2)
    with self.assertRaisesRegex(errors.InputError, "the bridge's sparse model"):
      carry.carry_over(bridge, other, some_pairs())


if __name__ == "__main__":
  absltest.main()
