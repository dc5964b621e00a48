"""The project's commands as processes to kill.

A server that has loaded the libraries forks them: a kill costs the run's own
start, not seconds of imports.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import random
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from sparse_jax.utils import errors, progress

_PRELOADED = ["experiments.cli", "sparse_jax.frontier"]
_POLL_SECONDS = 0.002
# A start is as good a moment to be killed as any; most kills meet work.
_SHARE_OF_STARTS = 0.25


def prepare(compiled: pathlib.Path) -> None:
  """Makes processes keep compiled programs in a directory; call it first."""
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(compiled.absolute())
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  _context().set_forkserver_preload(_PRELOADED)


def _context():
  return multiprocessing.get_context("forkserver")


def _run(module: str, arguments: Sequence[str], log: pathlib.Path) -> None:
  handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
  for stream in (1, 2):
    os.dup2(handle, stream)
  sys.argv = [module, *arguments]
  runpy.run_module(module, run_name="__main__", alter_sys=True)


@dataclasses.dataclass(frozen=True)
class Command:
  """A command of `experiments`, to be started many times.

  Attributes:
    name: such as "train".
    arguments: its flags.
    log: the file that each start writes its output to, anew.
    timeout: seconds that one start may take.
  """

  name: str
  arguments: Sequence[str]
  log: pathlib.Path
  timeout: float = 1800.0

  @contextlib.contextmanager
  def started(self) -> Iterator[multiprocessing.Process]:
    """Yields a process; it is dead afterwards."""
    self.log.unlink(missing_ok=True)
    arguments = f"experiments.{self.name}", self.arguments, self.log
    process = _context().Process(target=_run, args=arguments)
    process.start()
    try:
      yield process
    finally:
      process.kill()
      process.join()

  def wait(self, process: multiprocessing.Process) -> int:
    """Returns the exit status; a signal's number is negative."""
    process.join(self.timeout)
    if process.is_alive():
      raise self.failed(f"is still running after {self.timeout:g} s")
    return process.exitcode

  def finish(self) -> None:
    """Runs it to the end; raises InputError unless that is a good one."""
    with self.started() as process:
      if status := self.wait(process):
        raise self.failed(f"ended with status {status}")

  def failed(self, what: str) -> errors.InputError:
    return errors.InputError(
      f"{self.name} {what}: {self.last_line()!r}; {self.log} has its output"
    )

  def text(self) -> str:
    """Returns what the last start has printed so far."""
    return self.log.read_text(errors="replace") if self.log.exists() else ""

  def last_line(self) -> str:
    return (self.text().splitlines() or [""])[-1]

  def await_sign(
    self, process, is_there: Callable[[], bool] | None = None
  ) -> None:
    """Waits until it has printed something, or `is_there`, or it has ended."""
    is_there = is_there or (
      lambda: self.log.exists() and self.log.stat().st_size > 0
    )
    deadline = time.monotonic() + self.timeout
    while process.is_alive() and not is_there():
      if time.monotonic() > deadline:
        raise self.failed("shows nothing")
      time.sleep(_POLL_SECONDS)


@dataclasses.dataclass
class Timing:
  """How long a start takes until it prints something, and then to the end."""

  start: float
  work: float

  @classmethod
  def of(cls, command: Command) -> "Timing":
    """Measures an uninterrupted run."""
    begin = time.monotonic()
    with command.started() as process:
      command.await_sign(process)
      begun = time.monotonic()
      if status := command.wait(process):
        raise command.failed(f"ended with status {status}")
    return cls(begun - begin, time.monotonic() - begun)


def kill_again_and_again(
  command: Command,
  kills: int,
  timing: Timing,
  rng: random.Random,
  after: Callable[[], None],
) -> int:
  """Kills `kills` starts in a row at random moments; `after` checks each time.

  Returns how many starts ended by themselves before their moment came.
  """
  done = ended = 0
  window = 2 * timing.work / kills
  with progress.progress_bar(kills, 0, f"killing {command.name}") as bar:
    while done < kills:
      is_early = rng.random() < _SHARE_OF_STARTS
      delay = rng.uniform(0, timing.start if is_early else window)
      with command.started() as process:
        if not is_early:
          command.await_sign(process)
        process.join(delay)
        process.kill()
        status = command.wait(process)
      after()
      if status == -signal.SIGKILL:
        done += 1
        bar.update()
      elif status == 0:
        ended += 1
      else:
        raise command.failed(f"ended with status {status} after a kill")
  return ended
