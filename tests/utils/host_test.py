"""The host process."""

import faulthandler
import importlib.metadata
import os
import pathlib
import signal
import tempfile
import time
from unittest import mock

import jax
from absl.testing import absltest

from sparse_jax.utils import host


class HostTest(absltest.TestCase):
  def test_peak_is_the_kernels_high_water_mark(self):
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
      self.skipTest("no /proc/self/status on this system")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    kilobytes = int(lines["VmHWM"].split()[0])
    self.assertAlmostEqual(
      host.peak_memory() / (1024 * kilobytes), 1, delta=0.05
    )

  def test_a_program_is_counted_once_when_it_is_compiled(self):
    host.count_compilations()
    host.count_compilations()
    program = jax.jit(lambda x: 3 * x + 1)
    before = host.compiled()
    program(2.0)
    program(3.0)
    after = host.compiled()
    self.assertEqual(after.programs, before.programs + 1)
    self.assertGreater(after.seconds, before.seconds)

  def test_programs_are_made_fast_unless_someone_has_chosen(self):
    level = "--xla_backend_optimization_level"
    cases = {
      "": f"{level}=1",
      "--other=2": f"--other=2 {level}=1",
      f"{level}=3": f"{level}=3",
    }
    for before, after in cases.items():
      with mock.patch.dict(os.environ, {"XLA_FLAGS": before}):
        host.compile_fast()
        self.assertEqual(os.environ["XLA_FLAGS"], after)

  def test_nothing_changes_where_there_may_be_an_accelerator(self):
    with (
      mock.patch.dict(os.environ, {"XLA_FLAGS": ""}),
      mock.patch.object(importlib.metadata, "entry_points", lambda group: [1]),
    ):
      host.compile_fast()
      self.assertEqual(os.environ["XLA_FLAGS"], "")

  def test_a_line_tells_of_an_abort_and_of_nothing_else(self):
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    ends = {
      "abort": os.abort,
      "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
      "return": lambda: None,
    }
    for name, end in ends.items():
      if (pid := os.fork()) == 0:
        handle = os.open(root / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 2)
        faulthandler.disable()
        all_is_well = host.tell_if_killed("error: gone")
        end()
        all_is_well()
        os._exit(0)
      os.waitpid(pid, 0)
    deadline = time.monotonic() + 60
    texts = []
    while time.monotonic() < deadline and sum(map(bool, texts)) < 2:
      texts = [(root / name).read_text() for name in ends]
      time.sleep(0.01)
    gone = "error: gone\n"
    self.assertEqual([t[-len(gone) :] for t in texts], [gone, gone, ""])


if __name__ == "__main__":
  absltest.main()
