"""Mutations: of bytes, and of what the bytes mean.

Each is a function of a `random.Random` and the content, so that an input is
made again from its seed and number.
"""

import functools
import io
import itertools
import json
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

_NUMBERS = (0, 1, -1, 7, 255, 2**16, 2**31 - 1, -(2**31), 2**32, 2**63, 10**30)
_VALUES = (
  *(None, True, False, *_NUMBERS, 0.5, -0.0, 1e308, 5e-324),
  *(float("nan"), float("inf"), "", "a", "0", "\ud800", "\0", "🦓" * 9),
  *("../../etc/passwd", "/etc/passwd", "x" * 10_000, [], {}, [[]], [None]),
  *({"a": 1}, {"": None}, "__import__('os').system('true')", "{0.__class__}"),
)


def mutate_bytes(rng: random.Random, raw: bytes) -> bytes:
  """Changes a few bytes, runs of bytes, or the length."""
  for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
    raw = rng.choice(_BYTE_CHANGES)(rng, bytearray(raw))
  return bytes(raw)


def _span(rng, raw):
  start = rng.randrange(len(raw) + 1)
  return start, min(len(raw), start + rng.choice((1, 2, 4, 16, 256, 4096)))


def _flip(rng, raw):
  if raw:
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
  return raw


def _set(rng, raw):
  if raw:
    raw[rng.randrange(len(raw))] = rng.choice((0, 9, 10, 34, 92, 123, 128, 255))
  return raw


def _number(rng, raw):
  start, _ = _span(rng, raw)
  value = rng.choice(_NUMBERS) & (2**64 - 1)
  code = rng.choice(("<I", ">I", "<Q", "<H"))
  part = struct.pack(code, value % 2 ** (8 * struct.calcsize(code)))
  raw[start : start + len(part)] = part
  return raw


def _delete(rng, raw):
  start, stop = _span(rng, raw)
  del raw[start:stop]
  return raw


def _repeat(rng, raw):
  start, stop = _span(rng, raw)
  raw[stop:stop] = raw[start:stop] * rng.choice((1, 2, 50))
  return raw


def _insert(rng, raw):
  start, _ = _span(rng, raw)
  raw[start:start] = rng.randbytes(rng.choice((1, 3, 40)))
  return raw


def _cut(rng, raw):
  return raw[: rng.randrange(len(raw) + 1)]


def _move(rng, raw):
  start, stop = _span(rng, raw)
  part = raw[start:stop]
  del raw[start:stop]
  place = rng.randrange(len(raw) + 1)
  raw[place:place] = part
  return raw


_BYTE_CHANGES = (_flip, _set, _number, _delete, _repeat, _insert, _cut, _move)


def mutate_value(rng: random.Random, value: Any) -> Any:
  """Changes a JSON value at one place, which its depth does not favour."""
  is_open = isinstance(value, (dict, list)) and value
  if not is_open or rng.random() < 0.03:
    return _other(rng, value)
  if isinstance(value, list):
    value, place = list(value), rng.randrange(len(value))
  else:
    value, place = dict(value), rng.choice(list(value))
  change = rng.random()
  if change < 0.1:
    value.pop(place)
  elif change < 0.2:
    another = rng.choice(list(value) if isinstance(value, dict) else value)
    if isinstance(value, dict):
      value[rng.choice(("x", "", f"{place} ", another))] = value[place]
    else:
      value.insert(place, another)
  else:
    value[place] = mutate_value(rng, value[place])
  return value


def _other(rng, value):
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if is_number and rng.random() < 0.5:
    return rng.choice((value + 1, value - 1, -value, 2 * value, str(value)))
  if isinstance(value, str) and value and rng.random() < 0.5:
    raw = mutate_bytes(rng, value.encode("utf-8", "surrogatepass"))
    return raw.decode("utf-8", "replace")
  if rng.random() < 0.1:
    return [value]
  return rng.choice(_VALUES)


def mutate_json(rng: random.Random, raw: bytes) -> bytes:
  """Changes a JSON text's value at a few places, seldom its syntax."""
  change = rng.random()
  if change < 0.02:
    depth = rng.choice((100, 10_000, 200_000))
    return b"[" * depth + b"]" * depth
  if change < 0.04:
    return raw.replace(b"0", b"9" * rng.choice((20, 400, 5000)), 1)
  value = json.loads(raw)
  for _ in range(rng.choice((1, 1, 1, 2, 5))):
    value = mutate_value(rng, value)
  return json.dumps(value).encode()


def mutate_lines(rng: random.Random, raw: bytes) -> bytes:
  """Changes lines of JSON, or their order and number."""
  lines = raw.split(b"\n")
  place = rng.randrange(len(lines))
  change = rng.random()
  if change < 0.1:
    del lines[place]
  elif change < 0.2:
    lines.insert(place, rng.choice(lines))
  elif change < 0.25:
    lines.insert(0, rng.choice((b"\xef\xbb\xbf", b"\0", b"null", b"[]")))
  elif change < 0.3:
    lines = lines[: rng.randrange(4)]
  elif lines[place].strip():
    lines[place] = mutate_json(rng, lines[place])
  return b"\n".join(lines)


_HOSTILE_PICKLES = (
  b"cos\nsystem\n(X\x04\x00\x00\x00truetR",
  b"c__builtin__\neval\n(X\x01\x00\x00\x001tR",
  b"(X\x04\x00\x00\x00trueios\nsystem\n",
  b"\x8c\x02os\x8c\x06system\x93",
  b"ctorch._utils\n_rebuild_tensor_v2\n",
  b"ccollections\nOrderedDict\n(tR",
  *(
    b"\x82\x01",
    b"}b",
    b"N\x81",
    b"Q",
    b"0",
    b"(",
    b"t",
    b"R",
    b"u",
    b"a",
    b".",
  ),
  b"\x8b\xff\xff\xff\x7f",
  b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7f",
  b"r\xff\xff\xff\x7f",
  b"2" * 3,
  b"]q\x00h\x00a",
  b"(" * 2000 + b"t" * 2000,
)


def mutate_pickle(rng: random.Random, raw: bytes) -> bytes:
  """Changes the opcodes of a pickle: their number, order and arguments."""
  starts = [place for _, _, place in pickletools.genops(raw)]
  codes = [raw[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
  for _ in range(rng.choice((1, 1, 2, 4))):
    place = rng.randrange(len(codes))
    change = rng.randrange(6)
    if change == 0:
      del codes[place]
    elif change == 1:
      codes.insert(place, rng.choice(codes))
    elif change == 2:
      other = rng.randrange(len(codes))
      codes[place], codes[other] = codes[other], codes[place]
    elif change == 3:
      codes.insert(place, rng.choice(_HOSTILE_PICKLES))
    elif change == 4:
      codes[place] = codes[place][:1] + mutate_bytes(rng, codes[place][1:])
    else:
      codes[place] = rng.choice(codes)
    codes = codes or [b"."]
  return b"".join(codes)


def mutate_zip(rng: random.Random, raw: bytes, inside: Mutation) -> bytes:
  """Changes one entry of a zip, its name or its kind; checksums are right."""
  with zipfile.ZipFile(io.BytesIO(raw)) as archive:
    entries = [
      (i.filename, archive.read(i), i.compress_type) for i in archive.infolist()
    ]
  place = rng.randrange(len(entries))
  name, content, kind = entries[place]
  change = rng.random()
  if change < 0.05:
    del entries[place]
  elif change < 0.1:
    name = mutate_bytes(rng, name.encode()).decode("utf-8", "replace")
  elif change < 0.15:
    kind = zipfile.ZIP_DEFLATED + zipfile.ZIP_STORED - kind
  elif change < 0.2:
    content = rng.choice(entries)[1]
  else:
    content = inside(rng, content)
  if change >= 0.05:
    entries[place] = name.replace("\0", "") or "x", content, kind
  return _zipped(entries)


def _zipped(entries) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w") as archive:
    for name, content, kind in entries:
      archive.writestr(zipfile.ZipInfo(name), content, kind)
  return buffer.getvalue()


def _npy_of_zeros(megabytes: int) -> Iterator[bytes]:
  """Yields the .npy file of that many zeros, which a zip makes small."""
  shape = f"({megabytes << 18},)"
  text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
  header = text.encode().ljust(117) + b"\n"
  start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
  yield start
  yield from itertools.repeat(bytes(1 << 20), megabytes)


def mutate_npy(rng: random.Random, raw: bytes) -> bytes:
  """Changes the header of a .npy file, or its values."""
  if rng.random() < 0.5 or len(raw) < 10:
    return mutate_bytes(rng, raw)
  (size,) = struct.unpack("<H", raw[8:10])
  header, rest = raw[10 : 10 + size].decode("latin-1"), raw[10 + size :]
  old, new = rng.choice(
    (
      ("'descr': '", "'descr': '|O"),
      ("'descr': '<", "'descr': '>"),
      ("<f4", "<f8"),
      ("<f", "<M8[s]"),
      ("<f", "<c"),
      ("False", "True"),
      ("False", "__import__('os')"),
      ("(", "(1000000000, "),
      ("(", "(-1, "),
      ("(", "(" * 300),
      ("(", "(2**62, "),
      ("shape", "shapes"),
      ("}", ", 'x': 1}"),
    )
  )
  text = header.strip().replace(old, new, 1).encode() + b"\n"
  return raw[:8] + struct.pack("<H", len(text)) + text + rest


def mutate_npz(rng: random.Random, raw: bytes) -> bytes:
  """Changes one array of a .npz file; seldom to very many zeros."""
  if rng.random() < 0.002:
    return _with_bomb(raw)
  return mutate_zip(rng, raw, mutate_npy)


@functools.cache
def _with_bomb(raw: bytes, megabytes: int = 768) -> bytes:
  with zipfile.ZipFile(io.BytesIO(raw)) as archive:
    first, *rest = archive.namelist()
    entries = [(n, archive.read(n), zipfile.ZIP_DEFLATED) for n in rest]
  buffer = io.BytesIO(_zipped(entries))
  # Piece by piece: the process that makes it has no memory for the whole.
  with (
    zipfile.ZipFile(buffer, "a", zipfile.ZIP_DEFLATED) as archive,
    archive.open(first, "w", force_zip64=True) as member,
  ):
    member.writelines(_npy_of_zeros(megabytes))
  return buffer.getvalue()


def mutate_pt(rng: random.Random, raw: bytes) -> bytes:
  """Changes an entry of a `.pt` file, most often its pickle."""

  def inside(rng, content):
    is_pickle = content.startswith(b"\x80")
    change = mutate_pickle if is_pickle else mutate_bytes
    return change(rng, content)

  with zipfile.ZipFile(io.BytesIO(raw)) as archive:
    infos = archive.infolist()
    entries = [(i.filename, archive.read(i), i.compress_type) for i in infos]
  if rng.random() < 0.5:
    place = next(i for i, e in enumerate(entries) if e[0].endswith("data.pkl"))
    name, content, kind = entries[place]
    entries[place] = name, mutate_pickle(rng, content), kind
    return _zipped(entries)
  return mutate_zip(rng, raw, inside)


def mutate_safetensors(rng: random.Random, raw: bytes) -> bytes:
  """Changes the header of a safetensors file, its length or the data."""
  (size,) = struct.unpack("<Q", raw[:8])
  header, data = raw[8 : 8 + size], raw[8 + size :]
  change = rng.random()
  if change < 0.1:
    size = rng.choice((0, 1, size - 1, size + 1, 2**31, 2**63, len(raw)))
    return struct.pack("<Q", size) + header + data
  if change < 0.2:
    return raw[: 8 + size] + mutate_bytes(rng, data)
  header = mutate_json(rng, header)
  return struct.pack("<Q", len(header)) + header + data
