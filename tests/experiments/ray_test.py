"""A Ray cluster: a grid that loses a node, circuits found and verified."""

import json
import pathlib
import subprocess
import sys
import time

import helpers
import pytest
import verified_circuit

from experiments import cli
from experiments.survive import training
from sparse_jax import frontier

cluster_utils = pytest.importorskip(
  "ray.cluster_utils", reason="no ray: install the [cluster] extra"
)

TIMEOUT = 600  # Seconds, on a machine that does other things too.
ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / "experiments" / "configs" / "frontier_tiny.py"

_GRID = """
import runpy

def get_config():
  c = runpy.run_path(TINY)["get_config"]()
  c.run.update(runpy.run_path(CONFIG)["get_config"]())  # In seconds.
  c.dense_widths = c.sparse_widths = (16,)
  c.densities = (0.5,)
  c.dense_steps = c.sparse_steps = 100
  c.seeds = (0,)
  c.tasks = ("single_double_quote",)
  return c
"""

_NODE = {"num_cpus": 1, "object_store_memory": 80 << 20}


def start_cluster():
  """Returns a cluster of one node."""
  return cluster_utils.Cluster(
    initialize_head=True, head_node_args={**_NODE, "include_dashboard": False}
  )


@pytest.fixture(autouse=True)
def own_ray(monkeypatch):
  monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
  # Its workers would wait for all else that this machine does.
  monkeypatch.setenv("RAY_worker_niceness", "0")


def test_a_grid_that_loses_one_of_two_nodes_ends_as_a_local_one(
  tmp_path, monkeypatch
):
  lab = training.Lab(tmp_path / "lab")
  text = _GRID.replace("CONFIG", repr(str(lab.config)))
  text = text.replace("TINY", repr(str(TINY)))
  (tmp_path / "grid.py").write_text(text)
  workdir, local = tmp_path / "grid", tmp_path / "local"

  def start(directory, *flags):
    program = [sys.executable, "-m", "experiments.frontier", "--runs_only"]
    own = f"--config={tmp_path / 'grid.py'}", f"--workdir={directory}"
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*program, *own, *flags], cwd=ROOT, **how)

  cluster = start_cluster()
  try:
    doomed = cluster.add_node(**_NODE)
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


def test_what_prune_stores_on_a_cluster_verify_reproduces_there(
  tmp_path, monkeypatch
):
  verified_circuit.write(tmp_path)
  model, circuits = f"--model={tmp_path / 'model'}", tmp_path / "found"
  names = ("single_double_quote", "bracket_brace")

  def run(command, *flags):
    return subprocess.run(
      [sys.executable, "-m", f"experiments.{command}", "--engine=ray", *flags],
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=TIMEOUT,
      check=False,
    )

  def verify(where):
    flags = "--nocontrols", "--nonatural"
    return run("verify", f"--circuit={where}", model, *flags)

  cluster = start_cluster()
  try:
    cluster.add_node(**_NODE)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    pruned = run(
      "prune",
      model,
      f"--tasks={','.join(names)}",
      f"--workdir={circuits}",
      "--unlearned",
      "--nofaithfulness",
      *helpers.quick_prune_flags(
        num_test=10, behind_code=0.0, real_prompts=0.0
      ),
    )
    assert pruned.returncode == 0, pruned.stdout + pruned.stderr
    good = verify(circuits)
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.count("now it is") == len(names), good.stdout
    path = circuits / names[1] / "circuit.json"
    raw = json.loads(path.read_text())
    # The circuit's own; the model's config says 8.
    assert raw["metrics"]["faithfulness"]["prune"]["num_test"] == 10
    raw["metrics"]["test_loss"] -= 0.5
    path.write_text(json.dumps(raw))
    wrong = verify(path.parent)
    assert wrong.returncode == 1, wrong.stdout + wrong.stderr
    assert wrong.stdout.count("does not reproduce: ") == 1, wrong.stdout
  finally:
    cluster.shutdown()
