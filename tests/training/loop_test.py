"""The step on its own, and runs that are killed, stopped, refused, resumed."""

import functools
import json
import math
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import chex
import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl.testing import absltest, parameterized
from flax import traverse_util

from sparse_jax import checkpoint
from sparse_jax import config as config_lib
from sparse_jax.model import edges, transformer
from sparse_jax.training import loop, metric_log, rules, schedules, transforms
from sparse_jax.utils import errors, files

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT = 180  # Seconds, for one process on a busy machine.

RUN = {
  "data": {"vocab_size": 258, "context_length": 8, "eval_fraction": 0.3},
  "model": {
    "n_layer": 1,
    "d_model": 16,
    "d_head": 8,
    "d_mlp": 32,
    "bigram": "none",
    "tied": True,
  },
  "sparsity": {
    "density": 0.4,
    "min_alive": 0,
    "activation_sites": ["mlp.post_act"],
  },
  "train": {
    "steps": 40,
    "batch_size": 8,
    "checkpoint_every": 5,
    "log_every": 1,
    "eval_every": 10,
    "eval_batches": 1,
  },
}


def write_corpus(path):
  """Writes a small text of several documents."""
  rng = random.Random(0)
  paragraph = lambda: "".join(f"x{i} = '{rng.random()}'\n" for i in range(200))
  path.write_text("\n".join(paragraph() for _ in range(4)))


def run_config(source, **groups):
  """Returns RUN's config with `groups` laid over it."""
  values = {name: {**RUN[name], **groups.get(name, {})} for name in RUN}
  values["data"]["source"] = str(source)
  return config_lib.from_config_dict(values)


def block_kernels(params):
  paths = config_lib.block_units(config_lib.ModelConfig())
  return {path: np.asarray(edges.parameter(params, path)) for path in paths}


def start(config):
  """Returns the model, the optimizer and the state before the first step."""
  model = transformer.Model(config.model, config.sparsity)
  rng = jax.random.key(0)
  optimizer = transforms.sparse_adam(config, jax.eval_shape(model.init, rng))
  state = jax.jit(functools.partial(loop.init_state, model, optimizer))(rng)
  return model, optimizer, state


class TrainStepTest(absltest.TestCase):
  """One compiled step of the whole recipe, many times on one batch."""

  def setUp(self):
    super().setUp()
    chex.clear_trace_counter()

  def test_loss_falls_exactly_k_survive_and_it_traces_once(self):
    config = config_lib.from_config_dict(
      {
        "data": {"context_length": 8},
        "model": {"d_model": 16, "d_head": 4, "d_mlp": 32, "vocab_size": 40},
        "sparsity": {
          "density": 0.3,
          "min_alive": 3,
          "activation_fraction": 0.5,
          "activation_sites": ["attn.q", "mlp.post_act"],
        },
        "train": {"steps": 10, "batch_size": 4, "warmup_fraction": 0.0},
      }
    )
    model, optimizer, state = start(config)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, windows):
      return loop.train_step(model, optimizer, state, windows)

    windows = jax.random.randint(jax.random.key(1), (4, 9), 0, 40)
    table = rules.table(config.model, config.sparsity)
    density = schedules.block_density(config.sparsity, config.train.steps)
    self.assertEqual(density[0], 1)
    self.assertEqual(density[-1], 0.3)
    losses = []
    for i in range(config.train.steps):
      state, values = step(state, windows)
      losses.append(float(values["train_loss"]))
      self.assertGreater(values["grad_rms"], 0)
      self.assertEqual(state.step, i + 1)
      kernels = block_kernels(state.params)
      for path, (numel, *_) in config_lib.block_units(config.model).items():
        axis = rules.match(table, path).unit_axis
        for matrix in kernels[path]:
          self.assertEqual(np.count_nonzero(matrix), int(density[i] * numel))
          self.assertGreaterEqual(np.count_nonzero(matrix, axis).min(), 3)
    self.assertAlmostEqual(losses[0], math.log(40), delta=0.2)
    self.assertLess(losses[1], losses[0])
    self.assertLess(losses[-1], losses[0] - 0.5)
    shares = loop.densities(state.params)
    whole = sum(matrix.size for matrix in kernels.values())
    kept = sum(shares[path] * matrix.size for path, matrix in kernels.items())
    self.assertAlmostEqual(loop.block_density(state.params), kept / whole)
    text = loop.density_table(config, state.params)
    self.assertRegex(text, r"attn/c_attn/kernel +2x16x48 +460 +0\.2995\n")

  def test_noise_starts_where_the_config_says(self):
    x = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    train = config_lib.TrainConfig(steps=8, node_noise=1.0, noise_start=0.5)
    noise = loop.step_noise(train)
    moved = [
      not np.allclose(noise(i)("attn.q", 0, x), x, atol=1e-5) for i in range(8)
    ]
    self.assertEqual(moved[:4], 4 * [False])
    self.assertIn(True, moved[4:])
    self.assertIsNone(loop.step_noise(config_lib.TrainConfig()))

  def test_exactly_k_survive_among_sums_that_cancel(self):
    # The first to go are those an update takes nearest to zero: all their
    # digits are rounding, which differs from one compiled loop to the next.
    config = config_lib.from_config_dict(
      {
        "data": {"context_length": 32},
        "model": {
          "n_layer": 1,
          "d_model": 64,
          "d_mlp": 256,
          "vocab_size": 2048,
        },
        "sparsity": {"density": 0.1},
        "train": {"steps": 3000, "batch_size": 8, "learning_rate": 1.28e-2},
      }
    )
    model, optimizer, state = start(config)
    flat = functools.partial(traverse_util.flatten_dict, sep="/")
    kept = flat(transforms.kept_tree(config, state.params))
    step = jax.jit(
      functools.partial(loop.train_step, model, optimizer),
      compiler_options={
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
      },
    )
    rng = np.random.default_rng(0)
    for i in range(42):
      state, _ = step(state, rng.zipf(1.2, (8, 33)).astype(np.int32) % 2048)
      for path, leaf in flat(state.params).items():
        if of := kept[path]:
          axes = tuple(range(int(of.is_stacked), leaf.ndim))
          counts = np.count_nonzero(np.asarray(leaf), axes)
          np.testing.assert_array_equal(
            counts, of.table[i], f"{path}, step {i}"
          )


class RefusedTest(parameterized.TestCase):
  """Runs that must not start; none gets as far as compiling."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    write_corpus(self.root / "text.txt")
    self.config = run_config(self.root / "text.txt")
    self.workdir = self.root / "run"

  def refused(self, message, config=None, names_root=True):
    with self.assertRaisesRegex(errors.InputError, message) as e:
      loop.run(config or self.config, self.workdir)
    if names_root:
      self.assertIn(str(self.root), str(e.exception))

  def claim(self, content=None):
    """Writes the config of a run that stands in the work directory."""
    groups = ("seed", "data", "model", "sparsity", "train")
    found = config_lib.to_dict(self.config)
    content = content or json.dumps({name: found[name] for name in groups})
    files.write_bytes(self.workdir / "config.json", content.encode())

  @parameterized.named_parameters(
    ("seed", {"seed": 1}, "seed=0, this config has 1"),
    (
      "density",
      {"sparsity": {"density": 0.5}},
      r"sparsity.density=0.4, this config has 0.5",
    ),
    (
      "sites",
      {"sparsity": {"activation_sites": ["attn.q"]}},
      r"activation_sites=\['mlp.post_act'\], this config has \['attn.q'\]",
    ),
  )
  def test_workdir_of_another_config(self, changes, message):
    self.claim()
    values = ml_collections.ConfigDict(config_lib.to_dict(self.config))
    values.update(changes)
    self.refused(message, config_lib.from_config_dict(values.to_dict()))
    self.assertEqual(
      {p.name for p in self.workdir.iterdir()}, {"config.json", ".lock"}
    )

  @parameterized.named_parameters(
    ("empty", " ", "not JSON"),
    ("no_object", "[]", "holds no fields"),
    ("foreign", '{"name": "x"}', "seed=None"),
  )
  def test_damaged_config(self, content, message):
    self.claim(content)
    self.refused(message)

  def test_workdir_in_use(self):
    with files.exclusive(self.workdir):
      self.refused("in use by another process")

  def test_file_in_place_of_the_workdir(self):
    self.workdir.write_text("mine")
    self.refused("cannot write .*run")
    self.assertEqual(self.workdir.read_text(), "mine")

  def test_workdir_below_a_file(self):
    (self.root / "file").write_text("mine")
    self.workdir = self.root / "file" / "run"
    self.refused("cannot write .*file/run")

  def test_file_in_place_of_the_checkpoints(self):
    self.workdir.mkdir()
    (self.workdir / "checkpoints").write_text("mine")
    self.refused("cannot write .*checkpoints")

  def test_too_little_text(self):
    (self.root / "text.txt").write_text("a\n")
    self.refused("text.txt")

  @parameterized.parameters(
    ("batch_size", 6, "train.batch_size=6 .* multiple of the 4 devices"),
    ("kernels", "fused", "train.kernels='fused' .* xla for 4 cpu"),
    ("model_parallel", 3, "train.model_parallel=3 .* divisor of 4 devices"),
  )
  def test_what_the_devices_do_not_take(self, name, value, message):
    config = run_config(self.root / "text.txt", train={name: value})
    self.refused(message, config, names_root=False)
    if name == "kernels":
      self.assertFalse(self.workdir.exists())


class DivergenceTest(absltest.TestCase):
  def test_nan_stops_and_keeps_the_last_good_checkpoint(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    write_corpus(root / "text.txt")
    config = run_config(
      root / "text.txt",
      sparsity={"density": 1.0, "activation_fraction": 1.0},
      # Step 1 has rate 0; later ones overflow float32.
      train={
        "learning_rate": 1e38,
        "adam_eps": 1e-8,
        "warmup_fraction": 0.1,
        "checkpoint_every": 1,
      },
    )
    told = []
    with self.assertRaisesRegex(
      errors.InputError, r"stopped at step \d+: \w+=(nan|inf)"
    ) as e:
      loop.run(config, root / "run", on_log=told.append)
    # Whoever listens has heard every row that was written until then.
    rows = metric_log.read_jsonl(root / "run" / "metrics.jsonl")
    self.assertNotEmpty(told)
    self.assertEqual(told, rows)
    message = str(e.exception)
    self.assertIn("train.learning_rate than 1e+38", message)
    folder = root / "run" / "checkpoints"
    step = max(int(path.name) for path in folder.iterdir())
    self.assertIn(f"last good checkpoint in {folder}: step {step};", message)
    self.assertFalse((root / "run" / "model").exists())
    # Good means that one can go on from it.
    with ocp.StandardCheckpointer() as checkpointer:
      params = checkpointer.restore(folder / str(step) / "default")["params"]
    vocab_size = params["wte"]["embedding"].shape[0]
    config = config_lib.resolve(config, vocab_size)
    model = transformer.Model(config.model, config.sparsity)
    logits = jax.jit(model.apply)(params, np.arange(8)[None])
    self.assertTrue(np.isfinite(logits).all())


class RowsTest(absltest.TestCase):
  def test_a_resumed_row_averages_the_steps_before_the_checkpoint_too(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    write_corpus(root / "text.txt")
    every = {"checkpoint_every": 3, "log_every": 4, "eval_every": 100}
    config = run_config(root / "text.txt", train={"steps": 12, **every})

    def run(name, on_log=lambda row: None):
      with loop.opened(config, root / name) as (data, checkpoints):
        resolved = config_lib.resolve(config, data.tokenizer.vocab_size)
        model = transformer.Model(resolved.model, resolved.sparsity)
        count = lambda state: state.replace(step=state.step + 1)
        loss = lambda state: {"train_loss": 0.1 * state.step}
        objective = loop.Objective(
          init=lambda key: loop.TrainState(
            jax.numpy.int32(0), model.init(key), ()
          ),
          step=lambda state, windows, _: (count(state), loss(state)),
          evaluate=lambda params, windows, _: {"loss": jax.numpy.float32(0)},
        )
        loop.fit(resolved, objective, root / name, data, checkpoints, on_log)
      rows = metric_log.read_jsonl(root / name / "metrics.jsonl")
      return [(row["step"], row["train_loss"]) for row in rows]

    def stop(row):
      if row["step"] == 8:
        raise KeyboardInterrupt

    with self.assertRaises(KeyboardInterrupt):
      run("stopped", stop)
    rows = run("stopped")
    self.assertEqual([step for step, _ in rows], [4, 8, 12])
    means = [0.15, 0.55, 0.95]
    np.testing.assert_allclose([mean for _, mean in rows], means, rtol=1e-5)
    self.assertEqual(rows, run("undisturbed"))


class ProcessTest(absltest.TestCase):
  """The train command as a process; a test's runs share compiled code."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    write_corpus(self.root / "text.txt")
    source = str(self.root / "text.txt")
    groups = {**RUN, "data": {**RUN["data"], "source": source}}
    (self.root / "config.py").write_text(
      "import ml_collections\n\ndef get_config():\n"
      f"  return ml_collections.ConfigDict({groups!r})\n"
    )

  def start(self, workdir, *flags, **environment):
    """Returns the process of a run that starts or resumes."""
    one_device = os.environ["XLA_FLAGS"].replace("count=4", "count=1")
    with open(self.root / f"{workdir.name}.stderr", "w") as stderr:
      return subprocess.Popen(
        [
          *(sys.executable, "-m", "experiments.train"),
          f"--config={self.root / 'config.py'}",
          f"--workdir={workdir}",
          *flags,
        ],
        cwd=ROOT,
        env={
          **os.environ,
          "XLA_FLAGS": one_device,
          "JAX_COMPILATION_CACHE_DIR": str(self.root / "cache"),
          "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
          **environment,
        },
        stdout=subprocess.DEVNULL,
        stderr=stderr,
      )

  def finish(self, workdir, *flags):
    """Runs to the end."""
    with self.start(workdir, *flags) as process:
      self.assertEqual(process.wait(TIMEOUT), 0, self.errors(workdir))

  def errors(self, workdir):
    return (self.root / f"{workdir.name}.stderr").read_text()

  def stop(self, workdir, number, moment):
    """Starts a run, signals it once `moment(rows it logged)` is true."""
    path = workdir / "metrics.jsonl"
    # A run that begins puts a new file in the place of the old one.
    old = path.stat().st_ino if path.exists() else None

    def rows():
      try:
        is_new = path.stat().st_ino != old
        return path.read_bytes().count(b"\n") if is_new else 0
      except FileNotFoundError:
        return 0

    with self.start(workdir) as process:
      deadline = time.monotonic() + TIMEOUT
      while process.poll() is None and not moment(rows()):
        self.assertLess(time.monotonic(), deadline)
        time.sleep(0.001)
      process.send_signal(number)
      return process.wait(TIMEOUT)

  def steps(self, workdir):
    """Returns the steps of a run's whole checkpoints."""
    folder = workdir / "checkpoints"
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())

  def state(self, workdir):
    """Returns the final training state, as stored."""
    with ocp.StandardCheckpointer() as checkpointer:
      return checkpointer.restore(
        workdir / "checkpoints" / str(RUN["train"]["steps"]) / "default"
      )

  def timeless_rows(self, workdir):
    rows = metric_log.read_jsonl(workdir / "metrics.jsonl")
    for row in rows:
      del row["tokens_per_second"]
    return rows

  def test_killed_stopped_and_out_of_space_it_ends_with_the_same_bits(self):
    reference, workdir = self.root / "reference", self.root / "run"
    self.finish(reference)
    self.check_rows(metric_log.read_jsonl(reference / "metrics.jsonl"))
    rng = random.Random(7)
    checkpoints = workdir / "checkpoints"

    # Before the first checkpoint: starts over.
    early = rng.randrange(1, 5)
    kill = functools.partial(self.stop, workdir, signal.SIGKILL)
    self.assertEqual(kill(lambda rows: rows >= early), -signal.SIGKILL)

    # While a checkpoint is being written, once there is a whole one.
    writes = lambda: len(list(checkpoints.iterdir())) > len(self.steps(workdir))
    status = kill(lambda rows: rows and self.steps(workdir) and writes())
    self.assertEqual(status, -signal.SIGKILL)

    # Anywhere.
    later = self.steps(workdir)[-1] + rng.randrange(2, 6)
    delay = rng.random() / 50
    status = kill(lambda rows: rows >= later and time.sleep(delay) is None)
    self.assertEqual(status, -signal.SIGKILL)

    # A scheduler's SIGTERM: a checkpoint and status 143. Ctrl-C's is 130.
    later = self.steps(workdir)[-1] + 2
    status = self.stop(workdir, signal.SIGTERM, lambda rows: rows >= later)
    self.assertEqual(status, 143, self.errors(workdir))
    step = self.steps(workdir)[-1]
    self.assertGreaterEqual(step, later)
    self.assertIn(f"interrupted at step {step} of 40", self.errors(workdir))

    # No space: one line, status 2, and the checkpoints stay.
    with self.start(workdir) as process:
      limit = (24 << 10, 24 << 10)
      resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limit)
      self.assertEqual(process.wait(TIMEOUT), 2)
    self.check_error(
      workdir, "cannot write checkpoint .*: File too large; need .* free space"
    )
    self.assertEqual(self.steps(workdir)[-1], step)

    self.finish(workdir)
    self.check_equal(workdir, reference)
    self.assertEqual(self.timeless_rows(workdir), self.timeless_rows(reference))

    # A damaged checkpoint is named, and the run goes on from the one before.
    newest = workdir / "checkpoints" / "40"
    for path in (newest / "default" / "d").iterdir():
      path.write_bytes(path.read_bytes()[:100])
    self.finish(workdir)
    self.assertRegex(
      self.errors(workdir), "checkpoint 40 in .* is damaged .* from step 35"
    )
    self.check_equal(workdir, reference)
    # So it is if nothing of the newest is left but its directory.
    shutil.rmtree(newest)
    newest.mkdir()
    self.finish(workdir)
    self.check_equal(workdir, reference)

  def check_error(self, workdir, message):
    """Checks that standard error ends with one line, with no traceback."""
    text = self.errors(workdir)
    self.assertNotIn("Traceback", text)
    self.assertRegex(text.splitlines()[-1], f"^error: {message}$")

  def check_equal(self, workdir, reference):
    """Checks that two runs ended with the same bits."""
    chex.assert_trees_all_equal(self.state(workdir), self.state(reference))
    _, params = checkpoint.load_model(workdir / "model")
    _, want = checkpoint.load_model(reference / "model")
    chex.assert_trees_all_equal(params, want)

  def check_rows(self, rows):
    """Checks what the rows of RUN hold."""
    self.assertEqual([row["step"] for row in rows], list(range(1, 41)))
    names = {"step", "tokens", "train_loss", "grad_rms", "learning_rate"}
    for row in rows:
      self.assertContainsSubset(names | {"density", "tokens_per_second"}, row)
      self.assertGreater(row["grad_rms"], 0)
      self.assertEqual("eval_loss" in row, row["step"] % 10 == 0)
      self.assertEqual(row["tokens"], row["step"] * 64)
    self.assertEqual(rows[0]["density"], 1)
    self.assertAlmostEqual(rows[-1]["density"], 0.4, delta=0.005)
    self.assertLess(rows[-1]["eval_loss"], rows[9]["eval_loss"])

  def test_two_processes_equal_one(self):
    # Small to compile: sharding_test.py has the sparse step on several devices.
    flags = (
      "--config.sparsity.density=1",
      "--config.sparsity.activation_fraction=1",
      "--config.train.steps=10",
    )
    one, two = self.root / "one", self.root / "two"
    self.finish(one, *flags)
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    processes = [
      self.start(
        two,
        "--distributed",
        *flags,
        JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
        JAX_NUM_PROCESSES="2",
        JAX_PROCESS_ID=str(index),
      )
      for index in range(2)
    ]
    try:
      for process in processes:
        self.assertEqual(process.wait(TIMEOUT), 0, self.errors(two))
    finally:
      for process in processes:
        process.kill()
        process.wait()
    _, params = checkpoint.load_model(two / "model")
    _, want = checkpoint.load_model(one / "model")
    chex.assert_trees_all_close(params, want, atol=1e-4)
    for row, single in zip(
      self.timeless_rows(two), self.timeless_rows(one), strict=True
    ):
      self.assertEqual(row["step"], single["step"])
      self.assertAlmostEqual(row["train_loss"], single["train_loss"], places=4)


if __name__ == "__main__":
  absltest.main()
