"""Orbax's failures as errors of one line."""

import contextlib
import os
import re
from collections.abc import Iterator

from absl import logging

from sparse_jax.utils import files


@contextlib.contextmanager
def silence() -> Iterator[None]:
  """Keeps Orbax from logging tracebacks of errors that we report ourselves."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(before)


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
  """Turns a failed write into an InputError with the system's reason."""
  try:
    with silence():
      yield
  except (OSError, ValueError) as e:
    # Orbax raises ValueError, with the system's number in its text.
    code = re.search(r"os_error_code='(\d+)'", str(e))
    reason = os.strerror(int(code[1])) if code else str(e)
    raise files.cannot_write(what, reason) from e
