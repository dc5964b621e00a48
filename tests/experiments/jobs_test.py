"""Jobs in processes: what they print, how they fail and how they stop."""

import os
import pathlib
import signal
import tempfile
import threading
import time
from unittest import mock

from absl import flags
from absl.testing import absltest, parameterized

from experiments import jobs
from sparse_jax.utils import host

ROOT = pathlib.Path(__file__).parents[2]


def setUpModule():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["test"])


class ProcessesTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, [{0, 1, 2}]), (2, [{0, 2}, {1}]), (3, [{0}, {1}, {2}])
  )
  def test_shares_by_hand(self, count, want):
    self.assertEqual(jobs.shares([0, 1, 2], count), want)

  def test_each_job_ends_with_what_it_printed_and_a_failure_is_named(self):
    logs = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    once = lambda name, code: jobs.Job(name, ["timeit", "-n1", "-r1", code])
    todo = [once("1", "print(1)"), once("2", "print(2)"), once("3", "raise 1")]
    (logs / "1.log").write_text("of an earlier start\n")
    ended = {each.name: each for each in jobs.run(todo, logs, 2)}
    self.assertEqual([ended[n].status for n in "123"], [0, 0, 1])
    self.assertEqual([ended[n].text[:2] for n in "12"], ["1\n", "2\n"])
    self.assertRegex(
      str(ended["3"].error(logs)), "3 ended with status 1: TypeError.*3.log"
    )

  @parameterized.parameters((0, 0), (1, 1), (2, 2), (-9, 2), (143, 2))
  def test_a_killed_job_is_never_a_success(self, status, want):
    self.assertEqual(jobs.Ended("it", status, "").exit_status, want)

  def test_what_is_left_is_stopped(self):
    logs = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    nap = "import time, signal; time.sleep(60)"
    todo = [
      jobs.Job("quick", ["timeit", "-n1", "-r1", "1"]),
      jobs.Job("slow", ["timeit", "-n1", "-r1", nap]),
    ]
    begin = time.monotonic()
    self.assertEqual(next(jobs.run(todo, logs, 2)).name, "quick")
    self.assertLess(time.monotonic() - begin, 30)
    self.assertIn("KeyboardInterrupt", (logs / "slow.log").read_text())

  def test_a_job_stops_once_its_parent_has_ended(self):
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    self.addCleanup(signal.signal, signal.SIGTERM, before)
    self.enterContext(mock.patch.object(host, "_POLL_SECONDS", 0.01))
    parent = os.getppid()
    self.enterContext(mock.patch.dict(os.environ, {host.PARENT: str(parent)}))
    with mock.patch.object(os, "getppid", lambda: parent):
      host.end_with_parent()
      self.assertNotIn(host.PARENT, os.environ)
      self.assertFalse(stopped.wait(0.1))
      parent = 1
      self.assertTrue(stopped.wait(30))


if __name__ == "__main__":
  absltest.main()
