"""A user's own prompts for the page, from a file."""

import dataclasses
import json

from sparse_jax.utils import errors, files

MAX_PROMPTS = 20


@dataclasses.dataclass(frozen=True)
class UserPrompt:
  """A prompt that the user wants to see, and maybe its other side."""

  prompt: str
  counter_prompt: str | None = None


def read(path: files.PathLike) -> list[UserPrompt]:
  """Reads a file of a line of JSON a prompt.

  A line is a text, or an object with "prompt" and maybe "counter_prompt", as in
  a task's file; other keys are left alone, and so are empty lines.

  Raises:
    InputError: that names the line that is not one, or if there are too many.
  """
  text = files.read_text(path, "a file with a line of JSON a prompt")
  prompts = [
    parse(f"{path}: line {number}", line)
    for number, line in enumerate(text.split("\n"), 1)
    if line.strip()
  ]
  if not 0 < len(prompts) <= MAX_PROMPTS:
    raise errors.bad_value(
      f"{path}: prompts", len(prompts), f"1 to {MAX_PROMPTS} lines"
    )
  return prompts


def parse(where: str, line: str) -> UserPrompt:
  """Returns the prompt of a line; raises InputError, which names `where`."""
  need = 'a text in JSON or an object with "prompt", text'
  try:
    value = json.loads(line)
  except (ValueError, RecursionError):
    raise errors.bad_value(where, line[:80], need) from None
  if isinstance(value, str):
    value = {"prompt": value}
  if not isinstance(value, dict):
    raise errors.bad_value(where, line[:80], need)
  prompt, other = value.get("prompt"), value.get("counter_prompt")
  if not isinstance(prompt, str) or not isinstance(other, str | None):
    raise errors.bad_value(where, line[:80], need)
  return UserPrompt(prompt, other)
