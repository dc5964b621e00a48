"""Configuration: defaults, partial configs, and every refusal."""

import json
import re

import ml_collections
from absl.testing import absltest, parameterized

from sparse_jax import config, sites
from sparse_jax.utils import errors

# (field, value, what is accepted): the message is `field=value is not accepted;
# need …`.
REFUSED = (
  # Mistyped.
  ("model", 3, "a group of fields"),
  ("model.n_layer", "two", "a whole number"),
  ("model.n_layer", 2.5, "a whole number"),
  ("model.n_layer", True, "a whole number"),
  ("model.d_mlp", 1e308, "a whole number below 2^63"),
  ("model.bias", 1, "bool"),
  ("model.norm", 5, "str"),
  ("train.learning_rate", "fast", "a finite number"),
  ("train.learning_rate", float("nan"), "a finite number"),
  ("train.learning_rate", float("inf"), "a finite number"),
  ("train.learning_rate", 10**400, "a finite number"),
  ("prune.k_coefs", 0.1, "a list of float"),
  # Out of range.
  ("seed", -1, "from 0 to 2^32 - 1"),
  ("seed", 2**32, "from 0 to 2^32 - 1"),
  ("data.vocab_size", 256, "at least 257"),
  ("data.context_length", 0, "at least 1"),
  ("data.eval_fraction", 0.0, "between 0 and 1"),
  ("data.eval_fraction", 1.0, "between 0 and 1"),
  ("data.max_megabytes", -1.0, "0 (no limit) or more"),
  ("data.source", "", "a source"),
  ("model.n_layer", 0, "at least 1"),
  ("model.d_mlp", -4, "0 (derived) or more"),
  ("model.d_model", 100, "a multiple of model.d_head=16"),
  ("model.positions", "alibi", "one of none, learned"),
  ("model.norm", "batch", "one of rms, layer"),
  ("model.activation", "swish", "one of gelu, gelu_tanh, relu"),
  ("model.attention_bias", "input", "one of all, output, none"),
  ("model.norm_eps", 0.0, "above 0"),
  ("model.parallel", 1, "bool"),
  ("model.rotary_base", 0.0, "above 0"),
  ("model.rotary_share", 0.0, "above 0 and at most 1"),
  ("model.windows", (-1, 0), "whole numbers from 0 (no limit)"),
  ("model.windows", (2**31, 0), "whole numbers from 0 (no limit)"),
  ("model.windows", (4,), "one for each of model.n_layer=2 layers"),
  ("model.bigram", "yes", "one of learned, fixed, none"),
  ("model.residual_activation", "gelu", "one of identity, relu"),
  ("sparsity.density", 0.0, "above 0 and at most 1"),
  ("sparsity.density", -0.1, "above 0 and at most 1"),
  ("sparsity.density", 1.5, "above 0 and at most 1"),
  ("sparsity.density", 1e-3, "at least 0.03125 for layers/attn/c_attn"),
  ("sparsity.min_alive", -1, "0 or more"),
  ("sparsity.activation_fraction", 0.0, "above 0 and at most 1"),
  ("sparsity.activation_fraction", 1.01, "above 0 and at most 1"),
  ("sparsity.activation_fraction", 1e-3, "at least 1/128"),
  ("sparsity.embedding_rule", "same", "one of equal, expanded"),
  ("sparsity.embedding_anneal", "slow", "one of smooth, abrupt"),
  ("sparsity.biases", "none", "one of dense, sparse"),
  ("sparsity.expansion_factor", 0.0, "above 0"),
  ("sparsity.anneal_start", -0.1, "from 0 to 1"),
  ("sparsity.anneal_stop", 1.1, "from sparsity.anneal_start=0.01 to 1"),
  ("sparsity.anneal_shape", "cosine", "one of linear, loglog"),
  ("sparsity.anneal_exponent", 0.0, "above 0"),
  ("train.steps", 0, "at least 1"),
  ("train.batch_size", 0, "at least 1"),
  ("train.checkpoint_every", 0, "at least 1"),
  ("train.log_every", -1, "at least 1"),
  ("train.eval_every", 0, "at least 1"),
  ("train.eval_batches", 0, "at least 1"),
  ("train.model_parallel", 0, "at least 1"),
  ("train.learning_rate", 0.0, "above 0"),
  ("train.warmup_fraction", 2.0, "from 0 to 1"),
  ("train.gradient", "none", "one of normalize_rms, clip_rms"),
  ("train.adam_b1", 1.0, "from 0 to below 1"),
  ("train.adam_b2", -0.1, "from 0 to below 1"),
  ("train.adam_eps", 0.0, "above 0"),
  ("train.weight_decay", -0.1, "0 or more"),
  ("train.kernels", "pallas", "one of xla, fused"),
  ("train.compute_dtype", "float16", "one of auto, float32, bfloat16"),
  ("prune.steps", 0, "at least 1"),
  ("prune.target_loss", 0.0, "above 0"),
  ("prune.temperature", -1.0, "above 0"),
  ("prune.warmup_fraction", -1.0, "from 0 to 1"),
  ("prune.beta2", 1.0, "from 0 to below 1"),
  ("prune.k_coefs", (), "one or more numbers"),
  ("prune.k_coefs", (1e-3, -1.0), "at least 0"),
  ("prune.ablation", "median", "one of mean_pretrain, mean_task, zero"),
  ("prune.loss_unit", "bits", "one of per_side, per_pair"),
  ("prune.sites", (), "one or more sites"),
)


# (field, value, what the message says) where it names another field or a part.
REFUSED_ELSEWHERE = (
  ("sead", 1, "unknown field 'sead'; did you mean 'seed'?"),
  ("model.d_modl", 64, "did you mean 'model.d_model'?"),
  ("train.optimizer.beta", 0.9, "unknown field 'train.optimizer'"),
  ("tasks.first", "x", "tasks={'first': 'x'} is not accepted; need a list"),
  ("model.d_head", 48, "model.d_model=128 is not accepted; need a multiple"),
  ("sparsity.min_alive", 100, "min_alive=100 protects 38400 of 49152 weights"),
  ("sparsity.anneal_start", 0.9, "anneal_stop=0.5 is not accepted; need a"),
  ("sparsity.activation_sites", ("attn.qq",), "did you mean 'attn.q'?"),
  ("prune.sites", ("resid_in",), "unknown site in prune.sites 'resid_in'"),
  ("prune.k_coefs", ("a",), "prune.k_coefs='a' is not accepted"),
)


def named(cases):
  """Returns the cases with a name each, as parameterized wants them."""
  return [
    (f"{i}_{re.sub('[^a-z0-9]+', '_', f'{case[0]}_{case[1]}'.lower())}", *case)
    for i, case in enumerate(cases)
  ]


def nested(name, value):
  """Returns `{"a": {"b": value}}` of `a.b`."""
  for part in reversed(name.split(".")):
    value = {part: value}
  return value


class RefusedTest(parameterized.TestCase):
  @parameterized.named_parameters(*named(REFUSED))
  def test_names_field_value_and_accepted(self, name, value, accepted):
    with self.assertRaises(errors.InputError) as e:
      config.from_config_dict(nested(name, value))
    start, _, end = str(e.exception).partition("; need ")
    self.assertEqual(start, f"{name}={value!r} is not accepted")
    self.assertIn(accepted, end)

  @parameterized.named_parameters(*named(REFUSED_ELSEWHERE))
  def test_says(self, name, value, message):
    with self.assertRaises(errors.InputError) as e:
      config.from_config_dict(nested(name, value))
    self.assertIn(message, str(e.exception))

  def test_a_model_of_another_vocabulary(self):
    c = config.from_config_dict({"model": {"vocab_size": 300}})
    with self.assertRaisesRegex(errors.InputError, "=300 .* tokenizer's 512"):
      config.resolve(c, 512)

  def test_windows_longer_than_the_positions(self):
    c = config.from_config_dict(
      {"model": {"positions": "learned", "context_length": 8}}
    )
    with self.assertRaisesRegex(
      errors.InputError, "data.context_length=256 .* model.context_length=8"
    ):
      config.resolve(c, 512)


class AcceptedTest(parameterized.TestCase):
  def test_nothing_gives_the_defaults(self):
    self.assertEqual(config.from_config_dict({}), config.Config())

  def test_a_part_is_completed(self):
    c = config.from_config_dict(
      ml_collections.ConfigDict({"model": {"d_model": 64}, "seed": 3})
    )
    self.assertEqual((c.model.d_model, c.model.n_layer, c.seed), (64, 2, 3))
    self.assertEqual(c.train, config.TrainConfig())

  @parameterized.named_parameters(
    ("float_of_int", "train.learning_rate", 1, 1.0),
    ("int_of_whole_float", "train.steps", 1e3, 1000),
    ("tuple_of_list", "prune.k_coefs", [1, 0.5], (1.0, 0.5)),
    ("one_site", "prune.sites", ["attn.q"], ("attn.q",)),
  )
  def test_conversions_that_lose_nothing(self, name, value, want):
    c = config.from_config_dict(nested(name, value))
    for part in name.split("."):
      c = getattr(c, part)
    self.assertEqual(c, want)
    self.assertIs(type(c), type(want))

  def test_survives_json_and_config_dict(self):
    c = config.from_config_dict(
      {"seed": 5, "sparsity": {"activation_sites": ["attn.v"]}}
    )
    text = json.dumps(config.to_dict(c))
    self.assertEqual(config.from_config_dict(json.loads(text)), c)
    self.assertEqual(config.from_config_dict(config.to_config_dict(c)), c)

  @parameterized.parameters(0.03125, 0.5, 1.0)
  def test_as_few_as_are_protected(self, density):
    # 4 of 128 inputs a unit are protected: 1/32 is just enough.
    config.from_config_dict({"sparsity": {"density": density}})

  def test_resolve_fills_in_what_data_says(self):
    c = config.resolve(config.Config(), 777)
    self.assertEqual(
      (c.model.vocab_size, c.model.d_mlp, c.model.context_length),
      (777, 512, 256),
    )
    self.assertEqual(config.resolve(c, 777), c)

  def test_target_a_side(self):
    for unit, want in (("per_side", 0.3), ("per_pair", 0.15)):
      c = config.PruneConfig(target_loss=0.3, loss_unit=unit)
      self.assertAlmostEqual(c.target_per_side, want)

  def test_a_run_may_move_to_another_machine(self):
    there, here = (
      config.settings(config.from_config_dict(fields))
      for fields in (
        {"data": {"directory": "/a"}, "train": {"kernels": "fused"}},
        {},
      )
    )
    self.assertIsNone(config.first_difference(here, there))
    there["train"]["steps"] += 1
    field, theirs, mine = config.first_difference(here, there)
    self.assertEqual((field, theirs - mine), ("train.steps", 1))

  def test_active_channels(self):
    s = config.SparsityConfig(
      activation_fraction=0.3, activation_sites=("attn.q",)
    )
    self.assertEqual(s.num_active("attn.q", 10), 3)
    self.assertEqual(s.num_active("attn.k", 10), 10)

  def test_widths_by_site(self):
    model = config.ModelConfig(d_model=32, d_head=8, d_mlp=48)
    self.assertEqual(model.n_head, 4)
    for name, site in sites.SITES.items():
      want = 48 if site.width == "d_mlp" else 32
      self.assertEqual(model.width(name), want)


class ErrorsTest(absltest.TestCase):
  def test_one_line(self):
    self.assertEqual(str(errors.InputError("a\n  b")), "a b")

  def test_suggestion_only_when_close(self):
    message = str(errors.unknown_name("task", "zzz", ["quote"]))
    self.assertEqual(message, "unknown task 'zzz'; accepted: quote")


if __name__ == "__main__":
  absltest.main()
