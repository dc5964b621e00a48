"""Independent jobs, each a command: in processes here, or on a Ray cluster.

Small models do not fill two cores: two processes of one core each made 1.39
times the steps of one process with both (quickstart's shape, docs/performance).
"""

import contextlib
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from absl import flags

from sparse_jax.utils import errors, files, host, progress

ENGINE = flags.DEFINE_enum(
  "engine",
  "local",
  ["local", "ray"],
  "Who runs the jobs: this machine, or the Ray cluster of RAY_ADDRESS (needs"
  " the `cluster` extra).",
)
_CPUS = flags.DEFINE_float(
  "cpus", 1.0, "Cores that a job asks Ray for.", lower_bound=0.0
)
_GPUS = flags.DEFINE_float(
  "gpus", 0.0, "GPUs that a job asks Ray for.", lower_bound=0.0
)

_PARENT = host.PARENT  # Its own name: Ray's workers would load `host`, and JAX.
_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0
# On a cluster: of a job that fails, and after the loss of its node.
_TRIES = 3
_PAUSE_SECONDS = 10.0
_RESULTS = (0, 1)  # Statuses that another try would not change.


class Job(NamedTuple):
  """A command; started again after its end or its death, it goes on."""

  name: str
  arguments: Sequence[str]  # Of `python -m`.


class Ended(NamedTuple):
  """How a job ended; `text` is all that it printed."""

  name: str
  status: int
  text: str

  @property
  def exit_status(self) -> int:
    """The status as a command passes it on: 0, 1, or 2 for all else.

    A job that was killed has a signal's number, which is negative: the worst of
    several statuses would not show it.
    """
    return self.status if self.status in _RESULTS else 2

  def error(self, logs: pathlib.Path) -> errors.InputError:
    """Returns the error for a job that failed."""
    lines = self.text.strip().splitlines() or ["it printed nothing"]
    return errors.InputError(
      f"{self.name} ended with status {self.status}: {lines[-1][:300]};"
      f" {logs / self.name}.log has what it printed"
    )


def run(
  todo: Sequence[Job], logs: pathlib.Path, count: int = 1
) -> Iterator[Ended]:
  """Runs jobs as --engine says; yields each as it ends, and shows how many.

  Each prints to its file in `logs`. Without Ray `count` run at once. Ctrl-C,
  SIGTERM and SIGHUP stop them, and wait until they have left their checkpoints.
  """
  with files.disk_errors(logs):
    logs.mkdir(parents=True, exist_ok=True)
  on_ray = ENGINE.value == "ray"
  ended = _on_ray(todo, logs) if on_ray else _in_processes(todo, logs, count)
  with contextlib.ExitStack() as stack:
    for number in (signal.SIGTERM, signal.SIGHUP):
      # Only the main thread may set handlers.
      with contextlib.suppress(ValueError):
        previous = signal.signal(number, signal.default_int_handler)
        stack.callback(signal.signal, number, previous)
    bar = stack.enter_context(progress.progress_bar(len(todo), 0, "jobs"))
    stack.enter_context(contextlib.closing(ended))
    for each in ended:
      bar.update()
      yield each


def _start(arguments: Sequence[str], path: pathlib.Path) -> subprocess.Popen:
  with open(path, "ab") as log:
    # In a session of its own: a Ctrl-C is the parent's to pass on, once.
    return subprocess.Popen(
      [sys.executable, "-m", *arguments],
      stdout=log,
      stderr=log,
      env={**os.environ, _PARENT: str(os.getpid())},
      start_new_session=True,
    )


# ------------------------------- Processes ----------------------------------


def _in_processes(
  todo: Sequence[Job], logs: pathlib.Path, count: int
) -> Iterator[Ended]:
  free = shares(sorted(host.usable_cores()), count)
  running: dict[subprocess.Popen, tuple[Job, set[int], int]] = {}
  waiting = list(reversed(todo))
  try:
    while waiting or running:
      while waiting and free:
        job, cores = waiting.pop(), free.pop()
        path = logs / f"{job.name}.log"
        start = path.stat().st_size if path.exists() else 0
        process = _start(job.arguments, path)
        running[process] = job, cores, start
        # Before it has loaded what starts threads: they inherit it.
        if hasattr(os, "sched_setaffinity") and cores:
          os.sched_setaffinity(process.pid, cores)
      time.sleep(_POLL_SECONDS)
      for process in [p for p in running if p.poll() is not None]:
        job, cores, start = running.pop(process)
        free.append(cores)
        text = (logs / f"{job.name}.log").read_bytes()[start:]
        yield Ended(job.name, process.returncode, text.decode(errors="replace"))
  finally:
    _stop(running)


def shares(cores: Sequence[int], count: int) -> list[set[int]]:
  """Returns `count` disjoint sets of cores, as even as can be."""
  return [set(cores[i::count]) for i in range(count)]


def _stop(processes) -> None:
  running = [p for p in processes if p.poll() is None]
  for process in running:
    process.send_signal(signal.SIGINT)
  for process in running:
    try:
      process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()


# ------------------------------- Ray ----------------------------------------


def _on_ray(todo: Sequence[Job], logs: pathlib.Path) -> Iterator[Ended]:
  """Hands the jobs to Ray; all nodes see this directory and `logs`."""
  os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
  try:
    import ray  # noqa: PLC0415
  except ImportError as e:
    need = "Ray: pip install 'sparse_jax[cluster]'; or --engine=local"
    raise errors.bad_value("--engine", "ray", need) from e
  # Or each of Ray's own processes would load JAX to find one function.
  ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
  ray.init(
    include_dashboard=False,
    log_to_driver=False,
    logging_level=logging.WARNING,
  )
  try:
    task = ray.remote(
      num_cpus=_CPUS.value,
      num_gpus=_GPUS.value,
      max_retries=_TRIES,
      scheduling_strategy="SPREAD",
    )(_try)
    path = lambda job: str((logs / f"{job.name}.log").absolute())
    of = {task.remote(j.arguments, os.getcwd(), path(j)): j.name for j in todo}
    waiting = list(of)
    while waiting:
      (ref, *_), waiting = ray.wait(waiting)
      yield Ended(of[ref], *ray.get(ref))
  finally:
    ray.shutdown()


def _try(arguments, directory: str, log: str) -> tuple[int, str]:
  """Runs a job on a node; returns its status, and what it has printed."""
  os.chdir(directory)
  path = pathlib.Path(log)
  path.parent.mkdir(parents=True, exist_ok=True)
  for number in range(_TRIES):
    if number:
      time.sleep(_PAUSE_SECONDS)
    start = path.stat().st_size if path.exists() else 0
    if (status := _start(arguments, path).wait()) in _RESULTS:
      break
  return status, path.read_bytes()[start:].decode(errors="replace")
