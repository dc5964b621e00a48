"""What Orbax reports when a disk refuses."""

import contextlib
import os
import re
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def silence() -> Iterator[None]:
  """Keeps Orbax from logging tracebacks of errors that we report ourselves."""
  before = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(before)


def reason(error: Exception) -> str:
  """Returns why a write failed: the system's words if it was the system."""
  code = re.search(r"os_error_code='(\d+)'", str(error))
  return os.strerror(int(code[1])) if code else str(error)
