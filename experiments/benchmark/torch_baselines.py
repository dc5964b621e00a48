"""Runs the PyTorch baselines: scripts that take the same step as we do.

A script runs in an interpreter of its own that has PyTorch, takes the shape as
flags and prints one JSON line with the median seconds of a step.
"""

import dataclasses
import json
import os
import pathlib
import subprocess

from sparse_jax.utils import errors

TRAIN, PRUNE = "torch_step.py", "torch_prune_step.py"
NEED_TORCH = (
  "the PyTorch baselines were not run: python3 -m venv torch &&"
  " torch/bin/pip install torch numpy, then --torch_python=torch/bin/python"
)
_SCRIPTS = pathlib.Path(__file__).parent / "baselines"
_TIMEOUT = 600  # seconds


class BaselineError(Exception):
  """A baseline failed or printed no time, or there is no PyTorch."""


@dataclasses.dataclass(frozen=True)
class Baselines:
  """Where the baselines run."""

  python: str = ""  # An interpreter that has PyTorch, if there is one.
  device: str = "cpu"  # Or "cuda".

  def __post_init__(self):
    if self.python and not os.path.isfile(self.python):
      raise errors.bad_value(
        "--torch_python", self.python, "a Python interpreter that has PyTorch"
      )

  def sampler(self, script: str, steps: int, *flags: str):
    """Returns a function that runs a script; gives `[its median of steps]`."""
    command = [self.python, str(_SCRIPTS / script), f"--steps={steps}"]
    command += [f"--device={self.device}", *flags]

    def sample() -> list[float]:
      if not self.python:
        raise BaselineError(NEED_TORCH)
      try:
        done = subprocess.run(
          command, capture_output=True, check=False, text=True, timeout=_TIMEOUT
        )
      except (OSError, subprocess.TimeoutExpired) as e:
        raise BaselineError(f"{script}: {e}") from e
      for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
          return [json.loads(line)["step_seconds"]]
      last = (done.stderr.strip().splitlines() or ["no output"])[-1]
      raise BaselineError(f"{script} failed: {last}")

    return sample

  def torch_version(self) -> str | None:
    """Returns PyTorch's version, None without it."""
    if not self.python:
      return None
    command = [self.python, "-c", "import torch; print(torch.__version__)"]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    return done.stdout.strip() or None
