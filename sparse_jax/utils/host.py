"""The host process: how it keeps memory and compiled programs."""

import contextlib
import ctypes
import importlib.metadata
import os
import pathlib
import platform
import resource
import sys
from typing import Any

import jax

# Numbers of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


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
  settings = (
    (_ARENA_MAX, 1),
    (_MMAP_MAX, 0),
    (_TRIM_THRESHOLD, 2**31 - 1),
    (_TOP_PAD, 64 << 20),
  )
  return all(mallopt(option, value) == 1 for option, value in settings)


def cache_compilations() -> None:
  """Keeps compiled programs between runs, in the user's cache directory.

  `JAX_COMPILATION_CACHE_DIR` names another place.
  """
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    directory = pathlib.Path(home) / "sparse_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(directory))


def free_memory() -> int:
  """Returns the bytes that the default device may still give computations."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
  with contextlib.suppress(OSError):
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
      if line.startswith("MemAvailable:"):
        return int(line.split()[1]) * 1024
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def peak_memory() -> int:
  """Returns the most bytes of host memory this process has held at once."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak


def environment() -> dict[str, Any]:
  """Returns the machine and the versions of what computes on it."""
  packages = ("jax", "jaxlib", "flax", "optax", "numpy")
  return {
    "machine": {
      "processor": _processor(),
      "cores": len(os.sched_getaffinity(0))
      if hasattr(os, "sched_getaffinity")
      else os.cpu_count(),
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
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text()
  except OSError:
    return platform.processor()
  lines = (line for line in text.splitlines() if "model name" in line)
  name = next(lines, "").partition(":")[2].strip()
  return name or platform.processor()
