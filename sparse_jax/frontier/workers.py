"""Several processes on one grid, a share of the cores each.

Small models do not fill two cores: two processes of one core each made 1.39
times the steps of one process with both (quickstart's shape, docs/performance).
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from sparse_jax.utils import errors, files, progress

_POLL_SECONDS = 2.0
_PATIENCE_SECONDS = 60.0


def shares(cores: Sequence[int], count: int) -> list[set[int]]:
  """Returns `count` disjoint sets of cores, as even as can be."""
  return [set(cores[i::count]) for i in range(count)]


def run_workers(
  command: Sequence[str],
  count: int,
  logs: pathlib.Path,
  total: int,
  num_finished: Callable[[], int],
) -> None:
  """Runs a command in `count` processes; shows how many runs are finished.

  Ctrl-C stops them, and waits until they have left their checkpoints; SIGTERM
  and SIGHUP do the same. They print to `worker-N.log` in `logs`, which the
  InputError for a failure names.
  """
  with files.disk_errors(logs):
    logs.mkdir(parents=True, exist_ok=True)
  processes: dict[pathlib.Path, subprocess.Popen] = {}
  bar = progress.progress_bar(total, num_finished(), "runs")
  with contextlib.ExitStack() as stack:
    for number in (signal.SIGTERM, signal.SIGHUP):
      # Only the main thread may set handlers.
      with contextlib.suppress(ValueError):
        previous = signal.signal(number, signal.default_int_handler)
        stack.callback(signal.signal, number, previous)
    stack.callback(_stop, processes)
    stack.callback(bar.close)
    for number, cores in enumerate(shares(sorted(usable_cores()), count)):
      path = logs / f"worker-{number}.log"
      with open(path, "ab") as log:
        # In a session of its own: a Ctrl-C is the parent's to pass on, once.
        processes[path] = process = subprocess.Popen(
          command, stdout=log, stderr=log, start_new_session=True
        )
      # Before it has loaded what starts threads: they inherit it.
      if hasattr(os, "sched_setaffinity") and cores:
        os.sched_setaffinity(process.pid, cores)
    while any(process.poll() is None for process in processes.values()):
      time.sleep(_POLL_SECONDS)
      bar.update(num_finished() - bar.n)
  for path, process in processes.items():
    if process.returncode:
      lines = path.read_text(errors="replace").strip().splitlines()
      raise errors.InputError(
        f"a worker ended with status {process.returncode}:"
        f" {lines[-1][:300] if lines else 'it printed nothing'}; {path} holds"
        " what it printed"
      )


def end_with(parent: int) -> None:
  """Makes this process stop, as by SIGTERM, once its parent has ended.

  A killed parent stops nobody: its workers would go on unseen, and hold the
  runs that the same command, started again, wants.
  """

  def watch() -> None:
    while os.getppid() == parent:
      time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=watch, daemon=True).start()


def usable_cores() -> set[int]:
  """Returns the cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return os.sched_getaffinity(0)
  return set(range(os.cpu_count() or 1))


def _stop(processes: dict[pathlib.Path, subprocess.Popen]) -> None:
  running = [p for p in processes.values() if p.poll() is None]
  for process in running:
    process.send_signal(signal.SIGINT)
  for process in running:
    try:
      process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
