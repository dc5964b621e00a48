"""A study that two processes share in PostgreSQL, one of which is killed."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import pytest
from optuna.trial import TrialState

from sparse_jax import config as config_lib
from sparse_jax.pruning import search
from sparse_jax.utils import errors

pytest.importorskip("psycopg", reason="no psycopg: install the [cluster] extra")

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = config_lib.PruneConfig(num_runs=5, num_seeds=1, k_coefs=(1e-3, 1e-2))
OTHER = """
import time
from sparse_jax import config as config_lib
from sparse_jax.pruning import search
config = config_lib.PruneConfig(num_runs=5, num_seeds=1, k_coefs=(1e-3, 1e-2))
study = search.open_study(%r, "task/core", {"task_pairs": "a"}, config, 0)
for trial in search.propose(study, config, 0, 2):
  print(trial.number, flush=True)
time.sleep(600)
"""


def server_program(name):
  """Returns the path of one of PostgreSQL's programs, or skips."""
  packaged = sorted(pathlib.Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
  path = shutil.which(name) or (packaged and str(packaged[-1]))
  if not path:
    pytest.skip("no PostgreSQL: apt-get install postgresql")
  return path


@pytest.fixture
def url():
  """Yields the URL of an empty database of a server of our own."""
  # The server refuses to run as root.
  owner = {"user": "postgres"} if os.geteuid() == 0 else {}
  initdb, postgres = server_program("initdb"), server_program("postgres")
  with contextlib.ExitStack() as stack:
    root = stack.enter_context(tempfile.TemporaryDirectory())
    if owner:
      shutil.chown(root, **owner)
    with socket.socket() as free:
      free.bind(("localhost", 0))
      port = free.getsockname()[1]
    data = f"{root}/data"
    subprocess.run(
      [initdb, "-D", data, "-U", "owner", "-A", "trust", "--no-sync"],
      stdout=subprocess.DEVNULL,
      check=True,
      cwd=root,
      **owner,
    )
    server = subprocess.Popen(
      [postgres, "-D", data, "-p", str(port), "-k", root, "-F"],
      stderr=subprocess.DEVNULL,
      cwd=root,
      **owner,
    )
    stack.callback(server.wait)
    # Fast: SIGTERM would wait for clients that a killed process has left.
    stack.callback(server.send_signal, signal.SIGINT)
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex(("localhost", port)):
      assert time.monotonic() < deadline and server.poll() is None
      time.sleep(0.05)
    yield f"postgresql+psycopg://owner@localhost:{port}/postgres"


def run_all(study):
  """Finishes every run that is free; returns their numbers."""
  numbers = []
  while search._taken(study) < CONFIG.num_runs:
    (trial,) = search.propose(study, CONFIG, 0, 1)
    study.tell(trial, float(trial.number))
    numbers.append(trial.number)
  return numbers


def test_no_run_is_lost_with_a_process_and_none_is_repeated(url):
  identity = {"task_pairs": "a"}
  open_study = lambda: search.open_study(url, "task/core", identity, CONFIG, 0)
  with subprocess.Popen(
    [sys.executable, "-c", OTHER % url],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  ) as other:
    try:
      held = [int(other.stdout.readline()) for _ in range(2)]
      # What the other process is at is left to it.
      mine = run_all(open_study())
      assert len(mine) == CONFIG.num_runs - 2 and not set(mine) & set(held)
    finally:
      other.kill()
  study = open_study()
  lost = [t for t in study.trials if t.number in held]
  assert {t.state for t in lost} == {TrialState.FAIL}
  again = run_all(study)
  done = [t for t in study.trials if t.state == TrialState.COMPLETE]
  assert len(done) == CONFIG.num_runs
  repeated = [t.params for t in done if t.number in again]
  assert all(t.params in repeated for t in lost)
  with pytest.raises(errors.InputError, match="belongs to another task"):
    search.open_study(url, "task/core", {"task_pairs": "b"}, CONFIG, 0)


def test_a_server_that_is_not_there():
  where = "postgresql+psycopg://owner@localhost:1/none"
  with pytest.raises(errors.InputError, match="reachable Optuna storage"):
    search.open_study(where, "task", {}, CONFIG, 0)
