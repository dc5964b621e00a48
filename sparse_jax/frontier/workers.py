"""Several processes on one grid, a share of the cores each.

Small models do not fill two cores: two processes of one core each made 1.39
times the steps of one process with both (quickstart's shape, docs/performance).
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

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

  Ctrl-C stops them, and waits until they have left their checkpoints. They
  print to `worker-N.log` in `logs`, which the InputError for a failure names.
  """
  with files.disk_errors(logs):
    logs.mkdir(parents=True, exist_ok=True)
  processes: dict[subprocess.Popen, pathlib.Path] = {}
  bar = progress.progress_bar(total, num_finished(), "runs")
  with _signals_as_interrupts():
    try:
      for number, cores in enumerate(shares(sorted(_cores()), count)):
        path = logs / f"worker-{number}.log"
        with open(path, "ab") as log:
          process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            # A Ctrl-C is the parent's to pass on, once.
            start_new_session=True,
          )
        processes[process] = path
        # Before it has loaded what starts threads: they inherit it.
        if hasattr(os, "sched_setaffinity") and cores:
          os.sched_setaffinity(process.pid, cores)
      while any(process.poll() is None for process in processes):
        time.sleep(_POLL_SECONDS)
        bar.update(num_finished() - bar.n)
    finally:
      bar.close()
      _stop(processes)
  for process, path in processes.items():
    if process.returncode:
      lines = path.read_text(errors="replace").strip().splitlines()
      raise errors.InputError(
        f"a worker ended with status {process.returncode}:"
        f" {lines[-1][:300] if lines else 'it printed nothing'}; {path} holds"
        " what it printed"
      )


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
  """Makes SIGTERM and SIGHUP end as a Ctrl-C does: no worker is left behind."""

  def interrupt(number, frame):
    del number, frame
    raise KeyboardInterrupt

  previous = {}
  # Only the main thread may set handlers.
  with contextlib.suppress(ValueError):
    for number in (signal.SIGTERM, signal.SIGHUP):
      previous[number] = signal.signal(number, interrupt)
  try:
    yield
  finally:
    for number, handler in previous.items():
      signal.signal(number, handler)


def _cores() -> set[int]:
  if hasattr(os, "sched_getaffinity"):
    return os.sched_getaffinity(0)
  return set(range(os.cpu_count() or 1))


def _stop(processes: Iterable[subprocess.Popen]) -> None:
  running = [p for p in processes if p.poll() is None]
  for process in running:
    process.send_signal(signal.SIGINT)
  for process in running:
    try:
      process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


def default_count() -> int:
  """Returns one process a core, which accelerators need not."""
  return len(_cores())
