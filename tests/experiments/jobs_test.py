"""Jobs in processes and on a Ray cluster of two nodes, of which one is lost."""

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
from unittest import mock

import pytest
from absl import flags
from absl.testing import absltest, parameterized

from experiments import cli, jobs
from experiments.survive import training
from sparse_jax import frontier
from sparse_jax.utils import host

TIMEOUT = 300  # Seconds, on a machine that does other things too.
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


_GRID = """
import runpy
from sparse_jax import frontier
from sparse_jax.frontier import grid

def get_config():
  c = grid.to_config_dict(frontier.FrontierConfig())
  c.run.update(runpy.run_path(CONFIG)["get_config"]())
  c.dense_widths = c.sparse_widths = (16,)
  c.densities = (0.5,)
  c.dense_steps = c.sparse_steps = 100
  c.seeds = (0,)
  c.tasks = ("single_double_quote",)
  return c
"""


@pytest.mark.skipif(
  importlib.util.find_spec("ray") is None,
  reason="Ray is not installed: pip install 'sparse_jax[cluster]'",
)
def test_a_grid_that_loses_one_of_two_nodes_ends_as_a_local_one(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
  monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
  # Its workers would wait for all else that this machine does.
  monkeypatch.setenv("RAY_worker_niceness", "0")
  from ray import cluster_utils  # noqa: PLC0415

  lab = training.Lab(tmp_path / "lab")
  text = _GRID.replace("CONFIG", repr(str(lab.config)))
  (tmp_path / "grid.py").write_text(text)
  workdir, local = tmp_path / "grid", tmp_path / "local"

  def start(directory, *flags):
    program = [sys.executable, "-m", "experiments.frontier", "--runs_only"]
    own = f"--config={tmp_path / 'grid.py'}", f"--workdir={directory}"
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*program, *own, *flags], cwd=ROOT, **how)

  node = {"num_cpus": 1, "object_store_memory": 80 << 20}
  cluster = cluster_utils.Cluster(
    initialize_head=True, head_node_args={**node, "include_dashboard": False}
  )
  try:
    doomed = cluster.add_node(**node)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with start(workdir, "--engine=ray") as driver:
      begun = lambda: list(workdir.glob("runs/*/checkpoints/*0"))
      while len({path.parts[-3] for path in begun()}) < 2:
        assert driver.poll() is None, driver.stdout.read()
        time.sleep(0.05)
      cluster.remove_node(doomed, allow_graceful=False)
      assert driver.wait(TIMEOUT) == 0, driver.stdout.read()
  finally:
    cluster.shutdown()
  logs = [path.read_text() for path in (workdir / "logs").glob("*.log")]
  assert sorted("resuming" in log for log in logs) == [False, True]

  with start(local, "--workers=1") as driver:
    assert driver.wait(TIMEOUT) == 0, driver.stdout.read()
  path, kind = str(tmp_path / "grid.py"), frontier.FrontierConfig
  config = cli.load_config(path, (), kind)
  found, want = (frontier.status(config, d).finished for d in (workdir, local))
  same = ("name", "model_fingerprint", "eval_loss", "tasks")
  pick = lambda results: [[result[key] for key in same] for result in results]
  assert len(want) == 2
  assert pick(found) == pick(want)


if __name__ == "__main__":
  absltest.main()
