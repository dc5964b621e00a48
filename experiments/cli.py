"""What every command shares: flags, configs from files, one-line errors.

Bad input ends with one line on standard error and exit status 2. What was
stopped and can go on ends with 128 and the signal's number: 130 after Ctrl-C,
143 after SIGTERM.
"""

import ast
import dataclasses
import functools
import importlib.util
import logging as stdlib_logging
import os
import pathlib
import signal
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags, logging

from sparse_jax import config as config_lib
from sparse_jax.training import loop
from sparse_jax.utils import errors, host

TASKS_HELP = (
  "Names of tasks or .jsonl and .py files of your own, separated by commas, or"
  """ all; a name that has a comma in quotes: --tasks='"a,b.jsonl",var_if'."""
)
_HELP = {"-h", "-help", "--help", "--helpshort", "--helpfull"}

# Before JAX loads: its start-up notes are no news to a user on a laptop.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def require(*names: str) -> None:
  """Makes flags required: without one, the error says what its help says."""

  def check(error: str, value: Any) -> bool:
    if not value:
      raise errors.InputError(error)
    return True

  for name in names:
    flag = flags.FLAGS[name]
    need = flag.help[:1].lower() + flag.help[1:].rstrip(".")
    flag.help += " (required)"
    flags.register_validator(
      name, functools.partial(check, f"--{name} is missing; need {need}")
    )


def run(
  main: Callable[[list[str]], int | None],
  description: str,
  example: str = "sparsity.density=0.05",
  kind: type = config_lib.Config,
) -> None:
  """Parses flags, calls `main` with the `--config.…` overrides and exits.

  `main` returns the exit status, None for 0. For `--help`: `example` is an
  override of the command's config, `kind` the config's dataclass.
  """
  flags.FLAGS.set_default("showprefixforinfo", False)
  logging.set_verbosity(logging.WARNING)
  sys.unraisablehook = _unraisablehook
  # Likewise: Orbax leaves futures with exceptions behind, nobody asks for them.
  stdlib_logging.getLogger("asyncio").setLevel(stdlib_logging.CRITICAL)
  show_help = functools.partial(_help, description, example, kind)
  sys.exit(_status(main, sys.argv, show_help))


def _unraisablehook(unraisable) -> None:
  """Reports exceptions nobody can catch, but for TensorStore's belated ones.

  When one array of a checkpoint fails, the others' threads still report to an
  event loop that is closed by then: tracebacks around the line that matters.
  """
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


def _status(main, argv: Sequence[str], help_text: Callable[[bool], str]) -> int:
  try:
    overrides = [a for a in argv[1:] if a.startswith("--config.")]
    others = [argv[0], *(a for a in argv[1:] if a not in overrides)]
    if asked := _HELP.intersection(others):
      print(help_text("--helpfull" in asked))
      return 0
    if rest := flags.FLAGS(others)[1:]:
      raise errors.InputError(
        f"argument {rest[0]!r} is not accepted; need flags as in --help"
      )
    if overrides and "config" not in flags.FLAGS:
      raise errors.InputError(
        f"{overrides[0]!r} is not accepted; this command takes no config"
      )
    host.end_with_parent()
    host.keep_freed_memory()
    host.cache_compilations()
    host.compile_fast()
    host.count_compilations()
    return main(overrides) or 0
  except loop.LostProcessError as e:
    print(f"error: {e}", file=sys.stderr, flush=True)
    # Not sys.exit: JAX would wait for the lost process to say goodbye.
    os._exit(2)
  except (errors.InputError, flags.Error) as e:
    print("error: " + " ".join(str(e).split()), file=sys.stderr)
    return 2
  except loop.Interrupted as e:
    print(e, file=sys.stderr)
    return 128 + e.signal_number
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 128 + signal.SIGINT
  except OSError as e:
    where = f" {e.filename}" if e.filename else ""
    print(
      f"error: cannot read or write{where}: {e.strerror or e}; need an"
      " accessible path with free space",
      file=sys.stderr,
    )
    return 2
  except Exception:
    traceback.print_exc()
    return 3


def _help(description: str, example: str, kind: type, full: bool) -> str:
  lines = [description, "flags:"]
  for module, defined in sorted(flags.FLAGS.flags_by_module_dict().items()):
    if module == sys.argv[0] or module.startswith("experiments."):
      lines += map(_flag_help, sorted(defined, key=lambda flag: flag.name))
  if "config" in flags.FLAGS:
    lines.append(
      "  --config.FIELD=VALUE: overrides a field of the config, such as\n"
      f"    --config.{example}; --helpfull lists all fields"
    )
    if full:
      lines += ["", "fields of the config:", *_field_help(kind)]
  return "\n".join(lines)


def _flag_help(flag: flags.Flag) -> str:
  has_default = flag.default not in (None, "")
  note = f" (default {flag.default_as_str[1:-1]})" if has_default else ""
  return _wrapped(f"--{flag.name}: {flag.help}{note}")


_wrapped = functools.partial(
  textwrap.fill,
  width=80,
  initial_indent="  ",
  subsequent_indent="    ",
  break_on_hyphens=False,
  break_long_words=False,
)


def _field_help(kind: type, prefix: str = "") -> Iterator[str]:
  hints = typing.get_type_hints(kind)
  for field in dataclasses.fields(kind):
    name = prefix + field.name
    if dataclasses.is_dataclass(hints[field.name]):
      yield from _field_help(hints[field.name], f"{name}.")
    else:
      accepted = field.metadata.get("accepted")
      need = f"; need {accepted.text}" if accepted else ""
      doc = field.metadata.get("doc", "")
      yield _wrapped(f"{name}={field.default!r}: {doc}{need}")


def load_config(
  path: str | None,
  overrides: Sequence[str] = (),
  kind: type = config_lib.Config,
  default: Any = None,
) -> Any:
  """Returns the validated config of a file, with overrides applied.

  The file has a `get_config()` that returns a whole or partial config; without
  one it is `default`, or the defaults of the dataclass `kind`. Overrides are
  `--config.a.b=VALUE` as typed.
  """
  if path is not None:
    values = _file_config(path).to_dict()
  else:
    values = dataclasses.asdict(default or kind())
  for text in overrides:
    name, equals, value = text.removeprefix("--config.").partition("=")
    if not equals:
      raise errors.InputError(f"{text} has no value; need {text}=VALUE")
    _set(values, name, _literal(name, value, kind))
  return config_lib.from_dict(kind, values)


def _file_config(path: str) -> ml_collections.ConfigDict:
  def error(problem: str) -> errors.InputError:
    return errors.InputError(
      f"--config={path}: {problem}; need a Python file with get_config(), which"
      " returns an ml_collections.ConfigDict"
    )

  if not pathlib.Path(path).is_file():
    raise error("no such file")
  spec = importlib.util.spec_from_file_location("experiment_config", path)
  if spec is None or spec.loader is None:
    raise error("not a .py file")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config()
  except errors.InputError:
    raise
  except Exception as e:
    raise error(f"{type(e).__name__}: {e}") from e
  if not isinstance(config, ml_collections.ConfigDict):
    raise error(f"get_config() returned {type(config).__name__}")
  return config


def _literal(name: str, text: str, config_kind: type) -> Any:
  """Returns the value that `text` means for the field `name`."""
  kind: Any = config_kind
  for part in name.split("."):
    is_group = dataclasses.is_dataclass(kind)
    kind = typing.get_type_hints(kind).get(part) if is_group else None
  if kind is str:
    return text
  if kind is bool and text.lower() in ("true", "false"):
    return text.lower() == "true"
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    if typing.get_origin(kind) is tuple:
      return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def _set(values: dict[str, Any], name: str, value: Any) -> None:
  *groups, last = name.split(".")
  for group in groups:
    values = values.setdefault(group, {})
    if not isinstance(values, Mapping):
      raise errors.InputError(
        f"--config.{name}: {group} is a single field; need a group"
      )
  values[last] = value
