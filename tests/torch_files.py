"""PyTorch files, assembled opcode by opcode; PyTorch is not needed."""

import io
import struct
import tempfile
import zipfile

import numpy as np
from absl.testing import absltest


def text(value: str) -> bytes:
  return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
  size = value.bit_length() // 8 + 1
  return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def name(module: str, attribute: str) -> bytes:
  return f"c{module}\n{attribute}\n".encode()


def group(*parts: bytes) -> bytes:
  return b"(" + b"".join(parts) + b"t"


def numbers(values) -> bytes:
  return group(*map(number, values))


def call(function: bytes, *arguments: bytes) -> bytes:
  return function + group(*arguments) + b"R"


def mapping(**items: bytes) -> bytes:
  return b"}(" + b"".join(text(k) + v for k, v in items.items()) + b"u"


def state_dict(**items: bytes) -> bytes:
  """An OrderedDict with version numbers, as `Module.state_dict` has them."""
  body = b"(" + b"".join(text(k) + v for k, v in items.items()) + b"u"
  metadata = mapping(_metadata=mapping(version=number(1)))
  return call(ORDERED_DICT) + body + metadata + b"b"


ORDERED_DICT = name("collections", "OrderedDict")
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
NO_HOOKS = call(ORDERED_DICT)


def storage(kind: str, key: str, count: int) -> bytes:
  parts = (text("storage"), name("torch", kind), text(key), text("cpu"))
  return group(*parts, number(count)) + b"Q"


def tensor(stored: bytes, offset: int, size, stride) -> bytes:
  view = (number(offset), numbers(size), numbers(stride))
  return call(REBUILD, stored, *view, b"\x89", NO_HOOKS)


def program(body: bytes) -> bytes:
  return b"\x80\x02" + body + b"."


def zipped(entries, compression=zipfile.ZIP_STORED) -> bytes:
  """Returns a zip of (name, content) pairs."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", compression) as archive:
    for entry, content in entries:
      archive.writestr(zipfile.ZipInfo(entry), content, compression)
  return buffer.getvalue()


def pt_file(body: bytes, *storages: np.ndarray) -> bytes:
  entries = [("model/data.pkl", program(body)), ("model/byteorder", b"little")]
  for key, array in enumerate(storages):
    entries.append((f"model/data/{key}", array.tobytes()))
  return zipped([*entries, ("model/version", b"3\n")])


FLOATS = np.arange(6, dtype=np.float32)
ONE_TENSOR = tensor(storage("FloatStorage", "0", 6), 0, (2, 3), (3, 1))


def temporary_directory(test: absltest.TestCase) -> str:
  return test.enterContext(tempfile.TemporaryDirectory())
