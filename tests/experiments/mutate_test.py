"""Mutated inputs: they are made again, and readers are held to their limits."""

import io
import os
import pathlib
import random
import tempfile
import tracemalloc
import zipfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from experiments.mutate import inputs, mutations, worker
from sparse_jax.utils import errors

ROOT = pathlib.Path(__file__).parents[2]
_BASES = [{"a.json": b'{"x": [1, 2, {"y": "z"}]}'}]


def kind(read, runs_code=False):
  changes = {".json": mutations.mutate_json}
  return inputs.Kind(lambda: _BASES, changes, read, runs_code)


class InputsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    before = os.getcwd()
    os.chdir(ROOT)
    self.addCleanup(os.chdir, before)
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.parameters(*inputs.KINDS)
  def test_what_is_good_is_read_and_what_is_not_is_refused(self, name):
    directory, read = self.root / "input", inputs.KINDS[name].read
    for good in inputs.good(name):
      worker.write(directory, good)
      read(directory)
    refused = 0
    for number in range(60):
      made = inputs.make(name, 7, number)
      self.assertEqual(made, inputs.make(name, 7, number))
      worker.write(directory, made)
      try:
        read(directory)
      except errors.InputError as e:
        refused += 1
        self.assertNotIn("\n", str(e))
    self.assertGreater(refused, 5)

  def test_a_change_of_meaning_leaves_the_form(self):
    rng = random.Random(0)
    pt = inputs.good("released checkpoints")[0]["final_model.pt"]
    changed = {mutations.mutate_pt(rng, pt) for _ in range(20)}
    self.assertGreater(len(changed), 15)
    for raw in changed:
      self.assertTrue(raw.startswith(b"PK\3\4"))

  def test_a_small_file_of_many_zeros_is_made_in_little_memory(self):
    raw = inputs.good("circuits")[0]["arrays.npz"]
    tracemalloc.start()
    self.addCleanup(tracemalloc.stop)
    bomb = mutations._with_bomb(raw, megabytes=64)
    self.assertLess(tracemalloc.get_traced_memory()[1], 8 << 20)
    names = lambda file: sorted(zipfile.ZipFile(io.BytesIO(file)).namelist())
    self.assertEqual(names(bomb), names(raw))
    with np.load(io.BytesIO(bomb)) as arrays:
      self.assertIn((64 << 18,), {arrays[name].shape for name in arrays.files})


def _import_os(path):
  del path
  eval(compile("1 + 1", "<hostile>", "eval"))


def _write_elsewhere(path):
  (path.parent / "elsewhere").write_text("x")


def _crash(path):
  del path
  raise KeyError("x")


def _panic(path):
  del path
  raise BaseException("panicked")


def _eat(path):
  del path
  return bytes(4 << 30)


def _spin(path):
  del path
  while True:
    pass


def _refuse(path):
  raise errors.InputError(f"{path}: no")


class WorkerTest(parameterized.TestCase):
  """Readers that do what none may; each in a process of its own."""

  @parameterized.named_parameters(
    ("execution", _import_os, "execution"),
    ("writing", _write_elsewhere, "execution"),
    ("crash", _crash, "crash"),
    ("panic", _panic, "crash"),
    ("memory", _eat, "memory"),
    ("hang", _spin, "hang"),
    ("refusal", _refuse, "refused"),
  )
  def test_it_is_noticed(self, read, outcome):
    pid = os.fork()
    if pid == 0:  # Limits and audit hooks stay for good.
      code = 9
      try:
        code = 0 if self.outcome(read) == outcome else 1
      finally:
        os._exit(code)
    _, status = os.waitpid(pid, 0)
    if outcome == "hang":
      self.assertEqual(os.WTERMSIG(status), worker.signal.SIGPROF)
    else:
      self.assertEqual(status, 0)

  def outcome(self, read):
    """Returns how a reader ends that does what it does once it is watched."""
    quiet = lambda path: None
    worker.CPU_SECONDS = 0.2
    calls = []

    def report(result):
      calls.append(result.outcome)

    armed_read = lambda path: (
      read(path)
      if worker.resource.getrlimit(worker.resource.RLIMIT_AS)[0]
      != worker.resource.RLIM_INFINITY
      else quiet(path)
    )
    with mock.patch.dict(inputs.KINDS, {"test": kind(armed_read)}):
      inputs.good.cache_clear()
      worker.read_inputs("test", 0, 0, 1, mock.Mock(send=report))
    return calls[0]


if __name__ == "__main__":
  absltest.main()
