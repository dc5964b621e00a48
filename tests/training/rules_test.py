"""The table of rules covers every parameter, and says what it should."""

import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized
from flax import traverse_util

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.model import transformer
from sparse_jax.training import rules
from sparse_jax.utils import errors

VARIANTS = (
  ("default", {}),
  ("layer_norm", {"norm": "layer"}),
  ("layer_norm_no_bias", {"norm": "layer", "norm_bias": False}),
  ("no_bias", {"bias": False}),
  ("tied", {"tied": True}),
  ("no_sink", {"sink": False}),
  ("no_bigram", {"bigram": "none"}),
  ("fixed_bigram", {"bigram": "fixed"}),
  ("learned", {"positions": "learned"}),
  ("concatenated", {"positions": "concatenated"}),
  ("concatenated_layer", {"positions": "concatenated", "norm": "layer"}),
  ("sinusoidal", {"positions": "sinusoidal"}),
)
SPARSITY = config_lib.SparsityConfig()


def shapes(config):
  model = transformer.Model(config, config_lib.SparsityConfig(min_alive=0))
  return jax.eval_shape(model.init, jax.random.key(0))


def tiny(**fields):
  return config_lib.ModelConfig(
    d_model=8,
    d_head=4,
    d_mlp=20,
    d_position=6,
    vocab_size=40,
    context_length=8,
    **fields,
  )


flat = functools.partial(traverse_util.flatten_dict, sep="/")


class RulesTest(parameterized.TestCase):
  @parameterized.named_parameters(*VARIANTS)
  def test_every_parameter_of_every_variant_has_a_rule(self, fields):
    tree = shapes(tiny(**fields))
    table = rules.table(tiny(**fields), SPARSITY)
    named = rules.rule_tree(tiny(**fields), SPARSITY, tree)
    for path, leaf in flat(tree).items():
      rule = rules.match(table, path)
      # Matrices of the decoder are sparse; vectors and tables are not.
      is_matrix = path.endswith(("kernel", "embedding"))
      is_sparse = is_matrix and path != sites.POSITION
      self.assertEqual(rule.density is not None, is_sparse)
      self.assertEqual(rule.decays, is_matrix)
      self.assertGreaterEqual(leaf.ndim, 1)
    self.assertEqual(jax.tree.structure(named), jax.tree.structure(tree))

  @parameterized.named_parameters(*VARIANTS)
  def test_units_are_those_that_the_config_check_counts(self, fields):
    config = tiny(**fields)
    tree = flat(shapes(config))
    table = rules.table(config, SPARSITY)
    for path, (numel, units, length) in config_lib.block_units(config).items():
      _, *matrix = tree[path].shape
      axis = rules.match(table, path).unit_axis
      self.assertEqual(np.prod(matrix), numel)
      self.assertEqual(matrix[axis], length)
      self.assertEqual(numel // length, units)

  @parameterized.parameters(
    "layers/attn/gate/kernel",
    "layers/attn/c_attn/kernel/extra",
    "extra/layers/attn/c_attn/kernel",
    "wte/scale",
    "",
  )
  def test_a_new_parameter_without_a_rule_is_an_error(self, path):
    table = rules.table(tiny(), SPARSITY)
    with self.assertRaisesRegex(errors.InputError, "no sparsity rule") as e:
      rules.match(table, path)
    self.assertIn(repr(path), str(e.exception))

  def test_a_tree_with_an_unknown_leaf_is_an_error(self):
    tree = {"wte": {"embedding": np.zeros((3, 2))}, "gate": np.zeros(2)}
    with self.assertRaisesRegex(errors.InputError, "'gate'"):
      rules.rule_tree(tiny(), SPARSITY, tree)

  def test_the_first_match_wins(self):
    first, second = rules.Rule("a|b", decays=True), rules.Rule("a")
    self.assertIs(rules.match((first, second), "a"), first)
    self.assertIs(rules.match((second, first), "b"), first)

  def test_biases_are_an_option(self):
    for biases, density in (("dense", None), ("sparse", "block")):
      sparsity = config_lib.SparsityConfig(biases=biases)
      table = rules.table(tiny(), sparsity)
      bias = rules.match(table, "layers/mlp/c_fc/bias")
      self.assertEqual(bias.density, density)
      self.assertFalse(bias.decays)

  @parameterized.named_parameters(
    ("learned", {"positions": "learned"}, {sites.LOGIT_BIAS}),
    ("fixed", {"bigram": "fixed"}, {sites.LOGIT_BIAS, sites.BIGRAM}),
    (
      "sinusoidal",
      {"positions": "sinusoidal"},
      {sites.LOGIT_BIAS, sites.POSITION},
    ),
  )
  def test_constants_are_not_trained(self, fields, want):
    tree = rules.rule_tree(tiny(**fields), SPARSITY, shapes(tiny(**fields)))
    constants = {p for p, rule in flat(tree).items() if not rule.trained}
    self.assertEqual(constants, want)


if __name__ == "__main__":
  absltest.main()
