"""The host process: how it keeps memory and compiled programs."""

import contextlib
import ctypes
import functools
import importlib.metadata
import importlib.util
import math
import os
import pathlib
import platform
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

PARENT = "SPARSE_JAX_PARENT"  # An environment variable: a process's number.
_POLL_SECONDS = 1.0

# Options of glibc's mallopt (malloc.h) and their values.
_MALLOPT = (
  (-8, 1),  # M_ARENA_MAX
  (-4, 0),  # M_MMAP_MAX
  (-1, 2**31 - 1),  # M_TRIM_THRESHOLD
  (-2, 64 << 20),  # M_TOP_PAD
)


def keep_freed_memory() -> bool:
  """Makes the allocator keep freed memory instead of returning it.

  XLA allocates a step's temporaries anew each time, hundreds of megabytes;
  glibc returns such blocks to the system, so every step faults all its pages
  in again (docs/decisions.md has a measurement). Call it before the first
  computation; the C library took the settings if it returns true.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError):
    return False
  return all(mallopt(option, value) == 1 for option, value in _MALLOPT)


def aligned_empty(shape: tuple[int, ...]) -> np.ndarray:
  """Returns a float32 array that `jax.device_put` takes over without a copy."""
  alignment = 64  # Bytes; what XLA's CPU backend asks of a borrowed buffer.
  size = 4 * math.prod(shape)
  raw = np.empty(size + alignment, np.uint8)
  start = -raw.ctypes.data % alignment
  return raw[start : start + size].view(np.float32).reshape(shape)


def cache_compilations() -> None:
  """Keeps compiled programs between runs, in the user's cache directory.

  `JAX_COMPILATION_CACHE_DIR` names another place.
  """
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    directory = pathlib.Path(home) / "sparse_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(directory))


def compile_fast() -> None:
  """Asks LLVM for its first level of optimization, where the CPU computes.

  Programs are then made in two thirds of the time and run as fast
  (docs/performance.md). Call it before the first computation. A level that
  `XLA_FLAGS` names stays, and so does all where JAX may find an accelerator.
  """
  flag = "--xla_backend_optimization_level"
  flags = os.environ.get("XLA_FLAGS", "")
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  is_tpu = importlib.util.find_spec("libtpu") is not None
  if flag not in flags and not plugins and not is_tpu:
    os.environ["XLA_FLAGS"] = f"{flags} {flag}=1".strip()


class Compiled(NamedTuple):
  """What this process has waited for since `count_compilations`."""

  programs: int = 0
  seconds: float = 0.0  # To compile them, or to read them from the cache.

  def __str__(self) -> str:
    return f"{self.programs} programs in {self.seconds:.0f} s"


_compile_seconds: list[float] = []


@functools.cache  # One listener however often it is asked for.
def count_compilations() -> None:
  """Starts to count what `compiled` returns."""

  def note(event: str, seconds: float, **_) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
      _compile_seconds.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(note)


def compiled() -> Compiled:
  """Returns how many programs were made, and how long that took."""
  return Compiled(len(_compile_seconds), sum(_compile_seconds))


def free_memory() -> int:
  """Returns the bytes that the default device may still give computations."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
  with contextlib.suppress(OSError):
    text = pathlib.Path("/proc/meminfo").read_text()
    if kilobytes := re.search(r"^MemAvailable: *(\d+)", text, re.MULTILINE):
      return 1024 * int(kilobytes[1])
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def peak_memory() -> int:
  """Returns the most bytes of host memory this process has held at once."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak


def usable_cores() -> set[int]:
  """Returns the cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return os.sched_getaffinity(0)
  return set(range(os.cpu_count() or 1))


def end_with_parent() -> None:
  """Makes this process stop, as by SIGTERM, once the one in `PARENT` has ended.

  A killed parent stops nobody: its jobs would go on unseen, and hold the
  directories that the same command, started again, wants.
  """
  # Not for processes that this one starts.
  parent = os.environ.pop(PARENT, None)
  if parent is None:
    return

  def watch() -> None:
    while os.getppid() == int(parent):
      time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=watch, daemon=True).start()


def tell_if_killed(message: str) -> Callable[[], None]:
  """Makes a line the last on standard error if this process is killed.

  A shell waits for the end of this process, by abort() too, and prints it,
  unless what is returned was called before.
  """
  program = ["sh", "-c", 'read -r _ || echo "$0" >&2', message]
  # In a session of its own: what signals the group shall not end it.
  watcher = subprocess.Popen(
    program, stdin=subprocess.PIPE, start_new_session=True
  )
  return lambda: watcher.communicate(b"\n") and None


def environment() -> dict[str, Any]:
  """Returns the machine and the versions of what computes on it."""
  packages = ("jax", "jaxlib", "flax", "optax", "numpy")
  return {
    "machine": {
      "processor": _processor(),
      "cores": len(usable_cores()),
      "free_bytes": free_memory(),
      "load_average": os.getloadavg(),
      "platform": platform.platform(),
      "backend": jax.default_backend(),
      "device": jax.local_devices()[0].device_kind,
    },
    "versions": {
      "python": platform.python_version(),
      **{name: importlib.metadata.version(name) for name in packages},
    },
  }


def _processor() -> str:
  with contextlib.suppress(OSError):
    text = pathlib.Path("/proc/cpuinfo").read_text()
    if name := re.search(r"model name\s*: *(.+)", text):
      return name[1].strip()
  return platform.processor()
