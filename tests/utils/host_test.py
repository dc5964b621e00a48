"""The host process."""

import pathlib

from absl.testing import absltest

from sparse_jax.utils import host


class MemoryTest(absltest.TestCase):
  def test_peak_is_the_kernels_high_water_mark(self):
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
      self.skipTest("no /proc/self/status on this system")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    kilobytes = int(lines["VmHWM"].split()[0])
    self.assertAlmostEqual(
      host.peak_memory() / (1024 * kilobytes), 1, delta=0.05
    )


if __name__ == "__main__":
  absltest.main()
