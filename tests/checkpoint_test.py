"""Model directories: saved whole, loaded as saved, refused when damaged."""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import chex
import helpers
import jax
import numpy as np
from absl.testing import absltest, parameterized

from sparse_jax import checkpoint
from sparse_jax import config as config_lib
from sparse_jax.data import tokenizer as tokenizer_lib
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import sharding, transformer
from sparse_jax.training import checkpoints as checkpoints_lib
from sparse_jax.utils import errors


def one_layer():
  model, params, _ = helpers.tiny_model(n_layer=1)
  return model, params


class ModelDirectoryTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    cls.model, cls.params = one_layer()
    cls.tokenizer = tokenizer_lib.Tokenizer.train(["x = 'abc'\n"] * 3, 258)
    cls.saved = cls.root / "saved"
    cls.run_config = config_lib.from_config_dict({"seed": 9})
    checkpoint.save_model(
      cls.saved, cls.model, cls.params, cls.tokenizer, cls.run_config
    )

  def copy(self):
    """Returns a copy of the saved directory, to be damaged."""
    path = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory(dir=self.root))
    )
    shutil.copytree(self.saved, path / "model")
    return path / "model"

  def refused(self, path, message):
    with self.assertRaisesRegex(errors.InputError, message) as e:
      checkpoint.load_model(path)
    self.assertIn(str(path), str(e.exception))
    self.assertNotIn("\n", str(e.exception))

  def test_a_split_model_is_read_in_its_parts(self):
    spread = sharding.spread
    with mock.patch.object(sharding, "spread", side_effect=AssertionError):
      _, params = checkpoint.load_model(self.saved, model_parallel=2)
    chex.assert_trees_all_equal(jax.device_get(params), self.params)
    want = spread(self.params, 2)
    chex.assert_trees_all_equal(
      *(jax.tree.map(lambda x: x.sharding, tree) for tree in (params, want))
    )
    with self.assertRaisesRegex(errors.InputError, "prune.model_parallel=3"):
      checkpoint.load_model(self.saved, model_parallel=3)

  def test_loads_what_was_saved(self):
    model, params = checkpoint.load_model(self.saved)
    chex.assert_trees_all_equal(params, self.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(params, self.params)
    self.assertEqual(model.config, self.model.config)
    self.assertEqual(model.sparsity, self.model.sparsity)
    self.assertEqual(checkpoint.load_run(self.saved), self.run_config)
    self.assertEqual(
      checkpoint.load_tokenizer(self.saved).fingerprint,
      self.tokenizer.fingerprint,
    )
    self.assertEqual(
      sorted(os.listdir(self.saved)),
      ["checkpoint", "config.json", "tokenizer.json"],
    )

  def test_saving_again_replaces_the_whole(self):
    path = self.copy()
    (path / "stale").write_text("")
    doubled = jax.tree.map(lambda p: 2 * p, self.params)
    checkpoint.save_model(path, self.model, doubled, self.tokenizer)
    _, params = checkpoint.load_model(path)
    chex.assert_trees_all_equal(params, doubled)
    self.assertIsNone(checkpoint.load_run(path))
    self.assertFalse((path / "stale").exists())
    self.assertEqual(os.listdir(path.parent), ["model"])

  def test_foreign_directory_is_not_replaced(self):
    path = self.root / "foreign"
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
    with self.assertRaisesRegex(errors.InputError, "foreign exists and holds"):
      checkpoint.save_model(path, self.model, self.params, self.tokenizer)
    self.assertEqual(os.listdir(path), ["thesis.txt"])

  def test_full_disk_keeps_the_old_model(self):
    path = self.copy()
    # Files of at most 4 kB: the arrays do not fit.
    script = (
      "import resource, sys\n"
      "from sparse_jax import checkpoint\nfrom sparse_jax.utils import errors\n"
      "model, params = checkpoint.load_model(sys.argv[1])\n"
      "tokenizer = checkpoint.load_tokenizer(sys.argv[1])\n"
      "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
      "try: checkpoint.save_model(sys.argv[1], model, params, tokenizer)\n"
      "except errors.InputError as e: print(e)\n"
    )
    done = subprocess.run(
      [sys.executable, "-c", script, path],
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertRegex(done.stdout, f"^cannot write {path}.* free space\n$")
    _, params = checkpoint.load_model(path)
    chex.assert_trees_all_equal(params, self.params)
    self.assertEqual(os.listdir(path.parent), ["model"])

  def test_missing_and_empty_directories(self):
    self.refused(self.root / "absent", "No such file")
    (self.root / "empty").mkdir()
    self.refused(self.root / "empty", "No such file.*config.json of a model")

  @parameterized.named_parameters(
    ("empty", "", "not JSON"),
    ("truncated", '{"format": "sp', "not JSON"),
    ("list", "[]", "format=None"),
    ("foreign", '{"n_layer": 2}', "format=None; need 'sparse_jax model 1'"),
    ("old", '{"format": "sparse_jax model 0"}', "'sparse_jax model 0'"),
    ("bare", '{"format": "sparse_jax model 1"}', "has no 'model'"),
  )
  def test_damaged_config(self, content, message):
    path = self.copy()
    (path / "config.json").write_text(content)
    self.refused(path, message)

  @parameterized.named_parameters(
    ("run", lambda path: path.parent, r"did you mean .*/model\?"),
    ("file", lambda path: path / "config.json", "is a file; need a model dir"),
  )
  def test_what_is_near_a_model_directory(self, near, message):
    path = near(self.copy())
    if path.is_dir():
      (path / "config.json").write_text('{"seed": 0}')
    self.refused(path, message)
    with self.assertRaisesRegex(errors.InputError, message):
      checkpoint.load_tokenizer(path)

  def test_circuit_in_place_of_a_model(self):
    path = self.root / "circuit"
    path.mkdir()
    (path / "circuit.json").write_text("{}")
    self.refused(path, "holds a circuit, which Circuit.load reads; need a")

  def rewrite(self, path, **model):
    config = json.loads((path / "config.json").read_text())
    config["model"].update(model)
    (path / "config.json").write_text(json.dumps(config))

  def test_config_of_another_shape(self):
    path = self.copy()
    self.rewrite(path, d_model=32)
    self.refused(path, r"has shape \(16,\).*; need \(32,\)|has shape")

  def test_config_with_another_parameter(self):
    path = self.copy()
    self.rewrite(path, sink=False)
    self.refused(path, r"attn/sink has shape \(1, 4\); need None")

  def test_config_of_another_behaviour(self):
    path = self.copy()
    self.rewrite(path, activation="relu")
    self.refused(path, "fingerprint is sha256:.* needs sha256:")

  def test_config_with_an_unknown_field(self):
    path = self.copy()
    self.rewrite(path, d_modl=3)
    with self.assertRaisesRegex(errors.InputError, "model.d_modl"):
      checkpoint.load_model(path)

  def test_checkpoint_of_another_model(self):
    path, other = self.copy(), self.root / "other"
    params = jax.tree.map(lambda p: p + 1, self.params)
    checkpoint.save_model(other, self.model, params, self.tokenizer)
    shutil.rmtree(path / "checkpoint")
    shutil.copytree(other / "checkpoint", path / "checkpoint")
    self.refused(path, "fingerprint is sha256:.* needs sha256:")

  def test_missing_checkpoint(self):
    path = self.copy()
    shutil.rmtree(path / "checkpoint")
    self.refused(path, "checkpoint is missing")
    (path / "checkpoint").mkdir()
    self.refused(path, "damaged or not a checkpoint")

  @parameterized.parameters(0, 100)
  def test_truncated_checkpoint(self, size):
    path = self.copy()
    for file in (path / "checkpoint").rglob("d/*"):
      file.write_bytes(file.read_bytes()[:size])
    self.refused(path, "damaged or not a checkpoint")


class FingerprintTest(absltest.TestCase):
  def test_changes_with_a_weight_and_with_the_model_only(self):
    model, params = one_layer()
    before = fingerprint_lib.fingerprint(model, params)
    self.assertRegex(before, "^sha256:[0-9a-f]{64}$")
    self.assertEqual(
      fingerprint_lib.fingerprint(model, jax.tree.map(np.array, params)), before
    )
    changed = jax.tree.map(np.array, params)
    changed["ln_f"]["scale"][0] = np.nextafter(changed["ln_f"]["scale"][0], 9)
    other = transformer.Model(
      model.config,
      config_lib.SparsityConfig(activation_fraction=0.5, min_alive=0),
    )
    annealed = transformer.Model(
      model.config,
      config_lib.SparsityConfig(density=0.7, min_alive=0),
    )
    self.assertNotEqual(fingerprint_lib.fingerprint(model, changed), before)
    self.assertNotEqual(fingerprint_lib.fingerprint(other, params), before)
    self.assertEqual(fingerprint_lib.fingerprint(annealed, params), before)


class TrainingCheckpointsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = root / "checkpoints"

  def open(self, keep_every=0):
    checkpoints = checkpoints_lib.TrainingCheckpoints(self.path, keep_every)
    self.addCleanup(checkpoints.close)
    return checkpoints

  def state(self, value):
    return {
      "w": jax.numpy.full(3, float(value)),
      "step": jax.numpy.int32(value),
    }

  def test_restores_the_newest_of_the_kept_two(self):
    checkpoints = self.open()
    self.assertIsNone(checkpoints.latest_step())
    for step in (1, 2, 3):
      checkpoints.save(step, self.state(step))
    checkpoints.wait()
    self.assertEqual({p.name for p in self.path.iterdir()}, {"2", "3"})
    again = self.open()
    self.assertEqual(again.latest_step(), 3)
    step, state = again.restore_newest(self.state(0))
    self.assertEqual(step, 3)
    chex.assert_trees_all_equal(state, self.state(3))

  def test_keeps_every_third_for_good(self):
    checkpoints = self.open(keep_every=3)
    for step in range(1, 9):
      checkpoints.save(step, self.state(step))
    self.assertEqual(list(checkpoints.steps()), [3, 6, 7, 8])
    chex.assert_trees_all_equal(
      checkpoints.restore(self.state(0), 3), self.state(3)
    )

  def test_a_step_is_written_once(self):
    checkpoints = self.open()
    checkpoints.save(1, self.state(1))
    checkpoints.save(1, self.state(5))
    chex.assert_trees_all_equal(
      checkpoints.restore(self.state(0), 1), self.state(1)
    )

  def test_a_step_that_is_given_the_memory_changes_nothing_saved(self):
    checkpoints = self.open()
    step = jax.jit(lambda w: w + 1, donate_argnums=0)
    w = step(jax.numpy.zeros(1 << 20))
    for number in (1, 2):
      checkpoints.save(number, {"w": w})
      for _ in range(5):
        w = step(w)
    for number, value in ((1, 1), (2, 6)):
      restored = checkpoints.restore({"w": w}, number)["w"]
      np.testing.assert_array_equal(restored, value)

  def test_a_save_that_fails_is_told_at_the_next_one(self):
    checkpoints = self.open()
    checkpoints.save(1, self.state(1))
    checkpoints.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, before[1]))
    noise = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    with self.assertNoLogs():
      checkpoints.save(2, {"w": jax.numpy.array(noise)})
      with self.assertRaisesRegex(
        errors.InputError, "cannot write checkpoint 2 in .*: File too large"
      ):
        checkpoints.save(3, self.state(3))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    self.assertEqual(checkpoints.steps(), [1])
    self.assertEqual(self.open().restore_newest(self.state(0))[0], 1)
    checkpoints.save(2, self.state(2))
    self.assertEqual(checkpoints.restore_newest(self.state(0))[0], 2)

  def test_another_state_is_refused(self):
    checkpoints = self.open()
    checkpoints.save(1, self.state(1))
    for restore in (
      checkpoints.restore_newest,
      lambda x: checkpoints.restore(x, 1),
    ):
      with self.assertRaisesRegex(
        errors.InputError, "checkpoints/1 is damaged"
      ):
        restore({"v": jax.numpy.zeros(3)})

  def damage(self, step, change):
    """Changes the largest file below a checkpoint's arrays."""
    files_of = (self.path / str(step) / "default").rglob("*")
    largest = max(files_of, key=lambda p: p.is_file() and p.stat().st_size)
    largest.write_bytes(change(bytearray(largest.read_bytes())))

  def test_a_damaged_one_is_set_aside_for_the_one_before(self):
    checkpoints = self.open()
    checkpoints.save(1, self.state(1))
    checkpoints.save(2, self.state(2))
    checkpoints.wait()
    self.damage(2, lambda raw: raw[: len(raw) // 2])
    with self.assertLogs(level="WARNING") as logs:
      step, state = checkpoints.restore_newest(self.state(0))
    self.assertIn("checkpoint 2 in", logs.output[0])
    self.assertIn("going on from step 1", logs.output[0])
    self.assertEqual(step, 1)
    chex.assert_trees_all_equal(state, self.state(1))
    self.assertTrue((self.path.parent / "damaged" / "2").is_dir())
    # Its step can be written again.
    checkpoints.save(2, self.state(2))
    self.assertEqual(checkpoints.restore_newest(self.state(0))[0], 2)

  def test_without_a_whole_one_nothing_starts_over(self):
    checkpoints = self.open()
    for step in (1, 2):
      checkpoints.save(step, self.state(step))
      checkpoints.wait()
      self.damage(step, lambda raw: b"")
    with self.assertRaisesRegex(
      errors.InputError, "checkpoints/2 is damaged .* no earlier one is whole"
    ):
      checkpoints.restore_newest(self.state(0))
    self.assertEqual(list(checkpoints.steps()), [1, 2])

  def test_values_that_changed_without_a_sign_are_noticed(self):
    checkpoints = self.open()
    checkpoints.save(1, self.state(1))
    checkpoints.save(2, self.state(2))
    checkpoints.wait()
    # As whole as any other checkpoint, and not what was saved.
    metadata = self.path / "2" / "_CHECKPOINT_METADATA"
    saved = json.loads(metadata.read_text())
    saved["custom_metadata"]["sums"]["w"] += 1
    metadata.write_text(json.dumps(saved))
    with self.assertLogs(level="WARNING") as logs:
      self.assertEqual(checkpoints.restore_newest(self.state(0))[0], 1)
    self.assertIn("(w has changed)", logs.output[0])


class ChecksumTest(parameterized.TestCase):
  @parameterized.parameters("float32", "int32", "float16", "uint8", "bool")
  def test_every_bit_of_every_entry_counts(self, dtype):
    rng = np.random.default_rng(0)
    array = (rng.normal(size=(2, 3)) > 0).astype(dtype)
    of = lambda x: checkpoints_lib.checksums({"a": x})["a"]
    before = of(array)
    for place in np.ndindex(array.shape):
      for bit in range(1 if dtype == "bool" else 8 * array.dtype.itemsize):
        changed = array.copy()
        raw = changed.view(f"uint{8 * array.dtype.itemsize}")
        raw[place] ^= raw.dtype.type(1 << bit)
        self.assertNotEqual(of(changed), before)

  def test_the_place_of_an_entry_counts(self):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    of = lambda x: checkpoints_lib.checksums(x)[""]
    # By hand: bits times 1, 3, 5 and so on.
    bits = array.view(np.uint32).ravel().astype(object)
    want = sum(int(b) * f for b, f in zip(bits, range(1, 12, 2), strict=True))
    self.assertEqual(of(array), want % 2**32)
    self.assertNotEqual(of(array), of(array[::-1].copy()))


if __name__ == "__main__":
  absltest.main()
