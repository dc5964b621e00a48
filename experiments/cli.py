"""What every command shares: flags, configs from files, one-line errors.

Bad input ends with one line on standard error and exit status 2.
"""

import ast
import importlib.util
import logging as stdlib_logging
import os
import pathlib
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags, logging

from sparse_jax import config as config_lib
from sparse_jax.training import loop
from sparse_jax.utils import errors, host

# Before JAX loads: its start-up notes are no news to a user on a laptop.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def run(main: Callable[[list[str]], int | None], description: str) -> None:
  """Parses flags, calls `main` with the `--config.…` overrides and exits.

  Args:
    main: gets the overrides in order, returns the exit status (None is 0).
    description: what the command does, for `--help`.
  """
  flags.FLAGS.set_default("showprefixforinfo", False)
  logging.set_verbosity(logging.WARNING)
  sys.unraisablehook = _unraisablehook
  # Likewise: Orbax leaves futures with exceptions behind, nobody asks for them.
  stdlib_logging.getLogger("asyncio").setLevel(stdlib_logging.CRITICAL)
  sys.exit(_status(main, description, sys.argv))


def _unraisablehook(unraisable) -> None:
  """Reports exceptions nobody can catch, but for TensorStore's belated ones.

  When one array of a checkpoint cannot be read or written, the others' threads
  still report to an event loop that is closed by then; each would print a
  traceback around the one line that says what is wrong.
  """
  if str(unraisable.exc_value) != "Event loop is closed":
    sys.__unraisablehook__(unraisable)


def _status(main, description: str, argv: Sequence[str]) -> int:
  try:
    overrides = [a for a in argv[1:] if a.startswith("--config.")]
    others = [argv[0], *(a for a in argv[1:] if a not in overrides)]
    if any(a in ("--help", "-h", "-help") for a in others):
      print(_help(description, others[0]))
      return 0
    rest = flags.FLAGS(others)[1:]
    if rest:
      raise errors.InputError(
        f"argument {rest[0]!r} is not accepted; need flags as in --help"
      )
    if overrides and "config" not in flags.FLAGS:
      raise errors.InputError(
        f"{overrides[0]!r} is not accepted; this command takes no config"
      )
    host.keep_freed_memory()
    host.cache_compilations()
    return main(overrides) or 0
  except (errors.InputError, flags.Error) as e:
    print("error: " + " ".join(str(e).split()), file=sys.stderr)
    return 2
  except loop.Interrupted as e:
    print(str(e), file=sys.stderr)
    return 130
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    return 130
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


def _help(description: str, program: str) -> str:
  module = os.path.splitext(os.path.basename(program))[0]
  shown = flags.FLAGS.find_module_defining_flag
  lines = [description, "", f"python -m experiments.{module} [flags]", ""]
  mine = [n for n in flags.FLAGS if shown(n) in ("__main__", sys.argv[0])]
  for name in sorted(mine):
    flag = flags.FLAGS[name]
    default = "" if flag.default in (None, "") else f" (default {flag.default})"
    lines.append(f"  --{name}: {flag.help}{default}")
  if "config" in flags.FLAGS:
    lines += [
      "  --config.FIELD=VALUE: overrides a field of the config, for example",
      "    --config.sparsity.density=0.05; sparse_jax/config.py lists them",
    ]
  return "\n".join(lines)


def load_config(
  path: str, overrides: Sequence[str] = (), kind: type = config_lib.Config
) -> Any:
  """Returns the validated config of a file, with overrides applied.

  Args:
    path: a Python file with `get_config()`, whole or partial.
    overrides: `--config.a.b=VALUE` as typed.
    kind: the dataclass it describes.

  Raises:
    InputError: if the file cannot be run or a field is not accepted.
  """
  return _overridden(_file_config(path).to_dict(), overrides, kind)


def override(
  config: config_lib.Config, overrides: Sequence[str]
) -> config_lib.Config:
  """Returns a config with `--config.a.b=VALUE` applied, validated."""
  values = config_lib.to_config_dict(config).to_dict()
  return _overridden(values, overrides, config_lib.Config)


def _overridden(
  values: dict[str, Any], overrides: Sequence[str], kind: type
) -> Any:
  for text in overrides:
    name, equals, value = text.removeprefix("--config.").partition("=")
    if not equals:
      raise errors.InputError(f"{text} has no value; need {text}=VALUE")
    _set(values, name, _literal(name, value, kind))
  return config_lib.from_dict(kind, values)


def _file_config(path: str) -> ml_collections.ConfigDict:
  if not pathlib.Path(path).is_file():
    raise errors.InputError(
      f"--config={path}: no such file; need a Python file with get_config()"
    )
  spec = importlib.util.spec_from_file_location("experiment_config", path)
  if spec is None or spec.loader is None:
    raise errors.InputError(
      f"--config={path}: not a .py file; need a Python file with get_config()"
    )
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    config = module.get_config()
  except errors.InputError:
    raise
  except Exception as e:
    raise errors.InputError(
      f"--config={path}: {type(e).__name__}: {e}; need a Python file whose"
      " get_config() returns an ml_collections.ConfigDict"
    ) from e
  if not isinstance(config, ml_collections.ConfigDict):
    raise errors.InputError(
      f"--config={path}: get_config() returned {type(config).__name__}; need"
      " an ml_collections.ConfigDict"
    )
  return config


def _literal(name: str, text: str, config_kind: type) -> Any:
  """Returns the value that `text` means for the field `name`."""
  kind = _field_type(name, config_kind)
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


def _field_type(name: str, config_kind: type) -> Any:
  kind: Any = config_kind
  for part in name.split("."):
    kind = (
      typing.get_type_hints(kind).get(part)
      if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__")
      else None
    )
  return kind


def _set(values: dict[str, Any], name: str, value: Any) -> None:
  *groups, last = name.split(".")
  for group in groups:
    values = values.setdefault(group, {})
    if not isinstance(values, Mapping):
      raise errors.InputError(
        f"--config.{name}: {group} is a single field; need a group"
      )
  values[last] = value
