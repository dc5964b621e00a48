"""Trainings that are killed, stopped, starved of space and given bad files."""

import contextlib
import dataclasses
import functools
import itertools
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.survive import processes
from experiments.survive.outcome import Outcome
from sparse_jax import checkpoint
from sparse_jax.training import metric_log

STEPS, EVERY = 400, 10
STOPPED = 128 + signal.SIGTERM  # What a command that goes on later ends with.
CONFIG = '''"""A training of seconds."""

import ml_collections


def get_config():
  return ml_collections.ConfigDict({
    "data": {
      "source": SOURCE,
      "vocab_size": 300,
      "context_length": 16,
      "eval_fraction": 0.3,
    },
    "model": {"n_layer": 1, "d_model": 16, "d_head": 8, "d_mlp": 32},
    "sparsity": {"density": 0.4, "min_alive": 0},
    "train": {
      "steps": NUM_STEPS,
      "batch_size": 8,
      "checkpoint_every": EVERY,
      "log_every": 5,
      "eval_every": 50,
      "eval_batches": 1,
    },
    "prune": {"mean_batches": 2},
  })
'''


def write_text(path: pathlib.Path) -> None:
  """Writes a small text of several documents, with quotes and brackets."""
  rng = random.Random(0)
  words = "alpha beta gamma delta epsilon zeta".split()
  pick = lambda: rng.choice(words)
  line = lambda: f"x = ['{pick()}', \"{pick()}\", ({rng.randrange(99)}, 1)]\n"
  paragraphs = ("".join(line() for _ in range(100)) for _ in range(30))
  path.write_text("\n\n".join(paragraphs))


class Lab:
  """One training: its files, its command, and how it ends undisturbed.

  `what` is the command that trains, `flags` are those of its own, `model` is
  where a work directory then has a model.
  """

  def __init__(
    self,
    root: pathlib.Path,
    steps: int = STEPS,
    what: str = "train",
    flags: Sequence[str] = (),
    model: str = "model",
  ):
    self.root, self.steps, self.what = root, steps, what
    self.flags, self.model = flags, model
    root.mkdir(parents=True, exist_ok=True)
    write_text(root / "text.txt")
    text = CONFIG.replace("SOURCE", repr(str(root / "text.txt")))
    text = text.replace("NUM_STEPS", str(steps)).replace("EVERY", str(EVERY))
    self.config = root / "config.py"
    self.config.write_text(text)

  def command(self, name: str) -> processes.Command:
    """Returns the command that trains in a directory of that name."""
    own = f"--config={self.config}", f"--workdir={self.root / name}"
    arguments = [*own, *self.flags]
    return processes.Command(self.what, arguments, self.root / f"{name}.log")

  @functools.cached_property
  def timing(self) -> processes.Timing:
    """Of the undisturbed run, which is made at the first call."""
    shutil.rmtree(self.root / "undisturbed", ignore_errors=True)
    return processes.Timing.of(self.command("undisturbed"))

  def fresh(self, name: str) -> pathlib.Path:
    """Returns a work directory that does not exist yet."""
    shutil.rmtree(self.root / name, ignore_errors=True)
    return self.root / name

  def copy(self, name: str) -> pathlib.Path:
    """Returns a work directory in which the undisturbed run has finished."""
    _ = self.timing
    return shutil.copytree(self.root / "undisturbed", self.fresh(name))

  def differs(self, name: str) -> str:
    """Returns in what a run differs from the undisturbed one, or ""."""
    mine, want = self.root / name, self.root / "undisturbed"
    parts = {
      "the final state": _final_state,
      "the model": lambda path: checkpoint.load_model(path / self.model)[1],
      "metrics.jsonl": _timeless_rows,
    }
    return ", ".join(
      part
      for part, read in parts.items()
      if not _equal_bits(read(mine), read(want))
    )

  def ended(
    self, name: str, what: str, tried: int, good: int, said: str
  ) -> Outcome:
    """Returns a scenario's outcome, which none survived if the end differs."""
    differs = self.differs(name)
    detail = f"{said}; the end {differs or 'equal bit for bit'}"
    return Outcome(what, tried, 0 if differs else good, detail)


def steps_of(workdir: pathlib.Path) -> list[int]:
  """Returns the steps of a run's whole checkpoints, ascending."""
  folder = workdir / "checkpoints"
  names = (path.name for path in folder.iterdir()) if folder.exists() else ()
  return sorted(int(name) for name in names if name.isdecimal())


def _final_state(workdir):
  newest = steps_of(workdir)[-1]
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(
      (workdir / "checkpoints" / str(newest) / "default").absolute()
    )


def _timeless_rows(workdir):
  rows = metric_log.read_jsonl(workdir / "metrics.jsonl")
  return [{**row, "tokens_per_second": None} for row in rows]


def _equal_bits(a, b) -> bool:
  if jax.tree.structure(a) != jax.tree.structure(b):
    return False
  raw = lambda x: np.asarray(x).tobytes() if hasattr(x, "dtype") else x
  same = jax.tree.map(lambda x, y: raw(x) == raw(y), a, b)
  return all(jax.tree.leaves(same))


def bridge_lab(root: pathlib.Path, dense: Lab) -> Lab:
  """Returns the training of a bridge to another lab's model."""
  _ = dense.timing  # There is a model.
  of_dense = f"--dense={dense.root / 'undisturbed' / 'model'}"
  return Lab(root, 200, "bridge", [of_dense], "bridge/sparse")


def killed(lab: Lab, kills: int, rng: random.Random) -> Outcome:
  """SIGKILL at random moments, again and again."""
  workdir, command = lab.fresh("killed"), lab.command("killed")
  newest = [0]

  def check() -> None:
    found = (steps_of(workdir) or [0])[-1]
    if found < newest[-1]:
      raise command.failed(f"lost checkpoint {newest[-1]}, newest is {found}")
    newest.append(found)

  ended = processes.kill_again_and_again(command, kills, lab.timing, rng, check)
  command.finish()
  differs = lab.differs("killed")
  if differs:
    return Outcome(f"SIGKILL, {lab.what}", kills, 0, f"{differs} differ")
  resumed = len(set(newest)) - 1
  return Outcome(
    f"SIGKILL, {lab.what}",
    kills,
    kills,
    f"weights, optimizer state and metrics equal bit for bit; resumed at"
    f" {resumed} different steps of {lab.steps}, {ended} starts ended first",
  )


def terminated(lab: Lab, times: int, rng: random.Random) -> Outcome:
  """SIGTERM at random steps: a checkpoint, and the documented exit status."""
  _ = lab.timing  # There is an undisturbed end.
  workdir, command = lab.fresh("terminated"), lab.command("terminated")
  seconds, good = [], 0
  for i in range(times):
    # Steps, not seconds: a start with a warm cache takes a fraction of another.
    wanted = lab.steps * (i + rng.random()) / (times + 1)
    is_there = lambda at=wanted: _last_step(command.text(), lab.steps) >= at
    with command.started() as process:
      command.await_sign(process, is_there)
      begin = time.monotonic()
      process.terminate()
      status = command.wait(process)
    seconds.append(time.monotonic() - begin)
    newest = (steps_of(workdir) or [0])[-1]
    said = f"at step {newest} of {lab.steps}" in command.last_line()
    good += status == STOPPED and said
  command.finish()
  said = f"checkpoint and exit status {STOPPED} within {max(seconds):.1f} s"
  return lab.ended("terminated", "SIGTERM, training", times, good, said)


def _last_step(text: str, steps: int) -> int:
  """Returns the step that a log's progress bar showed last."""
  shown = re.findall(rf"(\d+)/{steps} \[", text)
  return int(shown[-1]) if shown else 0


def out_of_space(lab: Lab) -> Outcome:
  """A disk that is full while a checkpoint is written, then is not."""
  _ = lab.timing  # There is an undisturbed end.
  workdir, command = lab.fresh("full"), lab.command("full")
  where, faults = [], []
  for how, full in {"file size limit": _limited, "full tmpfs": _tmpfs}.items():
    lab.fresh("full").mkdir()
    with full(workdir) as limit:
      if limit is None:
        continue
      where.append(how)
      with command.started() as process:
        command.await_sign(process, lambda: len(steps_of(workdir)) > 1)
        limit(process)
        status = command.wait(process)
      kept = steps_of(workdir)
      line = command.last_line()
      told = line.startswith("error: cannot write") and "Traceback" not in (
        command.text()
      )
      limit(None)
      command.finish()
      if differs := lab.differs("full"):
        faults.append(f"{how}: {differs} differ")
      elif status != 2 or not told or not kept:
        faults.append(f"{how}: status {status}, {line!r}, checkpoints {kept}")
  return Outcome(
    "disk full while saving",
    len(where),
    len(where) - len(faults),
    "; ".join(faults)
    or f"{', '.join(where)}: one line, status 2, earlier checkpoints whole,"
    " equal bit for bit once there is space",
  )


@contextlib.contextmanager
def _limited(workdir):
  del workdir
  unlimited = resource.RLIM_INFINITY

  def limit(process):
    if process is not None:
      size = 4 << 10
      resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, unlimited))

  yield limit


@contextlib.contextmanager
def _tmpfs(workdir):
  """Mounts a small file system, where that is allowed."""
  command = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(workdir)]
  try:
    subprocess.run(command, check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    yield None
    return
  filler = workdir / "filler"

  def limit(process):
    if process is None:
      filler.unlink(missing_ok=True)
      return
    with contextlib.suppress(OSError), open(filler, "wb", 0) as file:
      while True:
        file.write(bytes(1 << 12))

  try:
    yield limit
  finally:
    subprocess.run(["umount", str(workdir)], check=True)


def _truncate(path: pathlib.Path) -> None:
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: pathlib.Path) -> None:
  raw = bytearray(path.read_bytes())
  raw[len(raw) // 2] ^= 0x10
  path.write_bytes(raw)


def _largest(step: pathlib.Path) -> pathlib.Path:
  """Returns the file that holds most of a checkpoint."""
  of_arrays = (path for path in step.rglob("*") if path.is_file())
  return max(of_arrays, key=lambda path: (path.stat().st_size, path.name))


_DAMAGES = {
  "cut in half": lambda step: _truncate(_largest(step)),
  "one bit flipped": lambda step: _flip(_largest(step)),
  "one file gone": lambda step: _largest(step).unlink(),
  "all files empty": lambda step: [
    path.write_bytes(b"") for path in step.rglob("*") if path.is_file()
  ],
  "an empty directory": lambda step: (shutil.rmtree(step), step.mkdir()),
}


def corrupted(lab: Lab) -> Outcome:
  """A newest checkpoint that is damaged: the one before it is used."""
  good, failed = 0, []
  for what, damage in _DAMAGES.items():
    workdir, command = lab.copy("corrupted"), lab.command("corrupted")
    before, newest = steps_of(workdir)[-2:]
    damage(workdir / "checkpoints" / str(newest))
    command.finish()
    text = command.text()
    told = f"checkpoint {newest}" in text and f"from step {before}" in text
    if told and not lab.differs("corrupted"):
      good += 1
    else:
      failed.append(what)
  return Outcome(
    "newest checkpoint damaged",
    len(_DAMAGES),
    good,
    f"{', '.join(_DAMAGES)}: the one before is used, with a warning, and the"
    f" end equal bit for bit{'; failed: ' * bool(failed)}{', '.join(failed)}",
  )


def clock_jumps(lab: Lab, times: int, rng: random.Random) -> Outcome:
  """Kills, each with every file's time moved decades back or ahead."""
  workdir, command = lab.fresh("clock"), lab.command("clock")
  years = itertools.cycle((-40, 40))

  def move_times() -> None:
    shift = next(years) * 365 * 86400
    for path in [workdir, *workdir.rglob("*")]:
      moment = max(time.time() + shift + rng.uniform(-1e6, 1e6), 0)
      os.utime(path, (moment, moment), follow_symlinks=False)

  processes.kill_again_and_again(command, times, lab.timing, rng, move_times)
  command.finish()
  said = "file times 40 years back and ahead in turn, a kill each"
  return lab.ended("clock", "clock jumps", times, times, said)


def launched_twice(lab: Lab) -> Outcome:
  """A second launch while the first is at work is refused in one line."""
  workdir, command = lab.fresh("twice"), lab.command("twice")
  second = dataclasses.replace(command, log=lab.root / "second.log")
  with command.started() as first:
    command.await_sign(first)
    with second.started() as process:
      status = second.wait(process)
    refused = status == 2 and "in use by another process" in second.last_line()
    one_line = len(second.text().splitlines()) == 1
    ended = command.wait(first) == 0
  del workdir
  good = refused and one_line and ended and not lab.differs("twice")
  return Outcome(
    "two launches on one directory",
    1,
    int(good),
    f"the second: {second.last_line()!r}, status {status}; the first went on",
  )
