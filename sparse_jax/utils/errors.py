"""The error a user can mend: one line with field, value, what is accepted."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
  """Bad input from outside: a config field, a file, a flag, a task.

  Commands print its one line and exit with status 2, so it names the field or
  file, the value found and what is accepted.
  """

  def __init__(self, message: str):
    super().__init__(" ".join(message.split()))


def bad_value(name: str, value, accepted: str) -> InputError:
  """Returns the standard error for `name` holding `value`."""
  return InputError(f"{name}={value!r} is not accepted; need {accepted}")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
  """Returns the error for a name that is not in a table, with a suggestion."""
  known = list(known)
  close = difflib.get_close_matches(name, known, n=1)
  hint = f"did you mean {close[0]!r}? " if close else ""
  return InputError(
    f"unknown {kind} {name!r}; {hint}accepted: {', '.join(known)}"
  )
