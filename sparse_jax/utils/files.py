"""Files that are whole or absent, and directories used by one process."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from sparse_jax.utils import errors

PathLike = str | os.PathLike


class InUseError(errors.InputError):
  """Another process holds a directory."""


def cannot_write(path: PathLike, reason: str) -> errors.InputError:
  """Returns the error for a path that the system refuses to write."""
  return errors.InputError(
    f"cannot write {path}: {reason}; need a writable directory with free space"
  )


@contextlib.contextmanager
def disk_errors(path: PathLike) -> Iterator[None]:
  """Turns an OSError while writing into an InputError that names the path."""
  try:
    yield
  except OSError as e:
    raise cannot_write(path, e.strerror or str(e)) from e


def write_bytes(path: PathLike, data: bytes) -> None:
  """Writes a file atomically: the old one stands until the new one is whole."""
  path = pathlib.Path(path)
  with disk_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
      with open(handle, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
      os.chmod(temporary, 0o644)
      os.replace(temporary, path)
    except BaseException:
      pathlib.Path(temporary).unlink(missing_ok=True)
      raise


def write_json(path: PathLike, value: Any) -> None:
  """Writes indented JSON atomically; NaN and infinity become null."""
  text = json.dumps(_finite(value), indent=1, allow_nan=False)
  write_bytes(path, (text + "\n").encode())


def _finite(value):
  if isinstance(value, dict):
    return {k: _finite(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(v) for v in value]
  if isinstance(value, float) and not (abs(value) < float("inf")):
    return None
  return value


def read_text(path: PathLike, what: str, encoding: str = "utf-8") -> str:
  """Returns a file's text; `what` says in errors what was expected."""
  try:
    return pathlib.Path(path).read_text(encoding)
  except (OSError, UnicodeDecodeError) as e:
    raise errors.InputError(f"{path} cannot be read ({e}); need {what}") from e


def read_json(path: PathLike, what: str) -> Any:
  """Returns a JSON file's value; `what` says in errors what was expected."""
  try:
    with open(path, "rb") as f:
      return json.loads(f.read())
  except (OSError, ValueError, RecursionError) as e:
    reason = e.strerror if isinstance(e, OSError) else f"not JSON ({e})"
    raise errors.InputError(f"{path}: {reason}; need {what}") from e


@contextlib.contextmanager
def replace_directory(path: PathLike, marker: str) -> Iterator[pathlib.Path]:
  """Yields a new directory that takes the place of `path` when complete.

  Raises InputError where `path` is in use and holds no file `marker`, so that
  nothing foreign is ever removed.
  """
  path = pathlib.Path(path)
  if path.exists() and not (path / marker).is_file():
    if not path.is_dir() or any(path.iterdir()):
      raise errors.InputError(
        f"{path} exists and holds no {marker}; need a new, an empty or an"
        " earlier output directory"
      )
  with disk_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = lambda word: pathlib.Path(
      tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-{word}-")
    )
    new = beside("new")
    try:
      os.chmod(new, 0o755)
      yield new
      old = beside("old")
      if path.exists():
        os.replace(path, old)
      os.replace(new, path)
      shutil.rmtree(old, ignore_errors=True)
    except BaseException:
      _remove_written(new)
      raise


def _remove_written(directory: pathlib.Path) -> None:
  # When one array cannot be written, Orbax raises while its other threads go
  # on. The directory has to stay away for 0.2 s; after 5 s it is left.
  start = gone = time.monotonic()
  while (now := time.monotonic()) < min(gone + 0.2, start + 5):
    if directory.exists():
      shutil.rmtree(directory, ignore_errors=True)
      gone = now
    time.sleep(0.01)


@contextlib.contextmanager
def exclusive(directory: PathLike) -> Iterator[None]:
  """Holds a work directory for this process alone, else raises InUseError."""
  directory = pathlib.Path(directory)
  with disk_errors(directory):
    directory.mkdir(parents=True, exist_ok=True)
    lock = open(directory / ".lock", "w")
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      raise InUseError(
        f"{directory} is in use by another process; wait for it or choose"
        " another --workdir"
      ) from e
    yield
