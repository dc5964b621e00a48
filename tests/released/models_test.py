"""Agreement with the released files, and with a plain NumPy forward pass."""

import functools
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import helpers
import hypothesis
import jax
import ml_dtypes
import numpy as np
import safetensors.numpy
import torch_files as pt
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

import sparse_jax as sj
from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import loss as loss_lib
from sparse_jax.model import transformer
from sparse_jax.released import models as released_models
from sparse_jax.released import torch_file
from sparse_jax.training import loop, schedules, transforms
from sparse_jax.utils import errors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
REPOSITORY = pathlib.Path(__file__).parents[2]
DEFAULT = config_lib.SparsityConfig().activation_sites
# Every released option in at least one of two values that differ.
VARIANTS = (
  ("plain", 0.25, DEFAULT, {"positions": "none"}),
  ("joined", 0.4, DEFAULT, {"positions": "concatenated", "d_position": 6}),
  (
    "sinusoidal",
    0.5,
    ("mlp.act_in", "attn.k"),
    {
      "positions": "sinusoidal",
      "d_position": 5,
      "norm": "layer",
      "norm_bias": False,
      "bigram": "fixed",
      "tied": True,
    },
  ),
  (
    "residual",
    0.5,
    ("resid_in", "resid_mid", "mlp.post_act"),
    {
      "positions": "learned",
      "residual_activation": "relu",
      "activation": "relu",
      "norm": "layer",
      "bias": False,
      "sink": False,
      "bigram": "none",
    },
  ),
)


@functools.cache
def variant(name: str):
  _, share, active, fields = next(v for v in VARIANTS if v[0] == name)
  model, params, tokens = helpers.tiny_model(**fields)
  sparsity = config_lib.SparsityConfig(
    activation_fraction=share, activation_sites=active
  )
  return transformer.Model(model.config, sparsity), params, tokens


def pt_state_dict(tensors, shared=()) -> bytes:
  """A `.pt` file of arrays; names in `shared` view the storage of another."""
  kinds = {v.name: k for k, v in torch_file._STORAGE_DTYPES.items()}
  stored = {name: key for key, name in enumerate(n for n in tensors)}
  items, storages = {}, []
  for name, array in tensors.items():
    owner = dict(shared).get(name, name)
    storages.append(np.asarray(tensors[owner]))
    kind = kinds[array.dtype.name].removeprefix("torch ")
    stride = [s // array.itemsize for s in array.strides]
    # The storage is in memory order: a transposed array stays transposed.
    storage = pt.storage(kind, str(stored[owner]), array.size)
    items[name] = pt.tensor(storage, 0, array.shape, stride)
  in_memory = [a.T if a.flags.f_contiguous else a for a in storages]
  return pt.pt_file(pt.state_dict(**items), *in_memory)


def write_released(directory, model, tensors, **fields) -> pathlib.Path:
  """Writes a released directory by hand; a field of None is left out."""
  directory = pathlib.Path(directory)
  directory.mkdir(exist_ok=True)
  config = {**released_models.config_fields(model), **fields}
  text = json.dumps({k: v for k, v in config.items() if v != "absent"})
  (directory / "beeg_config.json").write_text(text)
  (directory / "final_model.pt").write_bytes(pt_state_dict(tensors))
  return directory


def reference_forward(c, w, tokens):
  """One prompt at a time in NumPy, from released names; logits and hooks."""
  acts = {}
  erf = np.vectorize(math.erf)
  active = c["afrac_loctypes"].split(",") if c["afrac"] else []

  def keep(x, loctype):
    if loctype not in active:
      return x
    k = int(c["afrac"] * x.shape[-1])
    order = np.argsort(-np.abs(x), -1, kind="stable")
    out = np.zeros_like(x)
    np.put_along_axis(
      out, order[..., :k], np.take_along_axis(x, order[..., :k], -1), -1
    )
    return out

  def norm(x, name):
    if c["rms_norm"]:
      x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 2**-23)
    else:
      x = x - x.mean(-1, keepdims=True)
      x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5)
    return x * w[name + ".weight"] + w.get(name + ".bias", 0)

  def linear(x, name):
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)

  def hook(name, x):
    acts.setdefault(name, []).append(x)
    return x

  def prompt_logits(t):
    position = w["transformer.wpe.weight"][: len(t)]
    x = w["transformer.wte.weight"][t]
    if c["d_pos_emb"] is None:
      x = x + position

    def read(x, block, number):
      h = norm(x, f"{block}.ln_{number}")
      if c["d_pos_emb"] is None:
        return h
      return np.concatenate([h, norm(position, f"{block}.ln_p{number}")], -1)

    def leave(x, loctype):
      relu = c["residual_activation_type"] == "relu"
      return keep(np.maximum(x, 0) if relu else x, loctype)

    for i in range(c["n_layer"]):
      block = f"transformer.h.{i}"
      hook(f"{i}.resid_in", x)
      h = hook(f"{i}.attn.act_in", keep(read(x, block, 1), "attn_in"))
      q, k, v = np.split(linear(h, f"{block}.attn.c_attn"), 3, -1)
      q = hook(f"{i}.attn.q", keep(q, "attn_q"))
      k = hook(f"{i}.attn.k", keep(k, "attn_k"))
      v = hook(f"{i}.attn.v", keep(v, "attn_v"))
      y = np.zeros_like(q)
      for head in range(c["n_head"]):
        cut = slice(head * c["d_head"], (head + 1) * c["d_head"])
        for j in range(len(t)):
          score = k[: j + 1, cut] @ q[j, cut] / np.sqrt(c["d_head"])
          weight = np.exp(score)
          total = weight.sum()
          if c["sink"]:
            total += np.exp(w[f"{block}.attn.attn_imp.sink_logit"][head])
          y[j, cut] = weight @ v[: j + 1, cut] / total
      hook(f"{i}.attn.y", y)
      out = keep(linear(y, f"{block}.attn.c_proj"), "attn_out")
      x = leave(x + hook(f"{i}.attn.resid_delta", out), "resid_post_attn")
      hook(f"{i}.resid_mid", x)
      h = hook(f"{i}.mlp.act_in", keep(read(x, block, 2), "mlp_in"))
      h = linear(h, f"{block}.mlp.c_fc")
      if c["activation_type"] == "relu":
        h = np.maximum(h, 0)
      else:
        h = h * (1 + erf(h / np.sqrt(2))) / 2
      h = hook(f"{i}.mlp.post_act", keep(h, "mlp_neuron"))
      out = keep(linear(h, f"{block}.mlp.c_proj"), "mlp_out")
      x = leave(x + hook(f"{i}.mlp.resid_delta", out), "resid_post_mlp")
    x = norm(hook("final_resid", x), "transformer.ln_f")
    logits = x @ w["lm_head.weight"].T + w["final_logits_bias"]
    return logits + (w["bigram_table"][t] if c["enable_bigram_table"] else 0)

  logits = np.stack([prompt_logits(t) for t in np.asarray(tokens)])
  return logits, {name: np.stack(x) for name, x in acts.items()}


class GoldenTest(parameterized.TestCase):
  @parameterized.parameters("plain", "sparse_sink_bigram", "sweep_style")
  def test_logits_loss_and_every_hook(self, name):
    model, params = sj.load_model(GOLDEN / name)
    expected = np.load(GOLDEN / name / "expected.npz")
    run = jax.jit(functools.partial(sj.run_with_sites, model))
    logits, acts = run(params, expected["tokens"])
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=1e-5)
    loss = loss_lib.cross_entropy(
      logits.reshape(-1, 64), expected["targets"].reshape(-1)
    )
    np.testing.assert_allclose(loss, expected["loss"], rtol=0, atol=1e-5)
    hooks = {k for k in expected if k.startswith("act:")}
    self.assertEqual(hooks, {f"act:{k}" for k in acts})
    for hook in hooks:
      np.testing.assert_allclose(
        acts[hook[4:]], expected[hook], rtol=0, atol=1e-5, err_msg=hook
      )

  def test_twelve_steps_of_the_recipe(self):
    folder = GOLDEN / "train_recipe"
    recipe = json.loads((folder / "recipe.json").read_text())
    expected = np.load(folder / "expected.npz")
    config, params = recipe_run(folder, recipe)
    np.testing.assert_allclose(
      schedules.learning_rate(config.train, config.sparsity),
      expected["learning_rate"],
      rtol=1e-6,
      atol=1e-12,
    )
    np.testing.assert_allclose(
      schedules.block_density(config.sparsity, recipe["steps"]),
      expected["pfrac"] / recipe["expansion_factor"] ** 2,
      rtol=1e-6,
    )
    model = transformer.Model(config.model, config.sparsity)
    optimizer = transforms.sparse_adam(config, params)
    step = jax.jit(functools.partial(loop.train_step, model, optimizer))
    state = loop.TrainState(np.int32(0), params, optimizer.init(params))
    for i in range(recipe["steps"]):
      state, metrics = step(state, expected["tokens"][i])
      np.testing.assert_allclose(
        metrics["train_loss"], expected["losses"][i], rtol=0, atol=1e-5
      )
      np.testing.assert_allclose(
        metrics["grad_rms"], expected["grad_rms"][i], rtol=0, atol=1e-5
      )
      if i + 1 in (1, 6, 12):
        self.check_parameters(
          model, state.params, folder / f"after_step_{i + 1}.pt"
        )

  def check_parameters(self, model, params, path):
    want = torch_file.load_state_dict(path)
    got = released_models.state_dict(model, params)
    self.assertEqual(set(got), set(want))
    for name, value in got.items():
      np.testing.assert_allclose(
        value, want[name], rtol=0, atol=1e-5, err_msg=name
      )
      np.testing.assert_array_equal(value == 0, want[name] == 0, name)


def recipe_run(folder, recipe):
  """Returns the run's config and its initial parameters, without positions."""
  (folder_config, sparsity), state = (
    released_models.read_config(folder),
    torch_file.load_state_dict(folder / "initial_model.pt"),
  )
  np.testing.assert_array_equal(state["transformer.wpe.weight"], 0)
  config = config_lib.Config(
    data=config_lib.DataConfig(context_length=recipe["sequence"] - 1),
    model=config_lib.ModelConfig(
      **{**vars(folder_config), "positions": "none"}
    ),
    sparsity=config_lib.SparsityConfig(
      density=recipe["pfrac"] / recipe["expansion_factor"] ** 2,
      activation_fraction=sparsity.activation_fraction,
      activation_sites=sparsity.activation_sites,
      min_alive=recipe["min_alive"],
      embedding_rule="expanded",
      expansion_factor=recipe["expansion_factor"],
      anneal_start=recipe["anneal_start"],
      anneal_stop=recipe["anneal_stop"],
    ),
    train=config_lib.TrainConfig(
      steps=recipe["steps"],
      batch_size=recipe["batch"],
      learning_rate=recipe["learning_rate"],
      warmup_fraction=recipe["warmup_steps"] / recipe["steps"],
      scale_rate_by_density=recipe["lr_scaled_by_sqrt_pfrac"],
      adam_b1=recipe["adam_b1"],
      adam_b2=recipe["adam_b2"],
      adam_eps=recipe["adam_eps"],
      weight_decay=recipe["weight_decay"],
    ),
  )
  with tempfile.TemporaryDirectory() as scratch:
    scratch = pathlib.Path(scratch)
    for name, copy in (
      ("beeg_config.json", "beeg_config.json"),
      ("initial_model.pt", "final_model.pt"),
    ):
      (scratch / copy).write_bytes((folder / name).read_bytes())
    _, params = sj.load_model(scratch)
  del params["wpe"]
  return config, params


class ReleasedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.parameters(*(v[0] for v in VARIANTS))
  def test_options_against_numpy(self, name):
    model, params, tokens = variant(name)
    out = self.folder / "out"
    released_models.save_model(out, model, params)
    loaded, again = sj.load_model(out)
    got, acts = jax.jit(functools.partial(sj.run_with_sites, loaded))(
      again, tokens
    )
    fields = json.loads((out / "beeg_config.json").read_text())
    tensors = safetensors.numpy.load_file(out / "model.safetensors")
    want, hooks = reference_forward(
      fields, {k: v.astype(np.float64) for k, v in tensors.items()}, tokens
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    self.assertEqual(set(acts), set(hooks))
    for hook, value in hooks.items():
      np.testing.assert_allclose(
        acts[hook], value, rtol=0, atol=1e-5, err_msg=hook
      )
    # Nothing is lost on the way out and back.
    for site in sites.SITES:
      self.assertEqual(
        loaded.sparsity.num_active(site, 16),
        model.sparsity.num_active(site, 16),
      )
    if model.config.positions != "none":
      self.assertEqual(loaded.config, model.config)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      value = again
      for key in sites.path_name(path).split("/"):
        value = value[key]
      np.testing.assert_array_equal(value, leaf)

  @parameterized.parameters("plain", "joined", "sinusoidal", "residual")
  def test_pt_file_gives_the_same_parameters(self, name):
    model, params, _ = variant(name)
    tensors = released_models.state_dict(model, params)
    # Transposed storages, as `weight.T` would be saved.
    tensors = {
      k: np.asfortranarray(v) if "c_fc" in k else v for k, v in tensors.items()
    }
    _, got = sj.load_model(write_released(self.folder, model, tensors))
    want = {**params}
    if name == "plain":
      want["wpe"] = {"embedding": np.zeros((12, 16), np.float32)}
    jax.tree.map(np.testing.assert_array_equal, got, want)

  @parameterized.parameters(np.float16, ml_dtypes.bfloat16)
  def test_narrow_types_are_widened(self, dtype):
    model, params, _ = variant("plain")
    narrow = {
      k: v.astype(dtype)
      for k, v in released_models.state_dict(model, params).items()
    }
    _, got = sj.load_model(write_released(self.folder / "pt", model, narrow))
    kernel = np.asarray(got["layers"]["mlp"]["c_fc"]["kernel"])
    self.assertEqual(kernel.dtype, np.float32)
    want = narrow["transformer.h.1.mlp.c_fc.weight"].T.astype(np.float32)
    np.testing.assert_array_equal(kernel[1], want)

  def test_constants_and_masks_of_other_versions(self):
    model, params, _ = variant("plain")
    tensors = released_models.state_dict(model, params)
    del tensors["final_logits_bias"]
    tensors["transformer.h.0.attn.bias"] = np.ones((1, 1, 12, 12), np.float32)
    _, got = sj.load_model(write_released(self.folder, model, tensors))
    np.testing.assert_array_equal(got["logit_bias"], np.zeros(40))

  def test_unknown_fields_are_named_once_and_kept(self):
    model, params, _ = variant("plain")
    extra = {"pfrac": 0.5, "mystery": [1, None], "dropout": 0.1}
    source = write_released(
      self.folder / "in",
      model,
      released_models.state_dict(model, params),
      **extra,
    )
    with self.assertLogs("absl", "WARNING") as logs:
      loaded, again = sj.load_model(source)
    self.assertLen(logs.output, 1)
    self.assertIn("mystery, pfrac", logs.output[0])
    kept = released_models.read_fields(source)
    released_models.save_model(self.folder / "out", loaded, again, kept=kept)
    fields = released_models.read_fields(self.folder / "out")
    self.assertEqual({k: fields[k] for k in extra}, extra)

  @parameterized.parameters(
    ({"n_head": 3}, "n_head=3.*divisor of d_model=16"),
    ({"d_head": 8}, "d_head=8.*16 / 4"),
    ({"d_head": True}, "d_head=True.*whole number"),
    ({"n_mlp": 48}, "n_mlp=48.*d_mlp=32"),
    ({"n_layer": 0}, "n_layer=0.*from 1 to"),
    ({"n_layer": 2**63}, f"n_layer={2**63}.*2\\^31 - 1"),
    ({"n_layer": "2"}, "n_layer='2'.*whole number"),
    ({"vocab_size": "absent"}, "vocab_size is missing"),
    ({"sinusoidal_cat_pos_emb": True}, "sinusoidal_cat_pos_emb=True.*d_pos_em"),
    ({"d_pos_emb": 0}, "d_pos_emb=0.*from 1 to"),
    ({"enable_bigram_table": False}, "learnable_bigram_table=True.*enable"),
    ({"afrac": 0}, "afrac=0 .*above 0"),
    ({"afrac": 0.01}, "activation_fraction=0.01.*keep one of the 16"),
    ({"afrac_loctypes": "attn_in,mlp_int"}, "'mlp_int'; did you mean 'mlp_in'"),
    ({"activation_type": "silu"}, "activation_type='silu'.*'gelu' or 'relu'"),
    ({"residual_activation_type": "gelu"}, "residual_activation_type='gelu'"),
    ({"use_tied_aux_matrix": True}, "use_tied_aux_matrix=True"),
    ({"sink": 1}, "sink=1 .*true or false"),
  )
  def test_contradictory_config_is_refused(self, fields, message):
    model, _, _ = variant("plain")
    write_released(self.folder, model, {}, **fields)
    self.assert_refused(message)

  @parameterized.named_parameters(
    ("missing", lambda t: t.pop("transformer.h.1.ln_2.weight"),
     "tensor 'transformer.h.1.ln_2.weight' is missing"),
    ("extra", lambda t: t.update(spy=np.zeros(2, np.float32)),
     "tensor 'spy'.*not of the model"),
    ("shape", lambda t: t.update({"lm_head.weight": np.zeros((16, 40), "f4")}),
     r"'lm_head.weight' has shape \(16, 40\); need \(40, 16\)"),
    ("dtype", lambda t: t.update({"bigram_table": np.zeros((40, 40), "i4")}),
     "'bigram_table' has type int32; need float32"),
    ("nan", lambda t: t["transformer.h.0.attn.c_attn.bias"].fill(np.nan),
     "'transformer.h.0.attn.c_attn.bias' holds NaN"),
    ("infinite", lambda t: t["final_logits_bias"].fill(-np.inf),
     "'final_logits_bias' holds NaN or infinity"),
  )  # fmt: skip
  def test_bad_tensors_are_named(self, damage, message):
    model, params, _ = variant("plain")
    tensors = {
      k: np.array(v)
      for k, v in released_models.state_dict(model, params).items()
    }
    damage(tensors)
    write_released(self.folder, model, tensors)
    self.assert_refused(message)
    # The same from safetensors.
    (self.folder / "final_model.pt").unlink()
    safetensors.numpy.save_file(tensors, self.folder / "model.safetensors")
    self.assert_refused(message)

  def test_untied_tensors_of_a_tied_model_are_refused(self):
    model, params, _ = variant("sinusoidal")
    tensors = released_models.state_dict(model, params)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    write_released(self.folder, model, tensors)
    self.assert_refused("'lm_head.weight' differs.*tied_unembed=false")

  def test_damaged_files_are_refused(self):
    model, params, _ = variant("plain")
    write_released(
      self.folder, model, released_models.state_dict(model, params)
    )
    weights = self.folder / "final_model.pt"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    self.assert_refused("final_model.pt.*not a complete zip")
    shell = pt.call(pt.name("os", "system"), pt.text("touch owned"))
    weights.write_bytes(pt.pt_file(shell))
    self.assert_refused("global 'os.system' is not admitted")
    weights.unlink()
    self.assert_refused("neither final_model.pt nor model.safetensors")
    for content in (b"", b"\x08" + bytes(7) + b"{}{}{}{}", whole):
      (self.folder / "model.safetensors").write_bytes(content)
      self.assert_refused("need a whole safetensors file")
    (self.folder / "beeg_config.json").write_text("[1]")
    self.assert_refused("holds a list; need a JSON object")
    (self.folder / "beeg_config.json").write_text("{")
    self.assert_refused("not JSON")

  def assert_refused(self, message):
    with self.assertRaisesRegex(errors.InputError, message) as caught:
      sj.load_model(self.folder)
    self.assertStartsWith(str(caught.exception), str(self.folder))

  def test_export_command(self):
    model, params, _ = variant("joined")
    source, out = self.folder / "model", self.folder / "out"
    write_released(
      source,
      model,
      released_models.state_dict(model, params),
      expansion_factor=4,
    )
    write_tokenizer(source)
    done = run_export(source, out)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("parameters in", done.stdout)
    loaded, again = sj.load_model(out)
    self.assertEqual(released_models.read_fields(out)["expansion_factor"], 4)
    text = "values = [1234]\n"
    self.assertEqual(
      sj.load_tokenizer(out).encode(text),
      sj.load_tokenizer(source).encode(text),
    )
    jax.tree.map(np.testing.assert_array_equal, again, params)
    self.assertEqual(loaded.config, model.config)
    kept = (out / "model.safetensors").read_bytes()
    refused = run_export(self.folder / "nowhere", out)
    self.assertEqual(refused.returncode, 2)
    self.assertRegex(refused.stderr, r"\Aerror: .*nowhere.*; need .*\n\Z")
    self.assertEqual((out / "model.safetensors").read_bytes(), kept)
    self.assertEqual(run_export(source, source).returncode, 2)


def run_export(model, out):
  return subprocess.run(
    [sys.executable, "-m", "experiments.export",
     f"--model={model}", f"--out={out}"],
    cwd=REPOSITORY, capture_output=True, text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=False,
  )  # fmt: skip


CODE = [
  "values = [[5, 3, 11], [2, 4]]\nprint('step', values)\n",
  "while True:\n    total = total + 12345 * width  # // half\n",
]


def write_tokenizer(directory, **changes) -> tokenizer_lib.Tokenizer:
  """Writes a trained tokenizer in the released format and returns it."""
  trained = tokenizer_lib.Tokenizer.train(CODE, 290)
  model = json.loads(trained._inner.to_str())["model"]
  vocab = {k: v for k, v in model["vocab"].items() if k != "<|endoftext|>"}
  lines = [" ".join(pair) for pair in model["merges"]]
  vocab.update(changes)
  pathlib.Path(directory, "encoder.json").write_text(json.dumps(vocab))
  text = "\n".join(["#version: 0.2", *lines, ""])
  pathlib.Path(directory, "vocab.bpe").write_text(text, encoding="utf-8")
  return trained


class ReleasedTokenizerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @hypothesis.given(st.text(st.characters(exclude_categories=["Cs"])))
  @hypothesis.settings(max_examples=60, deadline=None)
  def test_same_tokens_as_the_tokenizer_it_was_written_from(self, text):
    trained, loaded = tokenizers()
    ids = loaded.encode(text)
    self.assertEqual(loaded.decode(ids), text)
    self.assertNotIn(2047, ids)
    if "/" not in text:
      self.assertEqual(ids, trained.encode(text))

  def test_end_of_text_is_2047_and_ids_between_are_unused(self):
    trained, loaded = tokenizers()
    self.assertEqual((loaded.vocab_size, loaded.end_of_text), (2048, 2047))
    self.assertEqual(loaded.token_text(2047), "<|endoftext|>")
    for i in range(trained.vocab_size - 1):
      self.assertEqual(loaded.token_bytes(i), trained.token_bytes(i))
    self.assertEqual(loaded.token_text(1000), "<|unused 1000|>")
    self.assertNotIn(1000, loaded.encode("<|unused 1000|>"))

  def test_digits_go_in_threes_and_slashes_stay_with_newlines(self):
    # A newline is written as Ċ.
    write_tokenizer(self.folder, **{"1234": 290, ")Ċ": 291, ")Ċ/": 292})
    with open(self.folder / "vocab.bpe", "a", encoding="utf-8") as file:
      file.write("12 34\n) Ċ\n)Ċ /\n")
    loaded = tokenizer_lib.Tokenizer.load_released(self.folder)
    self.assertNotIn(290, loaded.encode("1234"))
    self.assertEqual(loaded.encode(")\n/"), [292])

  def test_neighbours_merge_whatever_pair_the_file_names(self):
    # "abc" is written as a + bc, but ab + c is the union of neighbours too.
    write_tokenizer(self.folder, **{"ab": 500, "abc": 501, "abcd": 502})
    with open(self.folder / "vocab.bpe", "a", encoding="utf-8") as file:
      file.write("a b\na bc\nab cd\n")
    loaded = tokenizer_lib.Tokenizer.load_released(self.folder)
    self.assertEqual(loaded.encode("xabc")[-1], 501)
    self.assertEqual(loaded.encode("abcd"), [502])

  @parameterized.parameters(
    ({"a": -1}, "", "need a JSON object of tokens to ids"),
    ({"zz": 97}, "", "distinct ids"),
    ({"zz": 2**30}, "", "distinct ids up to"),
    ({}, "a\n", "line [0-9]+ is 'a'; need two parts"),
    ({}, "q qq\n", "line [0-9]+ is 'q qq'; need two parts"),
  )
  def test_damaged_files_are_refused(self, changes, line, message):
    write_tokenizer(self.folder, **changes)
    with open(self.folder / "vocab.bpe", "a", encoding="utf-8") as file:
      file.write(line)
    with self.assertRaisesRegex(errors.InputError, message) as caught:
      tokenizer_lib.Tokenizer.load_released(self.folder)
    self.assertStartsWith(str(caught.exception), str(self.folder))

  def test_missing_files_are_named(self):
    write_tokenizer(self.folder)
    (self.folder / "vocab.bpe").unlink()
    with self.assertRaisesRegex(errors.InputError, "vocab.bpe cannot be read"):
      tokenizer_lib.Tokenizer.load_released(self.folder)
    (self.folder / "encoder.json").write_text('{"a": 0}')
    with self.assertRaisesRegex(errors.InputError, "255 single bytes missing"):
      tokenizer_lib.Tokenizer.load_released(self.folder)
    (self.folder / "encoder.json").unlink()
    (self.folder / "beeg_config.json").write_text("{}")
    with self.assertRaisesRegex(errors.InputError, "encoder.json"):
      sj.load_tokenizer(self.folder)


@functools.cache
def tokenizers():
  with tempfile.TemporaryDirectory() as folder:
    trained = write_tokenizer(folder)
    return trained, tokenizer_lib.Tokenizer.load_released(folder)


if __name__ == "__main__":
  absltest.main()
