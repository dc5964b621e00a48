"""Test settings: quick compiles, four CPU devices, the same examples."""

import os
import pathlib

import hypothesis

# Tests compile much and compute little: the older emitters, without LLVM's
# optimizations, make the same programs in a third of the time.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_backend_optimization_level=0"
  + " --xla_llvm_disable_expensive_passes=true"
  + " --xla_cpu_use_fusion_emitters=false"
  + " --xla_force_host_platform_device_count=4"
)
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
