"""Orbax's failures as errors of one line."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator

from absl import logging

from sparse_jax.utils import files

_ORBAX = "orbax"  # A folder of every file of it.


@contextlib.contextmanager
def silence() -> Iterator[None]:
  """Keeps Orbax from logging tracebacks of errors that we report ourselves.

  Its threads log too: whoever starts some keeps silence until they have ended.
  """
  is_ours = lambda record: _ORBAX not in pathlib.PurePath(record.pathname).parts
  logger = logging.get_absl_logger()
  logger.addFilter(is_ours)
  try:
    yield
  finally:
    logger.removeFilter(is_ours)


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
