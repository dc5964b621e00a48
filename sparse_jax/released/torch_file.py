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
import io
import math
import mmap
import os
import pickle
import pickletools
import reprlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection
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
_SCALARS = (str, int, float, bool, type(None))

_MAX_DIMS = 32
_MAX_DEPTH = 64
_MAX_VALUES = 10**8  # Shared containers count each time they are reached.
# Larger storages are mapped. Entries do not overlap, so at most this many are,
# which keeps far from the limits on open files (a mapping holds one) and maps.
_MAX_MAPPED = 256
_CHUNK = 1 << 20

_REPR = reprlib.Repr()
_REPR.maxstring = 200  # Strings are names.
_show = _REPR.repr


def load(path: str | os.PathLike, verify: bool = True) -> Any:
  """Returns what a `.pt` file holds: plain data with read-only numpy arrays.

  Large storages are mapped, not read: an array costs memory from its first use
  until it is dropped, so pop the names of a big state dict one by one. The file
  must not be changed in place meanwhile. Tensors that share a storage are views
  of the same memory. `torch.Size` is a tuple; attributes such as `_metadata`
  are dropped. `verify` reads the file once and compares its checksums.

  Raises InputError if the file is missing, truncated, corrupt, of another
  format, or needs any global or opcode that is not admitted; it names the file
  and the tensor, global or entry.
  """
  path = os.fspath(path)
  try:
    with open(path, "rb") as file:
      archive = _Archive(path, file)
      if verify:
        archive.verify([archive.pickle])
      result = _Machine(archive).run(archive.data(archive.pickle).tobytes())
      if verify:
        archive.verify(archive.entries.values())
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
    head = file.read(4)
    if head.startswith(b"\x80"):
      raise self.error(
        "is a bare pickle or the legacy .pt format of PyTorch before 1.6",
        "the zip format (torch.load and torch.save convert it)",
      )
    if head != b"PK\x03\x04":
      found = f"starts with {head!r}, not a zip file" if head else "is empty"
      raise self.error(found, "a .pt file")
    try:
      with zipfile.ZipFile(file) as zipped:
        infos, limit = zipped.infolist(), zipped.start_dir
    except Exception as e:  # The library raises many kinds.
      found = f"not a complete zip file ({e})"
      raise self.error(found, "the whole .pt file") from e
    self._root = self._find_root([info.orig_filename for info in infos])
    self.entries: dict[str, _Entry] = {}
    for entry in map(self._entry, infos):
      if entry.name in self.entries:
        raise self.error(f"{entry} occurs twice", "distinct entries")
      self.entries[entry.name] = entry
    self.pickle = self.entries[f"{self._root}/data.pkl"]
    # No byte belongs to two entries or to the directory behind them.
    by_place = sorted(self.entries.values(), key=lambda e: (e.offset, e.size))
    for entry in reversed(by_place):
      if entry.offset + entry.size > limit:
        found = f"{entry} of {entry.size} bytes runs past byte {limit}"
        raise self.error(found, "entries apart")
      limit = entry.offset
    byteorder = self.entries.get(f"{self._root}/byteorder")
    if byteorder and (order := bytes(self.data(byteorder)[:16])) != b"little":
      raise self.error(f"byteorder is {order!r}", "'little'")

  def error(self, found: str, need: str) -> errors.InputError:
    return errors.InputError(f"{self.path}: {found}; need {need}")

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

  def _entry(self, info: zipfile.ZipInfo) -> _Entry:
    """Returns an entry that is plain bytes by the directory and its header."""
    name, start = info.orig_filename, info.header_offset
    entry = _Entry(name, start, info.file_size, info.CRC)
    if info.flag_bits & 0x1:
      raise self.error(f"{entry} is encrypted", "plain entries")
    if info.compress_type != zipfile.ZIP_STORED:
      raise self.error(f"{entry} is compressed", "stored entries")
    if info.compress_size != info.file_size:
      sizes = f"{info.file_size} bytes and stores {info.compress_size}"
      raise self.error(f"{entry} declares {sizes}", "equal sizes")
    self._file.seek(min(max(start, 0), self.size))
    header = self._file.read(30)
    if start < 0 or len(header) < 30 or not header.startswith(b"PK\x03\x04"):
      raise self.error(f"{entry} has no local header", "the whole file")
    flags, method, name_size, extra_size = struct.unpack("<6xHH16xHH", header)
    encoding = "utf-8" if flags & 0x800 else "cp437"
    found = self._file.read(name_size).decode(encoding, "replace")
    if found != name or method != zipfile.ZIP_STORED:
      found = f"{entry} has a local header of {_show(found)}, method {method}"
      raise self.error(found, "the same name and method 0")
    entry.offset += 30 + name_size + extra_size
    return entry

  def storage(self, key: str, tensor: str | None) -> _Entry:
    """Returns the entry of a storage, which `tensor` uses."""
    name = f"{self._root}/data/{key}"
    if name not in self.entries:
      found = f"{_tensor(tensor)}: storage {_show(key)} is missing"
      raise self.error(found, f"an entry {_show(name)}")
    entry = self.entries[name]
    if entry.tensor is None:
      entry.tensor = tensor
    return entry

  def data(self, entry: _Entry) -> np.ndarray:
    """Returns an entry's bytes, read-only; large ones are mapped."""
    if entry.data is None:
      is_large = entry.size > max(self.size // _MAX_MAPPED, mmap.PAGESIZE)
      # Arrays that start off the 64-byte grid of the format may be unaligned.
      if is_large and entry.offset % 64 == 0:
        place = (entry.offset, (entry.size,))
        mapping = np.memmap(self._file, np.uint8, "r", *place)
        entry.data = mapping.view(np.ndarray)
      else:
        self._file.seek(entry.offset)
        entry.data = np.frombuffer(self._file.read(entry.size), np.uint8)
    return entry.data

  def verify(self, entries: Collection[_Entry]) -> None:
    """Compares entries with their checksums."""
    with progress_lib.byte_bar("verify", sum(e.size for e in entries)) as bar:
      for entry in entries:
        # Not through the mapping: its pages would count as memory in use.
        self._file.seek(entry.offset)
        crc = 0
        for start in range(0, entry.size, _CHUNK):
          chunk = self._file.read(min(_CHUNK, entry.size - start))
          crc = zlib.crc32(chunk, crc)
          bar.update(len(chunk))
        if crc != entry.crc:
          found = f"{entry} is corrupt: CRC-32 {crc:08x}"
          raise self.error(found, f"{entry.crc:08x}")


@dataclasses.dataclass(frozen=True)
class _Global:
  """A name the pickle mentions: admitted, and never looked up."""

  name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
  entry: _Entry
  dtype: np.dtype


class _Machine:
  """Interprets the pickle; its state is the stack, the marks and the memo."""

  def __init__(self, archive: _Archive):
    self._archive = archive
    self._error = archive.error
    self._stack = []  # What is above the last mark.
    self._below = []  # The stacks below the marks.
    self._memo = {}
    self._counts = {}

  def run(self, program: bytes) -> Any:
    """Returns the value that the program leaves on the stack."""
    stream = io.BytesIO(program)
    with progress_lib.byte_bar("read", len(program)) as bar:
      while (code := stream.read(1)) != pickle.STOP:
        self._step(code, stream)
        if stream.tell() - bar.n > _CHUNK:
          bar.update(stream.tell() - bar.n)
    (result,) = self.pop(1)
    self._count(result)
    if self._stack or self._below or stream.read(1):
      raise self._error("data.pkl holds more than one value", "one value")
    return result

  def _step(self, code: bytes, stream: BinaryIO) -> None:
    """Reads an opcode's argument, if it has one, and acts."""
    start = stream.tell() - len(code)
    opcode = pickletools.code2op.get(code.decode("latin-1"))
    name = opcode.name if opcode else f"0x{code.hex()}"
    if code and name not in _ACTIONS:
      raise self._error(f"pickle opcode {name} is not admitted", _ACCEPTED)
    try:
      arguments = [opcode.arg.reader(stream)] if opcode.arg else []
    except (AttributeError, ValueError) as e:  # No opcode; half an argument.
      raise self._broken(f"is broken at byte {start}") from e
    _ACTIONS[name](self, *arguments)

  def _label(self) -> str | None:
    """Returns the string nearest to the top: the name of what is being made."""
    for stack in (self._stack, *reversed(self._below)):
      for value in reversed(stack):
        if isinstance(value, str):
          return value
    return None

  def _tensor_error(self, found: str, need: str) -> errors.InputError:
    return self._error(f"{_tensor(self._label())}: {found}", need)

  def _broken(self, found: str) -> errors.InputError:
    return self._error(f"data.pkl {found}", "a whole pickle")

  def _count(self, value, level: int = 1) -> int:
    """Returns how many values are in one, inside inner containers too."""
    if isinstance(value, (_Global, _Storage)):
      raise self._error("data.pkl holds a global or a storage", _ACCEPTED)
    if not isinstance(value, (tuple, list, dict)):
      return 0
    if level > _MAX_DEPTH:
      found = (
        f"data.pkl is nested {level} deep or puts a value into itself, perhaps"
        " as part of another"
      )
      raise self._error(found, f"at most {_MAX_DEPTH} levels")
    key = id(value), level
    if key not in self._counts:
      parts = value.values() if isinstance(value, dict) else value
      inner = (x for x in parts if type(x) not in _SCALARS)
      count = len(value) + sum(self._count(x, level + 1) for x in inner)
      if count > _MAX_VALUES:
        found = f"data.pkl holds {count} values in all"
        raise self._error(found, f"at most {_MAX_VALUES}")
      self._counts[key] = count
    return self._counts[key]

  # The stack.

  def push(self, value) -> None:
    self._stack.append(value)

  def mark(self) -> None:
    self._below.append(self._stack)
    self._stack = []

  def pop(self, count: int) -> list:
    start = len(self._stack) - count
    if start < 0:
      raise self._broken("takes more than it put")
    values = self._stack[start:]
    del self._stack[start:]
    return values

  def pop_mark(self) -> list:
    if not self._below:
      raise self._broken("takes more than it put")
    values, self._stack = self._stack, self._below.pop()
    return values

  def _peek(self, kind: type = object) -> Any:
    (value,) = self.pop(1)
    self.push(value)
    if not isinstance(value, kind):
      found = f"data.pkl fills a {type(value).__name__}"
      raise self._error(found, f"a {kind.__name__}")
    return value

  def put(self, index: int | None = None) -> None:
    """Remembers the top; without an index, under the next one."""
    self._memo[len(self._memo) if index is None else index] = self._peek()

  def get(self, index: int) -> None:
    if index not in self._memo:
      raise self._broken(f"has no memo {index}")
    self.push(self._memo[index])

  def check_protocol(self, version: int) -> None:
    if version not in (2, 3, 4, 5):
      raise self._error(f"pickle protocol {version}", "protocol 2 to 5")

  def extend(self, values: list) -> None:
    self._peek(list).extend(values)

  def update(self, values: list) -> None:
    target = self._peek(dict)
    if len(values) % 2:
      raise self._broken("has a key without a value")
    for key, value in zip(values[::2], values[1::2], strict=True):
      # Not any tuple: the hash of one that shares its parts takes forever.
      for part in key if isinstance(key, tuple) else (key,):
        if type(part) not in _SCALARS:
          found = f"a {type(part).__name__} in a dict's key"
          raise self._error(found, "strings or numbers")
      if key in target:
        raise self._error(f"key {_show(key)} occurs twice", "distinct keys")
      target[key] = value

  # Globals.

  def push_global(self, *parts) -> None:
    is_text = all(isinstance(part, str) for part in parts)
    name = " ".join(parts) if is_text else _show(parts)
    if name not in _FUNCTIONS and name not in _STORAGE_DTYPES:
      shown = _show(name.replace(" ", "."))
      found = f"global {shown} is not admitted and was not run"
      raise self._error(found, _ACCEPTED)
    self.push(_Global(name))

  def refuse_instance(self, name: str) -> None:
    self.push_global(name)
    raise self._error("pickle opcode INST is not admitted", _ACCEPTED)

  def persistent_id(self) -> None:
    (value,) = self.pop(1)
    match value:
      case ("storage", _Global(kind), str(key), str(), int(count)) if (
        dtype := _STORAGE_DTYPES.get(kind)
      ):
        entry = self._archive.storage(key, self._label())
      case _:
        need = "('storage', type, key, location, number of elements)"
        raise self._tensor_error(f"persistent id {_show(value)}", need)
    if count * dtype.itemsize != entry.size:
      found = f"storage {_show(key)} of {count} {dtype} has {entry.size} bytes"
      raise self._tensor_error(found, f"{count * dtype.itemsize} bytes")
    self.push(_Storage(entry, dtype))

  def reduce(self) -> None:
    function, arguments = self.pop(2)
    match function, arguments:
      case _Global("collections OrderedDict"), ():
        self.push(collections.OrderedDict())
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
      ) if len(rest) in (1, 2) and all(map(_is_empty_dict, rest)):
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
    view = f"offset {_show(offset)}, size {_show(size)}, stride {_show(stride)}"
    if not (_are_counts((offset, *size, *stride)) and len(size) == len(stride)):
      need = "whole numbers of at least 0, a stride for every size"
      raise self._tensor_error(view, need)
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
      found = f"{view} reach element {last}"
      raise self._tensor_error(found, f"the storage's {count} elements")
    data = self._archive.data(storage.entry)
    # numpy counts on it; any other byte makes its bool functions misbehave.
    if dtype == np.bool_ and data.max() > 1:
      raise self._tensor_error(f"a bool of value {data.max()}", "0 or 1")
    strides = [s * dtype.itemsize for s in stride]
    return np.ndarray(size, dtype, data, offset * dtype.itemsize, strides)


# Apart from the machine, so that it is in no reference cycle: a machine that
# waits for the garbage collector would keep every storage mapped.
_ACTIONS: dict[str, Callable[..., None]] = {
  "PROTO": _Machine.check_protocol,
  "FRAME": lambda m, size: None,
  "MARK": _Machine.mark,
  "NONE": lambda m: m.push(None),
  "NEWTRUE": lambda m: m.push(True),
  "NEWFALSE": lambda m: m.push(False),
  **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), _Machine.push),
  **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE"), _Machine.push),
  "BINFLOAT": _Machine.push,
  "EMPTY_LIST": lambda m: m.push([]),
  "EMPTY_DICT": lambda m: m.push({}),
  "EMPTY_TUPLE": lambda m: m.push(()),
  "TUPLE": lambda m: m.push(tuple(m.pop_mark())),
  "TUPLE1": lambda m: m.push(tuple(m.pop(1))),
  "TUPLE2": lambda m: m.push(tuple(m.pop(2))),
  "TUPLE3": lambda m: m.push(tuple(m.pop(3))),
  "APPEND": lambda m: m.extend(m.pop(1)),
  "APPENDS": lambda m: m.extend(m.pop_mark()),
  "SETITEM": lambda m: m.update(m.pop(2)),
  "SETITEMS": lambda m: m.update(m.pop_mark()),
  **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
  **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
  "GLOBAL": _Machine.push_global,
  "STACK_GLOBAL": lambda m: m.push_global(*m.pop(2)),
  "INST": _Machine.refuse_instance,
  "BINPERSID": _Machine.persistent_id,
  "REDUCE": _Machine.reduce,
  "BUILD": _Machine.build,
}


def _is_empty_dict(value) -> bool:
  return isinstance(value, dict) and not value


def _are_counts(values: tuple) -> bool:
  return all(type(value) is int and value >= 0 for value in values)
