"""Hugging Face directories: agreement with the reference, and every refusal."""

import functools
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

import helpers
import jax
import ml_dtypes
import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

import sparse_jax as sj
from sparse_jax import checkpoint, sites
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.huggingface import models as hf_models
from sparse_jax.model import edges, hooks
from sparse_jax.released import models as released_models
from sparse_jax.utils import errors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "hf"
REPOSITORY = pathlib.Path(__file__).parents[2]
NAMES = ("gpt2", "gpt_neox", "gpt_neox_serial_sharded", "gpt_neo")
SHARDED = "gpt_neox_serial_sharded"
TOLERANCE = 2e-4


@functools.cache
def golden(name):
  """Returns (model, params, expected) of a directory."""
  model, params = sj.load_model(GOLDEN / name)
  with np.load(GOLDEN / name / "expected.npz") as expected:
    return model, params, dict(expected)


@functools.partial(jax.jit, static_argnames="model")
def run(model, params, tokens):
  """Returns the logits without hooks, and with them, and every site."""
  acts = {}
  with_hook = model.apply(params, tokens, hooks.record(acts))
  return model.apply(params, tokens), with_hook, acts


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters(*NAMES)
  def test_logits_and_hidden_states(self, name):
    model, params, expected = golden(name)
    logits, with_hook, acts = run(model, params, expected["tokens"])
    close = functools.partial(
      np.testing.assert_allclose, atol=TOLERANCE, rtol=0
    )
    close(logits, expected["logits"])
    close(with_hook, expected["logits"])
    for layer in range(model.config.n_layer):
      close(acts[f"{layer}.resid_in"], expected[f"hidden_{layer}"])
    # The reference gives the last stream behind the last norm.
    x, p = np.asarray(acts["final_resid"]), params["ln_f"]
    x = x - x.mean(-1, keepdims=True)
    x /= np.sqrt((x**2).mean(-1, keepdims=True) + model.config.norm_eps)
    normed = x * p["scale"] + p["bias"]
    close(normed, expected[f"hidden_{model.config.n_layer}"])

  @parameterized.parameters(*NAMES)
  def test_every_pair_of_nodes_that_a_matrix_joins_is_an_edge(self, name):
    model, params, _ = golden(name)
    mask = helpers.random_masks(model, 0.3)
    # Serial or parallel, biases or none: no weight of a dense model is zero.
    joined = (
      ("attn.act_in", "attn.q"),
      ("attn.act_in", "attn.k"),
      ("attn.act_in", "attn.v"),
      ("attn.v", "attn.resid_delta"),
      ("mlp.act_in", "mlp.post_act"),
      ("mlp.post_act", "mlp.resid_delta"),
    )
    want = sum(int(mask[a].sum(1) @ mask[b].sum(1)) for a, b in joined)
    self.assertEqual(edges.count_edges(params, mask), want)

  @parameterized.parameters(*NAMES)
  def test_a_foreign_model_is_dense_and_of_no_known_run(self, name):
    model, params, _ = golden(name)
    self.assertEqual(model.sparsity, hf_models.DENSE)
    self.assertEqual(
      {str(x.dtype) for x in jax.tree.leaves(params)}, {"float32"}
    )
    self.assertTrue(checkpoint.is_foreign(GOLDEN / name))
    self.assertIsNone(checkpoint.load_run(GOLDEN / name))


class DirectoryTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.root, self.folder = root, root / "model"

  def copy(self, name, **fields):
    """Copies a directory and sets fields of its config; ... removes one."""
    shutil.copytree(GOLDEN / name, self.folder, dirs_exist_ok=True)
    path = self.folder / "config.json"
    config = json.loads(path.read_text()) | fields
    config = {k: v for k, v in config.items() if v is not ...}
    path.write_text(json.dumps(config))

  def tensors(self):
    return safetensors.numpy.load_file(self.folder / "model.safetensors")

  def write(self, tensors):
    safetensors.numpy.save_file(tensors, self.folder / "model.safetensors")

  def assert_equal_to(self, name, atol=0.0):
    model, params, _ = golden(name)
    again, loaded = sj.load_model(self.folder)
    self.assertEqual(again.config, model.config)
    close = functools.partial(np.testing.assert_allclose, atol=atol, rtol=0)
    jax.tree.map(close, loaded, params)

  def assert_refused(self, message):
    with self.assertRaisesRegex(errors.InputError, message) as caught:
      sj.load_model(self.folder)
    text = str(caught.exception)
    self.assertStartsWith(text, str(self.folder))
    self.assertRegex(text, "need|accepted")
    self.assertNotIn("\n", text)

  # ------------------------- How released files differ -----------------------

  def test_names_without_their_prefix_and_buffers(self):
    self.copy("gpt2")
    tensors = {
      k.removeprefix("transformer."): v for k, v in self.tensors().items()
    }
    tensors["h.0.attn.bias"] = np.ones((1, 1, 32, 32), np.float32)
    tensors["h.2.attn.masked_bias"] = np.float32([-1e4])
    tensors["lm_head.weight"] = tensors["wte.weight"].copy()
    self.write(tensors)
    self.assert_equal_to("gpt2")

  def test_buffers_of_older_neox_files(self):
    self.copy("gpt_neox")
    tensors = self.tensors()
    for layer in range(3):
      name = f"gpt_neox.layers.{layer}.attention"
      tensors[f"{name}.bias"] = np.ones((1, 1, 64, 64), bool)
      tensors[f"{name}.masked_bias"] = np.array(-1e4, np.float32)
      tensors[f"{name}.rotary_emb.inv_freq"] = np.ones(1, np.float32)
    self.write(tensors)
    self.assert_equal_to("gpt_neox")

  @parameterized.parameters(
    {"rotary_pct": 0.25, "rotary_emb_base": 10000},
    {"rotary_pct": 0.25, "rope_scaling": None},
    {"partial_rotary_factor": 0.25, "rope_theta": 10000.0},
    {},
  )
  def test_older_names_of_rotary_fields(self, **fields):
    self.copy("gpt_neox", rope_parameters=..., **fields)
    self.assert_equal_to("gpt_neox")

  @parameterized.parameters(np.float16, ml_dtypes.bfloat16)
  def test_half_precision_is_widened(self, dtype):
    self.copy("gpt2")
    self.write({k: v.astype(dtype) for k, v in self.tensors().items()})
    self.assert_equal_to("gpt2", atol=0.02)
    _, params = sj.load_model(self.folder)
    self.assertEqual(params["wte"]["embedding"].dtype, np.float32)

  def test_a_link_to_the_weights_is_followed(self):
    self.copy("gpt2")
    blob = self.root / "blob"
    os.rename(self.folder / "model.safetensors", blob)
    (self.folder / "model.safetensors").symlink_to(blob)
    self.assert_equal_to("gpt2")

  def test_fields_without_effect_are_passed_over(self):
    self.copy(
      "gpt2",
      n_ctx=32,
      task_specific_params={"text-generation": {"max_length": 50}},
      torch_dtype="float16",
      _name_or_path="gpt2",
      something_new=None,
    )
    self.assert_equal_to("gpt2")

  def test_untied_and_tied(self):
    self.copy("gpt2", tie_word_embeddings=False)
    self.assert_refused("'lm_head.weight' is missing")
    tensors = self.tensors()
    tensors["lm_head.weight"] = 2 * tensors["transformer.wte.weight"]
    self.write(tensors)
    _, params = sj.load_model(self.folder)
    np.testing.assert_array_equal(
      params["lm_head"]["embedding"], tensors["lm_head.weight"]
    )
    self.copy("gpt2")
    self.write(tensors)
    self.assert_refused("'lm_head.weight' is not the embedding")

  def test_neox_without_attention_biases(self):
    self.copy("gpt_neox", attention_bias=False)
    self.assert_refused("tensor 'gpt_neox.layers.0.attention.dense.bias'")
    of_attention = (".query_key_value.bias", ".dense.bias")
    self.write(
      {k: v for k, v in self.tensors().items() if not k.endswith(of_attention)}
    )
    model, _ = sj.load_model(self.folder)
    self.assertEqual(model.config.attention_bias, "none")

  def test_layers_of_gpt_neo(self):
    self.copy("gpt_neo", attention_layers=...)
    self.assert_equal_to("gpt_neo")
    self.assertEqual(golden("gpt_neo")[0].config.windows, (0, 8, 0, 8))
    types = [[["global"], 1], [["local"], 3]]
    self.copy("gpt_neo", attention_layers=None, attention_types=types)
    model, _ = sj.load_model(self.folder)
    self.assertEqual(model.config.windows, (0, 8, 8, 8))
    types = [[["global"], 4]]
    self.copy("gpt_neo", attention_layers=None, attention_types=types)
    self.assertEqual(sj.load_model(self.folder)[0].config.windows, ())

  # ------------------------------ Configs ------------------------------------

  @parameterized.named_parameters(
    ("family", "gpt2", {"model_type": "llama"},
     "model_type='llama' is not accepted; need one of gpt2, gpt_neox, gpt_neo"),
    ("family_list", "gpt2", {"model_type": ["gpt2"]}, "need one of gpt2"),
    ("missing", "gpt2", {"n_layer": ...}, "n_layer is missing; need a whole"),
    ("text", "gpt2", {"n_embd": "32"}, "n_embd='32' is not accepted"),
    ("flag", "gpt2", {"n_head": True}, "n_head=True is not accepted"),
    ("fraction", "gpt2", {"n_layer": 2.5}, "n_layer=2.5 is not accepted"),
    ("zero", "gpt2", {"n_positions": 0}, "n_positions=0 is not accepted"),
    ("negative", "gpt2", {"vocab_size": -1}, "vocab_size=-1"),
    ("huge", "gpt2", {"n_embd": 10**15}, "n_embd=10{15} is not accepted"),
    ("layers", "gpt2", {"n_layer": 10**6}, "n_layer=1000000 is not accepted"),
    ("more_layers", "gpt2", {"n_layer": 9000}, "need those of the 9000 layers"),
    ("heads", "gpt2", {"n_head": 5}, "n_head=5 is not accepted; need a divis"),
    ("activation", "gpt2", {"activation_function": "silu"},
     "activation_function='silu' is not accepted; need one of gelu"),
    ("epsilon", "gpt2", {"layer_norm_epsilon": 0}, "layer_norm_epsilon=0"),
    ("by_layer", "gpt2", {"scale_attn_by_inverse_layer_idx": True},
     "scale_attn_by_inverse_layer_idx=True is not accepted; need false"),
    ("cross", "gpt2", {"add_cross_attention": True}, "add_cross_attention="),
    ("pruned", "gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads="),
    ("quantized", "gpt2", {"quantization_config": {"bits": 4}},
     "quantization_config=.*need null"),
    ("code", "gpt2", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map="),
    ("unknown", "gpt2", {"logit_softcap": 30.0},
     "logit_softcap=30.0 is not accepted; need null, since nothing is known"),
    ("rope_type", "gpt_neox",
     {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
     "rope_parameters: rope_type='linear' is not accepted; need \"default\""),
    ("rope_unknown", "gpt_neox", {"rope_parameters": {"factor": 2.0}},
     "rope_parameters: factor=2.0"),
    ("rope_scaling", "gpt_neox", {"rope_scaling": {"type": "dynamic"}},
     "rope_scaling: type='dynamic'"),
    ("rope_twice", "gpt_neox", {"rotary_pct": 0.5},
     "partial_rotary_factor=0.25 is not accepted; need the same as rotary_pct"),
    ("rotary_odd", "gpt_neox", {"rope_parameters": ..., "rotary_pct": 0.4},
     "config.json: model.rotary_share=0.4.*an even number"),
    ("rotary_much", "gpt_neox", {"rotary_pct": 1.5}, "rotary_pct=1.5"),
    ("head_dim", "gpt_neox", {"head_dim": 16}, "head_dim=16.*hidden_size"),
    ("kinds", "gpt_neo", {"attention_types": [[["sparse"], 4]]},
     "attention_types=.*sparse"),
    ("times", "gpt_neo", {"attention_types": [[["global"], 10**9]]},
     "attention_types=.*num_layers=4"),
    ("few", "gpt_neo", {"attention_types": [[["global"], 3]]},
     "attention_types="),
    ("shape", "gpt_neo", {"attention_types": ["global"]}, "attention_types="),
    ("contradiction", "gpt_neo", {"attention_layers": ["global"] * 4},
     "attention_layers=.*as attention_types has it"),
    ("window", "gpt_neo", {"window_size": 0}, "window_size=0"),
    ("width", "gpt2", {"n_embd": 64}, "transformer.wte.weight' has shape .211"),
    ("inner", "gpt_neox", {"intermediate_size": 100}, "need .100, 32"),
  )  # fmt: skip
  def test_a_bad_config_is_refused(self, name, fields, message):
    self.copy(name, **fields)
    self.assert_refused(message)

  @parameterized.parameters(
    ("[1]", "format=None; need 'sparse_jax model 1', or a Hugging Face"),
    ("{}", "format=None"),
    ('{"model_type": ', "not JSON"),
    ("[" * 100_000, "not JSON"),
    ('{"model_type": "gpt2", "n_embd": 1' + "0" * 5000 + "}", "not JSON"),
    ('{"model_type": "gpt2"}', "vocab_size is missing"),
  )
  def test_a_damaged_config_is_refused(self, text, message):
    self.copy("gpt2")
    (self.folder / "config.json").write_text(text)
    self.assert_refused(message)

  # ------------------------------ Weights ------------------------------------

  @parameterized.named_parameters(
    ("missing", lambda t: t.pop("transformer.h.1.mlp.c_fc.bias"),
     r"'transformer.h.1.mlp.c_fc.bias' is missing \(1 in all\)"),
    ("extra", lambda t: t.update(score=np.ones(3, np.float32)),
     r"'score' \(1 in all\) is not of the model"),
    ("layer_of_a_deeper_model",
     lambda t: t.update({"transformer.h.3.ln_1.bias": np.ones(32, "f4")}),
     "'transformer.h.3.ln_1.bias'"),
    ("transposed",
     lambda t: t.update({"transformer.h.0.mlp.c_fc.weight":
       np.ones((128, 32), np.float32)}),
     r"c_fc.weight' has shape \[128, 32\]; need \[32, 128\]"),
    ("integers",
     lambda t: t.update({"transformer.ln_f.bias": np.ones(32, np.int32)}),
     "'transformer.ln_f.bias' has type I32; need F32, F16, BF16"),
    ("nan", lambda t: t["transformer.wpe.weight"].fill(np.nan),
     "'transformer.wpe.weight' holds NaN or infinity"),
  )  # fmt: skip
  def test_bad_tensors_are_named(self, damage, message):
    self.copy("gpt2")
    tensors = self.tensors()
    damage(tensors)
    self.write(tensors)
    self.assert_refused(message)

  def test_damaged_files_are_refused(self):
    self.copy("gpt2")
    path = self.folder / "model.safetensors"
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    first = next(k for k in header if k != "__metadata__")

    def with_header(change):
      changed = json.loads(json.dumps(header))
      change(changed[first])
      text = json.dumps(changed).encode()
      return struct.pack("<Q", len(text)) + text + whole[8 + size :]

    for content in (
      b"",
      whole[:7],
      whole[: 8 + size // 2],
      whole[:-1],
      whole + b"0",
      struct.pack("<Q", 2**63) + whole[8:],
      struct.pack("<Q", 2**40) + whole[8:],
      struct.pack("<Q", 2) + b"[]" + whole[8 + size :],
      with_header(lambda t: t.update(dtype="F64")),
      with_header(lambda t: t.update(dtype="Q9")),
      with_header(lambda t: t.update(shape=[2**40, 2**40])),
      with_header(lambda t: t.update(shape=[-1, 2])),
      with_header(lambda t: t.update(data_offsets=[0, 2**62])),
      b"PK\x03\x04" + whole,
    ):
      path.write_bytes(content)
      self.assert_refused("model.safetensors.*need a whole safetensors file")
    path.unlink()
    self.assert_refused("neither model.safetensors nor model.safetensors.index")

  def index(self, change):
    """Copies the sharded directory and changes its index."""
    self.copy(SHARDED)
    path = self.folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))

  @parameterized.parameters(
    "../model.safetensors",
    "/etc/passwd",
    "a/b.safetensors",
    "..\\b.safetensors",
    "model.bin",
    "\0.safetensors",
    7,
    None,
  )
  def test_an_index_names_files_beside_it_alone(self, name):
    self.index(lambda names: names.update({next(iter(names)): name}))
    self.assert_refused("weight_map.*need the name of a .safetensors file")

  def test_damaged_shards_are_refused(self):
    shard = "model-00002-of-00004.safetensors"
    self.index(lambda names: None)
    (self.folder / shard).unlink()
    self.assert_refused(f"{shard} is missing")
    self.index(lambda names: names.update(dict.fromkeys(names, shard)))
    self.assert_refused(f"{shard}: tensor '.*' is missing; need what")
    self.index(lambda names: names.popitem())
    self.assert_refused("index.json: tensor '.*' is missing")
    self.index(lambda names: names.clear())
    self.assert_refused("weight_map is no object")
    self.copy(SHARDED)
    data = (self.folder / shard).read_bytes()
    (self.folder / shard).write_bytes(data[:-4])
    self.assert_refused(f"{shard}.*need a whole safetensors file")

  # ------------------------- Tokenizer and other formats ---------------------

  def test_the_tokenizer_has_the_models_ids(self):
    self.copy("gpt2")
    with self.assertRaisesRegex(errors.InputError, "tokenizer.json cannot be"):
      sj.load_tokenizer(self.folder)
    trained = tokenizer_lib.Tokenizer.train(["x = 'abc'\n"] * 3, 260)
    trained.save(self.folder / "tokenizer.json")
    with self.assertRaisesRegex(errors.InputError, "most the model's 211"):
      sj.load_tokenizer(self.folder)
    config = json.loads((self.folder / "config.json").read_text())
    config["vocab_size"] = 300
    (self.folder / "config.json").write_text(json.dumps(config))
    tokenizer = sj.load_tokenizer(self.folder)
    self.assertEqual(tokenizer.vocab_size, 300)
    self.assertEqual(tokenizer.token_text(299), "<|unused 299|>")
    self.assertEqual(tokenizer.encode("x = 'abc'"), trained.encode("x = 'abc'"))

  @parameterized.parameters("gpt2", "gpt_neox", "gpt_neo")
  def test_saved_as_ours_it_is_the_same_model(self, name):
    model, params, _ = golden(name)
    tokenizer = tokenizer_lib.Tokenizer.train(["x = 'abc'\n"] * 3, 258)
    sj.save_model(self.root / "ours", model, params, tokenizer)
    again, loaded = sj.load_model(self.root / "ours")
    self.assertEqual(again, model)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)

  @parameterized.parameters(
    ("gpt2", "model.activation='gelu_tanh'"),
    ("gpt_neox", "model.rotary_share=0.25"),
    ("gpt_neo", "model.attention_bias='output'"),
  )
  def test_the_released_format_does_not_hold_them(self, name, message):
    model, params, _ = golden(name)
    with self.assertRaisesRegex(errors.InputError, message):
      released_models.save_model(self.root / "out", model, params)
    self.assertFalse((self.root / "out").exists())

  def test_commands_refuse_with_one_line_and_status_2(self):
    self.copy("gpt2", model_type="bert")
    done = subprocess.run(
      [sys.executable, "-m", "experiments.tasks", f"--model={self.folder}"],
      cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    self.assertEqual(done.returncode, 2)
    self.assertRegex(done.stderr, r"\Aerror: .*model_type='bert'.*need .*\n\Z")

  def test_every_parameter_has_a_tensor(self):
    for name in NAMES:
      family, config = hf_models.read_config(GOLDEN / name)
      paths = {slot.path for slot in family.slots(config).values()}
      tree = golden(name)[1]
      leaves = jax.tree_util.tree_leaves_with_path(tree)
      left = {sites.path_name(path) for path, _ in leaves} - paths
      unembed = set() if config.tied else {sites.UNEMBED}
      self.assertEqual(left, {sites.LOGIT_BIAS} | unembed)


if __name__ == "__main__":
  absltest.main()
