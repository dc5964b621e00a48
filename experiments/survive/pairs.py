"""Two processes of one training, of which one is killed."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import time

from experiments.survive import training
from experiments.survive.outcome import Outcome

_MOST_SECONDS = 60.0
_LINE_SECONDS = 10.0  # Until a shell has printed what JAX's abort() leaves out.


@contextlib.contextmanager
def _pair(lab: training.Lab, name: str):
  """Yields two processes that train together; they are dead afterwards."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  command = lab.command(name)
  program = [sys.executable, "-m", "experiments.train", "--distributed"]
  processes = []
  for index in range(2):
    environment = {
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
      "JAX_NUM_PROCESSES": "2",
      "JAX_PROCESS_ID": str(index),
    }
    with open(_log(lab, index), "wb") as log:
      processes.append(
        subprocess.Popen(
          [*program, *command.arguments],
          stdout=log,
          stderr=log,
          env=environment,
        )
      )
  try:
    yield processes
  finally:
    for process in processes:
      process.kill()
      process.wait()


def _log(lab: training.Lab, index: int) -> pathlib.Path:
  return lab.root / f"process_{index}.log"


def one_of_two(root: pathlib.Path, steps: int = 30) -> Outcome:
  """Kills each of the two once; the other has to stop, and both to resume."""
  lab = training.Lab(root, steps)
  good, seconds, lines = 0, [], []
  workdir = lab.fresh("pair")
  for victim in (1, 0):
    with _pair(lab, "pair") as processes:
      before = (training.steps_of(workdir) or [0])[-1]
      deadline = time.monotonic() + 1800
      # A whole checkpoint of its own, so that there is something to resume.
      while (training.steps_of(workdir) or [0])[-1] <= before:
        ended = [p.poll() for p in processes if p.poll() is not None]
        if ended or time.monotonic() > deadline:
          raise lab.command("pair").failed(f"of two made no progress, {ended}")
        time.sleep(0.01)
      processes[victim].kill()
      begin = time.monotonic()
      with contextlib.suppress(subprocess.TimeoutExpired):
        processes[1 - victim].wait(2 * _MOST_SECONDS)
      status = processes[1 - victim].poll()
    seconds.append(time.monotonic() - begin)
    told = False
    while not told and time.monotonic() < begin + seconds[-1] + _LINE_SECONDS:
      time.sleep(0.01)
      text = _log(lab, 1 - victim).read_text(errors="replace")
      last = (text.strip().splitlines() or [""])[-1]
      told = last.startswith("error: ") and "process" in last
    lines.append(last)
    good += bool(status) and told and seconds[-1] < _MOST_SECONDS
  with _pair(lab, "pair") as processes:
    statuses = [process.wait(1800) for process in processes]
  ended = statuses == [0, 0] and training.steps_of(workdir)[-1] == steps
  return Outcome(
    "one of two processes killed",
    2,
    good if ended else 0,
    f"the other stops within {max(seconds):.0f} s: {lines[-1]!r}; the pair"
    f" {'resumes and ends' if ended else f'ended with {statuses}'}",
  )
