"""The PyTorch peers: scripts that take the same step, to time beside ours.

They are no part of the project. Each runs in an interpreter of its own that has
PyTorch, takes its shape as flags and prints one JSON line with the median time
of a step.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
from collections.abc import Callable, Sequence

from sparse_jax.utils import errors

TRAIN_PEER = "torch_step.py"
PRUNE_PEER = "torch_prune_step.py"
INSTALL_PEERS = (
  "the PyTorch peers are not installed: python3 -m venv peer &&"
  " peer/bin/pip install torch numpy, and put"
  f" {TRAIN_PEER} and {PRUNE_PEER} into peer/; or name other places with"
  " --torch_python and --peer_dir"
)

_PEER_TIMEOUT = 600  # seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peers:
  """The PyTorch peers.

  Attributes:
    python: interpreter that has PyTorch; None if there are no peers.
    directory: where the scripts are.
    device: what they compute on: "cpu" or "cuda".
  """

  python: str | None = None
  directory: str = "peer"
  device: str = "cpu"

  def sampler(
    self, script: str, steps: int, *flags: str
  ) -> Callable[[], list[float]]:
    """Returns a sampler of a peer's median step.

    Args:
      script: its file name.
      steps: how many steps its own median is of.
      *flags: its shape.

    Returns:
      A function that starts the peer, waits for its end and returns one time.

    Raises:
      PeerError: when that function runs and the peer is missing or fails.
    """
    command = [
      str(self.python),
      str(pathlib.Path(self.directory) / script),
      f"--steps={steps}",
      f"--device={self.device}",
      *flags,
    ]

    def sample() -> list[float]:
      if self.python is None:
        raise PeerError(INSTALL_PEERS)
      return [_run_peer(command)]

    return sample


class PeerError(Exception):
  """A peer is missing, failed, or printed no figure."""


def find_peers(
  python: str, directory: str, required: bool, device: str = "cpu"
) -> Peers:
  """Returns the peers at these places, or none.

  Args:
    python: interpreter that has PyTorch.
    directory: where the scripts are.
    required: whether the user asked for them.
    device: what they compute on.

  Raises:
    InputError: if they are required and missing.
  """
  scripts = [pathlib.Path(directory) / s for s in (TRAIN_PEER, PRUNE_PEER)]
  missing = next((p for p in [python, *scripts] if not os.path.isfile(p)), None)
  if missing is None:
    return Peers(python=python, directory=directory, device=device)
  if required:
    raise errors.InputError(f"{missing}: no such file; {INSTALL_PEERS}")
  return Peers(directory=directory, device=device)


def _run_peer(command: Sequence[str]) -> float:
  """Returns the seconds of a step that a peer prints."""
  try:
    done = subprocess.run(
      command,
      capture_output=True,
      check=False,
      text=True,
      timeout=_PEER_TIMEOUT,
    )
  except (OSError, subprocess.TimeoutExpired) as e:
    raise PeerError(f"{command[1]}: {e}") from e
  for line in reversed(done.stdout.splitlines()):
    if line.startswith("{"):
      row = json.loads(line)
      return (row.get("step_ms") or row["mask_step_ms"]) / 1e3
  last = (done.stderr.strip().splitlines() or ["no output"])[-1]
  raise PeerError(f"{command[1]} failed: {last}")


def torch_version(peers: Peers) -> str | None:
  """Returns the version of PyTorch that the peers use, None without peers."""
  if peers.python is None:
    return None
  done = subprocess.run(
    [peers.python, "-c", "import torch; print(torch.__version__)"],
    capture_output=True,
    check=False,
    text=True,
  )
  return done.stdout.strip() or None
