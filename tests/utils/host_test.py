"""The host process."""

import pathlib

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


if __name__ == "__main__":
  absltest.main()
