"""The process that reads mutated inputs, within limits and under watch."""

import multiprocessing
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time
from typing import NamedTuple

from absl import logging

from experiments.mutate import inputs
from sparse_jax.utils import errors, host

CPU_SECONDS = 5.0  # More of them is a hang.
_WALL_SECONDS = 120.0  # So is this, on a machine that does other things.
MEMORY_BYTES = 512 << 20  # Above what the process has before it reads.
_LIFE = 2000  # Inputs a process reads.

# What no reader of data has to do: names of sys.audit events.
_FORBIDDEN = {
  *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"),
  *("subprocess.Popen", "pickle.find_class", "socket.connect", "socket.bind"),
  *("os.remove", "os.rename", "os.link", "os.symlink", "os.chmod", "os.kill"),
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Result(NamedTuple):
  """How reading an input ended."""

  number: int
  outcome: str  # "read", "refused", or one of what must not happen.
  text: str  # The error, or "".
  megabytes: float  # The process's peak above where it began.


def read_inputs(name: str, seed: int, first: int, stop: int, report) -> None:
  """Reads inputs first to stop of a kind; reports a `Result` after each."""
  # However old the caller's terminal is: nobody reads what is printed.
  null = os.open(os.devnull, os.O_WRONLY)
  os.dup2(null, 1)
  os.dup2(null, 2)
  logging.set_verbosity(logging.FATAL)
  kind = inputs.KINDS[name]
  with tempfile.TemporaryDirectory() as root:
    directory = pathlib.Path(root) / "input"
    for good in inputs.good(name):  # What is loaded late is loaded now.
      write(directory, good)
      kind.read(directory)
    for number in range(32):
      _read(kind, name, seed, -1 - number, directory, [])
    start = host.peak_memory()
    limit = _address_space() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    seen: list[str] = []
    armed = _watch(directory, seen, kind.runs_code)
    for number in range(first, min(stop, first + _LIFE)):
      outcome, text = _read(kind, name, seed, number, directory, seen, armed)
      megabytes = (host.peak_memory() - start) / 1e6
      report.send(Result(number, outcome, text, megabytes))


def write(directory: pathlib.Path, made: inputs.Files) -> None:
  """Writes an input's files, in place of another's."""
  shutil.rmtree(directory, ignore_errors=True)
  for name, raw in made.items():
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw)


def _read(kind, name, seed, number, directory, seen, armed=None):
  write(directory, inputs.make(name, seed, number))
  signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
  seen.clear()
  outcome, text = "read", ""
  try:
    if armed is not None:
      armed.append(True)
    kind.read(directory)
  except errors.InputError as e:
    outcome, text = "refused", str(e)
  except MemoryError as e:
    outcome, text = "memory", repr(e)
  except BaseException as e:  # A panic of a Rust library is no Exception.
    outcome, text = "crash", f"{type(e).__name__}: {e}"
  finally:
    if armed is not None:
      armed.clear()
    signal.setitimer(signal.ITIMER_PROF, 0)
  if seen:
    outcome, text = "execution", "; ".join(seen)
  return outcome, text[:500]


def _address_space() -> int:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  return pages * resource.getpagesize()


def _watch(directory, seen: list[str], runs_code: bool) -> list[bool]:
  """Notes forbidden events while the list that it returns holds something."""
  armed: list[bool] = []
  ours = tuple(
    str(pathlib.Path(p).resolve())
    for p in (directory, sys.prefix, sys.base_prefix, os.getcwd())
  )
  ours += ("/proc", "/sys", "/dev")

  def hook(event: str, arguments) -> None:
    if not armed:
      return
    if event in _FORBIDDEN:
      seen.append(f"{event} {arguments!r}"[:200])
    elif event == "exec" and not runs_code:
      file = getattr(arguments[0], "co_filename", "")
      if not file.startswith((sys.prefix, sys.base_prefix, os.getcwd())):
        seen.append(f"exec {file}")
    elif event == "open" and isinstance(arguments[0], str):
      path, _, flags = arguments
      is_write = bool((flags or 0) & _WRITES)
      if is_write or not os.path.realpath(path).startswith(ours):
        seen.append(f"open {path!r} {flags}")

  sys.addaudithook(hook)
  return armed


def run(name: str, seed: int, first: int, stop: int):
  """Yields a `Result` for each input, whatever becomes of the processes."""
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["experiments.mutate.inputs"])
  while first < stop:
    mine, theirs = context.Pipe(duplex=False)
    arguments = name, seed, first, stop, theirs
    process = context.Process(target=read_inputs, args=arguments)
    process.start()
    theirs.close()
    begun = first
    try:
      while first < min(stop, begun + _LIFE):
        patience = _WALL_SECONDS + (600 if first == begun else 0)
        deadline = time.monotonic() + patience
        if not mine.poll(deadline - time.monotonic()):
          yield Result(first, "hang", f"no end within {patience:g} s", 0.0)
          first += 1
          break
        yield mine.recv()
        first += 1
    except EOFError:
      process.join()
      status = process.exitcode
      outcome = "hang" if status == -signal.SIGPROF else "crash"
      if first == begun and status == 1:
        raise RuntimeError(f"{name}: a good input cannot be read") from None
      yield Result(first, outcome, f"process ended with {status}", 0.0)
      first += 1
    finally:
      process.kill()
      process.join()
      mine.close()
