"""Reads `.pt` files (PyTorch's zip format) as numpy arrays, without PyTorch.

A `.pt` file is a zip of a pickle, `<root>/data.pkl`, and one uncompressed entry
of raw bytes per tensor storage, `<root>/data/<key>`. A pickle is a program, so
this module does not unpickle: it interprets the few opcodes and the few globals
that plain data and tensors need and refuses every other one by name. Nothing of
the file is imported, looked up or called.

Format: torch/serialization.py and torch/_utils.py of PyTorch 1.6 and later.
"""

import collections
import dataclasses
import math
import mmap
import os
import pickle
import pickletools
import reprlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from sparse_jax.utils import errors
from sparse_jax.utils import progress as progress_lib

_STORAGE_DTYPES = {
  f"torch {kind}Storage": np.dtype(dtype)
  for kind, dtype in (
    *(("Float", "f4"), ("Half", "f2"), ("Double", "f8"), ("Bool", "?")),
    *(("Long", "i8"), ("Int", "i4"), ("Short", "i2"), ("Char", "i1")),
    *(("Byte", "u1"), ("BFloat16", ml_dtypes.bfloat16)),
  )
}
_FUNCTIONS = (
  "collections OrderedDict",
  "torch Size",
  "torch._utils _rebuild_tensor_v2",
  "torch._utils _rebuild_parameter",
)
_ACCEPTED = (
  "plain dicts, lists, tuples, strings, numbers, and tensors of float, int"
  " and bool types"
)

_MAX_DIMS = 32
_MAX_DEPTH = 64
_MAX_VALUES = 10**8  # Shared containers count each time they are reached.
# Larger storages are mapped. Entries do not overlap, so at most this many are,
# which keeps far from the limits on open files (a mapping holds one) and maps.
_MAX_MAPPED = 256
_CHUNK = 1 << 20


def load(path: str | os.PathLike, verify: bool = True) -> Any:
  """Returns what a `.pt` file holds: plain data with read-only numpy arrays.

  Large storages are mapped, not read: an array costs memory from its first use
  until it is dropped, so pop the names of a big state dict one by one. The file
  must not be changed in place meanwhile. Tensors that share a storage are views
  of the same memory, with the strides of the file. `torch.Size` is a tuple;
  attributes such as `_metadata` are dropped. `verify` reads the file once and
  compares its checksums.

  Raises InputError if the file is missing, truncated, corrupt, of another
  format, or needs any global or opcode that is not admitted; it names the file
  and the tensor, global or entry.
  """
  path = os.fspath(path)
  try:
    with open(path, "rb") as file:
      archive = _Archive(path, file)
      result = _Machine(archive).run(archive.read_pickle(verify))
      if verify:
        archive.verify()
      return result
  except OSError as e:
    raise errors.InputError(
      f"{path}: {e.strerror or e}; need a readable .pt file"
    ) from e


def load_state_dict(
  path: str | os.PathLike, verify: bool = True
) -> dict[str, np.ndarray]:
  """As `load`, of a flat mapping of names to tensors, in the file's order."""
  state = load(path, verify)
  if not isinstance(state, dict):
    raise errors.InputError(
      f"{path}: holds a {type(state).__name__}; need a dict of tensors"
    )
  for name, value in state.items():
    if not isinstance(name, str) or not isinstance(value, np.ndarray):
      raise errors.InputError(
        f"{path}: entry {_show(name)} is a {type(value).__name__}; need a"
        " flat dict of names to tensors"
      )
  return dict(state)


def _tensor(name: str | None) -> str:
  return "a tensor" if name is None else f"tensor {_show(name)}"


def _show(value) -> str:
  """Returns a short repr; strings, as names, are kept longer than the rest."""
  if not isinstance(value, str):
    return reprlib.repr(value)
  return repr(value) if len(value) <= 200 else repr(value[:200]) + "…"


@dataclasses.dataclass(eq=False)
class _Entry:
  """One file of the zip."""

  name: str
  offset: int
  size: int
  crc: int
  tensor: str | None = None  # The first tensor that uses it.
  data: np.ndarray | None = None  # Its bytes, once asked for.

  def __str__(self) -> str:
    tensor = "" if self.tensor is None else f"{_tensor(self.tensor)}: "
    return f"{tensor}entry {_show(self.name)}"


class _Archive:
  """The entries of the zip, checked to be plain, distinct byte ranges."""

  def __init__(self, path: str, file: BinaryIO):
    self.path = path
    self._file = file
    self.size = os.fstat(file.fileno()).st_size
    self._check_format(file.read(16))
    try:
      with zipfile.ZipFile(file) as zipped:
        infos, end = zipped.infolist(), zipped.start_dir
    except Exception as e:  # The library raises many kinds.
      found = f"not a complete zip file ({e})"
      raise self.error(found, "the whole .pt file") from e
    self._root = self._find_root([info.orig_filename for info in infos])
    self._entries = {}
    for info in infos:
      entry = self._entry(info)
      if entry.name in self._entries:
        raise self.error(f"{entry} occurs twice", "distinct entries")
      self._entries[entry.name] = entry
    self._check_ranges(end)
    byteorder = self._entries.get(f"{self._root}/byteorder")
    if byteorder and (order := bytes(self.data(byteorder)[:16])) != b"little":
      raise self.error(f"byteorder is {order!r}", "'little'")

  def error(self, found: str, need: str) -> errors.InputError:
    return errors.InputError(f"{self.path}: {found}; need {need}")

  def storage(self, key: str, tensor: str | None) -> _Entry:
    """Returns the entry of a storage, which `tensor` uses."""
    entry = self._entries.get(f"{self._root}/data/{key}")
    if entry is None:
      found = f"{_tensor(tensor)}: storage {_show(key)} is missing"
      raise self.error(found, f"an entry {_show(f'{self._root}/data/{key}')}")
    if entry.tensor is None:
      entry.tensor = tensor
    return entry

  def data(self, entry: _Entry) -> np.ndarray:
    """Returns an entry's bytes, read-only; large ones are mapped."""
    if entry.data is None:
      # Arrays that start off the 64-byte grid of the format may be unaligned.
      mapped = entry.size * _MAX_MAPPED > self.size and entry.offset % 64 == 0
      if mapped and entry.size > mmap.PAGESIZE:
        place = (entry.offset, (entry.size,))
        mapping = np.memmap(self._file, np.uint8, "r", *place)
        entry.data = mapping.view(np.ndarray)
      else:
        self._file.seek(entry.offset)
        content = self._file.read(entry.size)
        if len(content) != entry.size:
          raise self.error(f"{entry} is cut short", "the whole file")
        entry.data = np.frombuffer(content, np.uint8)
    return entry.data

  def read_pickle(self, verify: bool) -> bytes:
    entry = self._entries[f"{self._root}/data.pkl"]
    if verify:
      self._verify(entry)
    return self.data(entry).tobytes()

  def verify(self) -> None:
    """Compares every entry with its checksum, in one pass over the file."""
    total = sum(entry.size for entry in self._entries.values())
    with progress_lib.byte_bar("verify", total) as progress:
      for entry in self._entries.values():
        self._verify(entry, progress.update)

  def _verify(self, entry: _Entry, update=lambda count: None) -> None:
    # Not through the mapping: its pages would count as this process's memory.
    buffer = memoryview(bytearray(min(_CHUNK, entry.size)))
    self._file.seek(entry.offset)
    crc, left = 0, entry.size
    while left:
      count = self._file.readinto(buffer[: min(left, len(buffer))])
      if not count:
        raise self.error(f"{entry} is cut short", "the whole file")
      crc = zlib.crc32(buffer[:count], crc)
      left -= count
      update(count)
    if crc != entry.crc:
      found = f"{entry} is corrupt: CRC-32 {crc:08x}"
      raise self.error(found, f"{entry.crc:08x}")

  def _check_format(self, head: bytes) -> None:
    if not head:
      raise self.error("is empty", "a .pt file")
    if head.startswith(b"\x80"):
      raise self.error(
        "is a bare pickle or the legacy .pt format of PyTorch before 1.6",
        "the zip format (torch.load and torch.save convert it)",
      )
    if not head.startswith(b"PK\x03\x04"):
      found = f"starts with {head[:4]!r}, not a zip file"
      raise self.error(found, "a .pt file")

  def _entry(self, info: zipfile.ZipInfo) -> _Entry:
    name, offset = info.orig_filename, info.header_offset
    entry = _Entry(name, offset, info.file_size, info.CRC)
    if info.flag_bits & 0x1:
      raise self.error(f"{entry} is encrypted", "plain entries")
    if info.compress_type != zipfile.ZIP_STORED:
      raise self.error(f"{entry} is compressed", "stored entries")
    if info.compress_size != info.file_size:
      sizes = f"{info.file_size} bytes and stores {info.compress_size}"
      raise self.error(f"{entry} declares {sizes}", "equal sizes")
    entry.offset += self._header_size(info, entry)
    return entry

  def _header_size(self, info: zipfile.ZipInfo, entry: _Entry) -> int:
    """Returns the bytes before the content, checking the local header."""
    self._file.seek(min(max(info.header_offset, 0), self.size))
    header = self._file.read(30)
    is_inside = info.header_offset >= 0 and len(header) == 30
    if not is_inside or not header.startswith(b"PK\x03\x04"):
      raise self.error(f"{entry} has no local header", "the whole file")
    flags, method, name_size, extra_size = struct.unpack("<6xHH16xHH", header)
    encoding = "utf-8" if flags & 0x800 else "cp437"
    name = self._file.read(name_size).decode(encoding, "replace")
    if name != entry.name or method != zipfile.ZIP_STORED:
      found = f"{entry} has a local header of {_show(name)}, method {method}"
      raise self.error(found, "the same name and method 0")
    return 30 + name_size + extra_size

  def _check_ranges(self, end: int) -> None:
    """Checks that no byte belongs to two entries or to the directory."""
    entries = sorted(self._entries.values(), key=lambda e: (e.offset, e.size))
    limits = [*(entry.offset for entry in entries[1:]), end]
    for entry, limit in zip(entries, limits, strict=True):
      if entry.offset + entry.size > limit:
        found = f"{entry} of {entry.size} bytes runs past byte {limit}"
        raise self.error(found, "entries apart")

  def _find_root(self, names: list[str]) -> str:
    """Returns the one folder that holds everything."""
    roots = {name.partition("/")[0] for name in names}
    if len(roots) != 1:
      raise self.error(f"has {len(roots)} top-level names", "one folder")
    (root,) = roots
    for name in names:
      if {"", ".", ".."} & set(name.split("/")):
        raise self.error(f"entry name {_show(name)}", "names below one folder")
    if f"{root}/constants.pkl" in names:
      raise self.error("is a TorchScript program", "a file of torch.save")
    if f"{root}/data.pkl" not in names:
      raise self.error("has no data.pkl", "a file of torch.save")
    return root


@dataclasses.dataclass(frozen=True)
class _Global:
  """A name the pickle mentions: admitted, and never looked up."""

  name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
  entry: _Entry
  dtype: np.dtype


@dataclasses.dataclass(eq=False, slots=True)
class _Container:
  """A tuple, list or dict, with what bounds a walk through it."""

  value: tuple | list | dict  # Kept alive, so that its id stays its own.
  depth: int = 1
  count: int = 1  # Values in it, those of inner containers included.
  is_data: bool = True  # It holds no global or storage.
  # In another one, so it must not change any more: there are no cycles, and
  # depth and count are final.
  is_placed: bool = False


_SCALARS = (str, int, float, bool, type(None))


class _Machine:
  """Interprets the pickle; its state is the stack, the marks and the memo."""

  def __init__(self, archive: _Archive):
    self._archive = archive
    self._error = archive.error
    self._stack = []
    self._marks = []  # Heights of the stack.
    self._memo = {}
    self._containers = {}

  def run(self, program: bytes) -> Any:
    """Returns the value that the program leaves on the stack."""
    position = 0
    with progress_lib.byte_bar("read", len(program)) as progress:
      while program[position : position + 1] != pickle.STOP:
        position = self._step(program, position)
        if position - progress.n > _CHUNK:
          progress.update(position - progress.n)
    position += 1
    (result,) = self.pop(1)
    if self._stack or position != len(program):
      raise self._error("data.pkl holds more than one value", "one value")
    if not self._container(result).is_data:
      raise self._error("data.pkl holds a global or a storage", _ACCEPTED)
    return result

  def _step(self, program: bytes, position: int) -> int:
    """Interprets the opcode at a position; returns that of the next one."""
    try:
      code = program[position]
      opcode = pickletools.code2op.get(chr(code))
      name = opcode.name if opcode else f"{code:#04x}"
      if name not in _ACTIONS:
        raise self._error(f"pickle opcode {name} is not admitted", _ACCEPTED)
      form, action = _ACTIONS[name]
      arguments, position = _read_arguments(form, program, position + 1)
    except (IndexError, UnicodeDecodeError, struct.error) as e:
      raise self._broken(f"is broken at byte {position}") from e
    action(self, *arguments)
    return position

  def _label(self) -> str | None:
    """Returns the string nearest to the top: the name of what is being made."""
    return next((x for x in reversed(self._stack) if isinstance(x, str)), None)

  def _tensor_error(self, found: str, need: str) -> errors.InputError:
    return self._error(f"{_tensor(self._label())}: {found}", need)

  def _broken(self, found: str) -> errors.InputError:
    return self._error(f"data.pkl {found}", "a whole pickle")

  # The stack.

  def push(self, value) -> None:
    self._stack.append(value)

  def mark(self) -> None:
    self._marks.append(len(self._stack))

  def pop(self, count: int) -> list:
    height = len(self._stack) - count
    if height < (self._marks[-1] if self._marks else 0):
      raise self._broken("takes more than it put")
    values = self._stack[height:]
    del self._stack[height:]
    return values

  def pop_mark(self) -> list:
    if not self._marks:
      raise self._broken("takes more than it put")
    values = self.pop(len(self._stack) - self._marks[-1])
    self._marks.pop()
    return values

  def _peek(self, kind: type = object) -> Any:
    (value,) = self.pop(1)
    self.push(value)
    if not isinstance(value, kind):
      found = f"data.pkl fills a {type(value).__name__}"
      raise self._error(found, f"a {kind.__name__}")
    return value

  def put(self, index: int | None) -> None:
    """Remembers the top; without an index, under the next one."""
    self._memo[len(self._memo) if index is None else index] = self._peek()

  def get(self, index: int) -> None:
    if index not in self._memo:
      raise self._broken(f"has no memo {index}")
    self.push(self._memo[index])

  def check_protocol(self, version: int) -> None:
    if version not in (2, 3, 4, 5):
      raise self._error(f"pickle protocol {version}", "protocol 2 to 5")

  # Containers.

  def _container(self, value) -> _Container:
    """Returns the record of a container, or what a leaf would have."""
    if isinstance(value, (tuple, list, dict)):
      return self._containers[id(value)]
    return _Container((), 0, 1, not isinstance(value, (_Global, _Storage)))

  def push_container(self, value: tuple | list | dict) -> None:
    self._containers[id(value)] = _Container(value)
    self.push(value)

  def push_tuple(self, values: list) -> None:
    self.push_container(tuple(values))
    self._place(self._stack[-1], values)

  def _place(self, container: tuple | list | dict, values: list) -> None:
    """Accounts for values that go into a container."""
    outer = self._containers[id(container)]
    if outer.is_placed:
      found = "data.pkl changes a value that is part of another one"
      raise self._error(found, "no recursive data")
    for value in values:
      if type(value) in _SCALARS:
        outer.count += 1
        continue
      inner = self._container(value)
      inner.is_placed = True
      outer.depth = max(outer.depth, inner.depth + 1)
      outer.count += inner.count
      outer.is_data &= inner.is_data
    if outer.depth > _MAX_DEPTH or outer.count > _MAX_VALUES:
      found = f"nested {outer.depth} deep, {outer.count} values in all"
      need = f"at most {_MAX_DEPTH} levels and {_MAX_VALUES} values"
      raise self._error(found, need)
    if outer.is_placed:
      found = "data.pkl puts a value into itself"
      raise self._error(found, "no recursive data")

  def extend(self, values: list) -> None:
    target = self._peek(list)
    self._place(target, values)
    target.extend(values)

  def update(self, values: list) -> None:
    target = self._peek(dict)
    keys, values = values[::2], values[1::2]
    if len(keys) != len(values):
      raise self._broken("has a key without a value")
    self._place(target, values)
    for key, value in zip(keys, values, strict=True):
      # Not any tuple: the hash of one that shares its parts takes forever.
      for part in key if isinstance(key, tuple) else (key,):
        if type(part) not in _SCALARS:
          found = f"a {type(part).__name__} in a dict's key"
          raise self._error(found, "strings or numbers")
      if key in target:
        raise self._error(f"key {_show(key)} occurs twice", "distinct keys")
      target[key] = value

  # Globals.

  def push_global(self, module, name) -> None:
    full_name = f"{module} {name}" if isinstance(module, str) else _show(module)
    if full_name not in _FUNCTIONS and full_name not in _STORAGE_DTYPES:
      shown = _show(full_name.replace(" ", "."))
      found = f"global {shown} is not admitted and was not run"
      raise self._error(found, _ACCEPTED)
    self.push(_Global(full_name))

  def refuse_instance(self, module: str, name: str) -> None:
    self.push_global(module, name)
    raise self._error("pickle opcode INST is not admitted", _ACCEPTED)

  def persistent_id(self) -> None:
    (value,) = self.pop(1)
    dtype = None
    match value:
      case ("storage", _Global(kind), str(key), str(), int(count)):
        dtype = _STORAGE_DTYPES.get(kind)
    if dtype is None:
      need = "('storage', type, key, location, number of elements)"
      raise self._tensor_error(f"persistent id {_show(value)}", need)
    entry = self._archive.storage(key, self._label())
    if count * dtype.itemsize != entry.size:
      found = f"storage {_show(key)} of {count} {dtype} has {entry.size} bytes"
      raise self._tensor_error(found, f"{count * dtype.itemsize} bytes")
    self.push(_Storage(entry, dtype))

  def reduce(self) -> None:
    function, arguments = self.pop(2)
    match function, arguments:
      case _Global("collections OrderedDict"), ():
        self.push_container(collections.OrderedDict())
      case _Global("torch Size"), (tuple(size),) if _are_counts(size):
        self.push(size)
      case (
        _Global("torch._utils _rebuild_parameter"),
        (np.ndarray() as array, bool(), hooks),
      ) if _is_empty_dict(hooks):
        self.push(array)
      case (
        _Global("torch._utils _rebuild_tensor_v2"),
        (_Storage(), int(), tuple(), tuple(), bool(), *rest),
      ) if len(rest) in (1, 2) and all(_is_empty_dict(x) for x in rest):
        self.push(self._tensor(*arguments[:4]))
      case _Global(name), _:
        found = f"{name.replace(' ', '.')} with arguments {_show(arguments)}"
        need = "the arguments that torch.save writes"
        raise self._tensor_error(found, need)
      case _:
        found = f"data.pkl calls a {type(function).__name__}"
        raise self._error(found, _ACCEPTED)

  def build(self) -> None:
    (state,) = self.pop(1)
    self._peek(collections.OrderedDict)
    # The version numbers of a module's state dict; nothing here reads them.
    if not isinstance(state, dict) or set(state) - {"_metadata"}:
      found = f"data.pkl sets attributes {_show(state)}"
      raise self._error(found, "only _metadata")

  def _tensor(
    self, storage: _Storage, offset: int, size: tuple, stride: tuple
  ) -> np.ndarray:
    """Returns the view of a storage that a tensor is."""
    dtype = storage.dtype
    if not (_are_counts((offset, *size, *stride)) and len(size) == len(stride)):
      found = f"offset {_show(offset)}, size {_show(size)}"
      need = "whole numbers of at least 0, a stride for every size"
      raise self._tensor_error(f"{found}, stride {_show(stride)}", need)
    num_bytes = math.prod(max(n, 1) for n in size) * dtype.itemsize
    if len(size) > _MAX_DIMS or num_bytes > self._archive.size:
      need = f"{_MAX_DIMS} axes and the file's {self._archive.size} bytes"
      found = f"size {_show(size)} of {dtype}"
      raise self._tensor_error(found, f"at most {need}")
    if 0 in size:
      return np.ndarray(size, dtype, buffer=b"")
    # The stride of an axis of one entry is never used and may be anything.
    stride = [s if n > 1 else 0 for s, n in zip(stride, size, strict=True)]
    last = offset + sum(s * (n - 1) for s, n in zip(stride, size, strict=True))
    count = storage.entry.size // dtype.itemsize
    if last >= count:
      found = f"offset {offset}, size {_show(size)}"
      found += f", stride {_show(tuple(stride))} reach element {last}"
      raise self._tensor_error(found, f"the storage's {count} elements")
    data = self._archive.data(storage.entry)
    # numpy counts on it; any other byte makes its bool functions misbehave.
    if dtype == np.bool_ and data.max() > 1:
      raise self._tensor_error(f"a bool of value {data.max()}", "0 or 1")
    strides = [s * dtype.itemsize for s in stride]
    return np.ndarray(size, dtype, data, offset * dtype.itemsize, strides)


# Opcode -> (form of its arguments as `_read_arguments` takes it, action).
# Apart from the machine, so that it is in no reference cycle: a machine that
# waits for the garbage collector would keep every storage mapped.
_ACTIONS: dict[str, tuple[str, Callable[..., None]]] = {
  "PROTO": ("<B", _Machine.check_protocol),
  "FRAME": ("<Q", lambda m, _: None),
  "MARK": ("", _Machine.mark),
  "NONE": ("", lambda m: m.push(None)),
  "NEWTRUE": ("", lambda m: m.push(True)),
  "NEWFALSE": ("", lambda m: m.push(False)),
  "BININT": ("<i", _Machine.push),
  "BININT1": ("<B", _Machine.push),
  "BININT2": ("<H", _Machine.push),
  "LONG1": ("<B int", _Machine.push),
  "BINFLOAT": (">d", _Machine.push),
  "BINUNICODE": ("<I text", _Machine.push),
  "SHORT_BINUNICODE": ("<B text", _Machine.push),
  "EMPTY_LIST": ("", lambda m: m.push_container([])),
  "EMPTY_DICT": ("", lambda m: m.push_container({})),
  "EMPTY_TUPLE": ("", lambda m: m.push_tuple([])),
  "TUPLE": ("", lambda m: m.push_tuple(m.pop_mark())),
  "TUPLE1": ("", lambda m: m.push_tuple(m.pop(1))),
  "TUPLE2": ("", lambda m: m.push_tuple(m.pop(2))),
  "TUPLE3": ("", lambda m: m.push_tuple(m.pop(3))),
  "APPEND": ("", lambda m: m.extend(m.pop(1))),
  "APPENDS": ("", lambda m: m.extend(m.pop_mark())),
  "SETITEM": ("", lambda m: m.update(m.pop(2))),
  "SETITEMS": ("", lambda m: m.update(m.pop_mark())),
  "BINPUT": ("<B", _Machine.put),
  "LONG_BINPUT": ("<I", _Machine.put),
  "MEMOIZE": ("", lambda m: m.put(None)),
  "BINGET": ("<B", _Machine.get),
  "LONG_BINGET": ("<I", _Machine.get),
  "GLOBAL": ("lines", _Machine.push_global),
  "STACK_GLOBAL": ("", lambda m: m.push_global(*m.pop(2))),
  "INST": ("lines", _Machine.refuse_instance),
  "BINPERSID": ("", _Machine.persistent_id),
  "REDUCE": ("", _Machine.reduce),
  "BUILD": ("", _Machine.build),
}


def _is_empty_dict(value) -> bool:
  return isinstance(value, dict) and not value


def _are_counts(values: tuple) -> bool:
  return all(type(value) is int and value >= 0 for value in values)


def _read_arguments(
  form: str, program: bytes, position: int
) -> tuple[list, int]:
  """Returns an opcode's arguments and the position after them.

  `form` is a struct format; one of a byte count, followed by the kind of what
  follows ("text" or "int"); "lines" for two lines of text; "" for nothing.
  Raises IndexError, UnicodeDecodeError or struct.error if they are cut short.
  """
  if not form:
    return [], position
  if form == "lines":
    end = program.find(b"\n", program.find(b"\n", position) + 1)
    if end < position:
      raise IndexError("cut short")
    return program[position:end].decode().split("\n"), end + 1
  number, _, kind = form.partition(" ")
  arguments = list(struct.unpack_from(number, program, position))
  position += struct.calcsize(number)
  if not kind:
    return arguments, position
  # An end past the program's is found at the next opcode, which is missing.
  end = position + arguments[0]
  content = program[position:end]
  if kind == "text":
    return [content.decode()], end
  return [int.from_bytes(content, "little", signed=True)], end
