"""Test settings: quick compiles, four CPU devices, the same examples."""

import importlib.util
import mmap
import os
import pathlib
import sys

import hypothesis
import pytest


def xla_knows(flag: str) -> bool:
  """Whether jaxlib has a flag of XLA, which ends processes that name others."""
  folder = pathlib.Path(importlib.util.find_spec("jaxlib").origin).parent
  for path in folder.glob("libjax_common.*"):
    with (
      open(path, "rb") as file,
      mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library,
    ):
      return library.find(f"{flag}\0".encode()) >= 0
  return False


# Tests compile much and compute little: without LLVM's optimizations, and by
# XLA's older emitters where it has them (JAX 0.11 has not), the same programs
# are made in a third of the time.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_backend_optimization_level=0"
  + " --xla_llvm_disable_expensive_passes=true"
  + " --xla_force_host_platform_device_count=4"
)
if xla_knows("xla_cpu_use_fusion_emitters"):
  os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_PLATFORMS"] = "cpu"
# Workers and subprocesses share what one of them has compiled.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
  pathlib.Path(__file__).parent.parent / ".pytest_cache" / "compiled"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"


hypothesis.settings.register_profile(
  "ci", deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("ci")


_MAPS = pathlib.Path("/proc/self/maps")
_MANY = 20_000  # Of the 65,530 that Linux allows a process.


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
  """Drops compiled programs when they take much of a process's mappings.

  Beyond the limit of the kernel, XLA ends in a segmentation fault.
  """
  yield
  if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MANY:
    # Not imported above: it reads the environment that is set there.
    sys.modules["jax"].clear_caches()
