"""Where numbers go while a run lasts: metrics.jsonl and TensorBoard."""

import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2

from sparse_jax.utils import errors, files


def read_jsonl(path: files.PathLike) -> list[dict[str, Any]]:
  """Returns the whole lines of a JSONL file; a torn last line is left out."""
  path = pathlib.Path(path)
  if not path.exists():
    return []
  rows = []
  lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except ValueError:
      row = None
    if not isinstance(row, dict):
      raise errors.InputError(
        f"{path}: line {number} is {line[:40]!r}; need a JSON object"
      )
    rows.append(row)
  return rows


class MetricWriter:
  """Appends one JSON object a logged step, and TensorBoard scalars.

  A resumed run first drops the rows after its checkpoint, so that every step
  stands once, as in a run that was never stopped.
  """

  def __init__(self, workdir: pathlib.Path, resumed_step: int):
    self._path = workdir / "metrics.jsonl"
    rows = [r for r in read_jsonl(self._path) if r["step"] <= resumed_step]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    files.write_bytes(self._path, text.encode())
    with files.disk_errors(workdir):
      self._file = open(self._path, "a", encoding="utf-8")
      directory = workdir / "tensorboard"
      directory.mkdir(exist_ok=True)
      # Not SummaryWriter: its thread dies of a full disk, and who waits for
      # that thread waits for ever.
      self._board = event_file_writer.EventsWriter(str(directory / "events"))
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._add(resumed_step + 1, session_log=start)

  def _add(self, step: int, **content) -> None:
    event = event_pb2.Event(step=step, wall_time=time.time(), **content)
    self._board.write_event(event)

  def write(
    self,
    step: int,
    values: Mapping[str, float],
    densities: Mapping[str, float] | None = None,
  ) -> None:
    """Writes the values of a step; `densities` by parameter path."""
    values = {k: v if math.isfinite(v) else None for k, v in values.items()}
    row: dict[str, Any] = {"step": step, **values}
    scalars = {k: v for k, v in values.items() if v is not None}
    if densities:
      row["densities"] = dict(densities)
      scalars |= {f"density/{path}": v for path, v in densities.items()}
    with files.disk_errors(self._path):
      self._file.write(json.dumps(row) + "\n")
      self._file.flush()
      for name, value in scalars.items():
        self._add(step, summary=summary.scalar(name, value))
      if densities:
        self._board.flush()

  def close(self) -> None:
    """Flushes and closes both."""
    with files.disk_errors(self._path.parent):
      self._file.close()
      self._board.close()
