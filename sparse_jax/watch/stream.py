"""Prompts by the line, in; records by the line, out; memory stays bounded."""

import itertools
import queue
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from sparse_jax.report import user_prompts
from sparse_jax.utils import errors
from sparse_jax.watch.monitor import Monitor

CHUNK = 256  # Prompts that are held, and answered together.
MAX_BYTES = 1 << 18  # Of a line.

# Its number from 1, and its bytes; None if there are too many.
_Line = tuple[int, bytes | None]


def watch(
  monitor: Monitor, file: BinaryIO, live: bool = False
) -> Iterator[dict[str, Any]]:
  """Yields a record for each line that is not blank, in their order.

  A line is a text or an object with "prompt", in JSON. A record has "line" and
  what `Monitor` says, or "error" for a line that is no prompt. `live` answers
  what has come so far, for a file that is still being written.
  """
  lines = _lines(file)
  full = iter(lambda: list(itertools.islice(lines, CHUNK)), [])
  chunks = _arrived(lines) if live else full
  for chunk in chunks:
    yield from _answer(monitor, chunk)


def _answer(monitor: Monitor, lines) -> Iterator[dict[str, Any]]:
  prompts, failed = {}, {}
  for number, line in lines:
    try:
      prompts[number] = monitor.encode(_prompt(number, line))
    except errors.InputError as e:
      failed[number] = {"error": str(e)}
  said = monitor(list(prompts.values())) if prompts else []
  found = failed | dict(zip(prompts, said, strict=True))
  for number in sorted(found):
    yield {"line": number, **found[number]}


def _prompt(number: int, line: bytes | None) -> str:
  where = f"line {number}"
  if line is None:
    raise errors.InputError(f"{where} is longer than {MAX_BYTES} bytes")
  try:
    text = line.decode().strip()
  except UnicodeDecodeError as e:
    raise errors.InputError(
      f"{where} has byte {e.start} that is no UTF-8; need text"
    ) from e
  return user_prompts.parse(where, text).prompt


def _lines(file: BinaryIO) -> Iterator[_Line]:
  """Yields the lines that are not blank; of long ones nothing is kept."""
  for number in itertools.count(1):
    line = file.readline(MAX_BYTES + 1)
    if not line:
      return
    is_long = len(line) > MAX_BYTES
    while len(line) > MAX_BYTES and not line.endswith(b"\n"):
      line = file.readline(MAX_BYTES + 1)
    if is_long or line.strip():
      yield number, None if is_long else line


def _arrived(lines: Iterator[_Line]) -> Iterator[list[_Line]]:
  """Yields what has come since, at least one line and at most a chunk."""
  waiting: queue.Queue[_Line | None] = queue.Queue(CHUNK)

  def fill():
    try:
      for line in lines:
        waiting.put(line)
    finally:
      waiting.put(None)

  threading.Thread(target=fill, daemon=True).start()
  while True:
    chunk = [waiting.get()]
    while chunk[-1] is not None and len(chunk) < CHUNK and not waiting.empty():
      chunk.append(waiting.get())
    yield [line for line in chunk if line is not None]
    if chunk[-1] is None:
      return
