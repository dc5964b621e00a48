"""Files are assembled here opcode by opcode; PyTorch is not needed."""

import datetime
import gc
import io
import os
import pathlib
import pickle
import pickletools
import struct
import time
import tracemalloc
import weakref
import zipfile

import hypothesis
import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from torch_files import (
  FLOATS,
  NO_HOOKS,
  ONE_TENSOR,
  ORDERED_DICT,
  REBUILD,
  call,
  group,
  mapping,
  name,
  number,
  numbers,
  program,
  pt_file,
  state_dict,
  storage,
  temporary_directory,
  tensor,
  text,
  zipped,
)

from sparse_jax.released import torch_file
from sparse_jax.utils import errors

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN_FILES = sorted(str(p.relative_to(GOLDEN)) for p in GOLDEN.rglob("*.pt"))


class TorchFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = os.path.join(temporary_directory(self), "model.pt")

  def load(self, content: bytes, loader=torch_file.load, **kwargs):
    with open(self.path, "wb") as file:
      file.write(content)
    return loader(self.path, **kwargs)

  def assert_refused(self, content: bytes, found: str, **kwargs) -> None:
    with self.assertRaisesRegex(errors.InputError, found) as caught:
      self.load(content, **kwargs)
    message = str(caught.exception)
    self.assertStartsWith(message, self.path)
    self.assertNotIn("\n", message)

  @parameterized.parameters(
    ("FloatStorage", np.float32),
    ("HalfStorage", np.float16),
    ("BFloat16Storage", ml_dtypes.bfloat16),
    ("DoubleStorage", np.float64),
    ("LongStorage", np.int64),
    ("IntStorage", np.int32),
    ("ShortStorage", np.int16),
    ("CharStorage", np.int8),
    ("ByteStorage", np.uint8),
    ("BoolStorage", np.bool_),
  )
  def test_dtype(self, kind, dtype):
    values = np.array([0, 1, 1, 0, 1, 1]).astype(dtype)
    body = mapping(w=tensor(storage(kind, "0", 6), 0, (2, 3), (3, 1)))
    got = self.load(pt_file(body, values))["w"]
    self.assertEqual(got.dtype, dtype)
    np.testing.assert_array_equal(got, values.reshape(2, 3))
    self.assertFalse(got.flags.writeable)

  @parameterized.named_parameters(
    ("transposed", 0, (3, 2), (1, 3), [[0, 3], [1, 4], [2, 5]]),
    ("columns", 1, (2, 2), (3, 1), [[1, 2], [4, 5]]),
    ("every_second", 1, (3,), (2,), [1, 3, 5]),
    ("scalar", 4, (), (), 4),
    ("expanded", 5, (2, 2), (0, 0), [[5, 5], [5, 5]]),
    ("unused_stride", 3, (1, 2), (10**30, 1), [[3, 4]]),
    ("empty", 0, (0, 3), (3, 1), np.zeros((0, 3))),
  )
  def test_strides(self, offset, size, stride, want):
    body = tensor(storage("FloatStorage", "0", 6), offset, size, stride)
    got = self.load(pt_file(body, FLOATS))
    np.testing.assert_array_equal(got, np.array(want, np.float32), strict=True)

  def test_tensors_on_one_storage_share_memory(self):
    stored = storage("FloatStorage", "0", 6)
    body = state_dict(
      wte=tensor(stored, 0, (2, 3), (3, 1)),
      head=tensor(stored, 0, (3, 2), (1, 3)),
      other=tensor(storage("FloatStorage", "1", 6), 0, (6,), (1,)),
    )
    got = self.load(pt_file(body, FLOATS, FLOATS), torch_file.load_state_dict)
    self.assertEqual(list(got), ["wte", "head", "other"])
    np.testing.assert_array_equal(got["wte"].T, got["head"])
    self.assertTrue(np.shares_memory(got["wte"], got["head"]))
    self.assertFalse(np.shares_memory(got["wte"], got["other"]))

  def test_parameter(self):
    function = name("torch._utils", "_rebuild_parameter")
    body = mapping(w=call(function, ONE_TENSOR, b"\x88", NO_HOOKS))
    got = self.load(pt_file(body, FLOATS))["w"]
    np.testing.assert_array_equal(got, FLOATS.reshape(2, 3))

  def test_size_is_a_tuple(self):
    body = call(name("torch", "Size"), numbers((2, 3)))
    self.assertEqual(self.load(pt_file(body)), (2, 3))

  @parameterized.parameters(*GOLDEN_FILES)
  def test_golden_file(self, file):
    # PyTorch numbers the storages in the order of the names.
    got = torch_file.load_state_dict(GOLDEN / file)
    with zipfile.ZipFile(GOLDEN / file) as archive:
      root = archive.namelist()[0].split("/")[0]
      for key, array in enumerate(got.values()):
        self.assertEqual(array.dtype, np.float32)
        content = archive.read(f"{root}/data/{key}")
        self.assertEqual(array.tobytes(), content)
      self.assertNotIn(f"{root}/data/{len(got)}", archive.namelist())
    self.assertEqual(got["transformer.wte.weight"].shape, (64, 32))
    self.assertIn("transformer.h.1.attn.c_attn.weight", got)

  def test_large_storages_are_mapped(self):
    got = torch_file.load_state_dict(GOLDEN / "plain" / "final_model.pt")

    def owner(array):
      return owner(array.base) if isinstance(array, np.ndarray) else array

    matrix = owner(got["transformer.h.0.attn.c_attn.weight"])
    self.assertEqual(type(matrix).__name__, "mmap")
    self.assertIsInstance(owner(got["transformer.ln_f.weight"]), bytes)
    # Dropping the array gives the memory back at once, without a collection.
    reference = weakref.ref(matrix)
    gc.disable()
    self.addCleanup(gc.enable)
    del matrix, got["transformer.h.0.attn.c_attn.weight"]
    self.assertIsNone(reference())

  @hypothesis.settings(max_examples=200, deadline=None)
  @hypothesis.given(
    st.recursive(
      st.none()
      | st.booleans()
      | st.integers()
      | st.floats(allow_nan=False)
      | st.text(),
      lambda values: (
        st.lists(values)
        | st.lists(values).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.booleans(), values)
        | st.dictionaries(st.tuples(st.text(), st.integers()), values)
        | values.map(lambda value: [value, value])
      ),
    ),
    st.integers(2, 5),
  )
  def test_plain_data_agrees_with_pickle(self, data, protocol):
    content = zipped([("a/data.pkl", pickle.dumps(data, protocol))])
    got = self.load(content)
    self.assertEqual(got, data)
    self.assertEqual(repr(got), repr(data))

  def test_refused_globals_do_not_run(self):
    marker = os.path.join(os.path.dirname(self.path), "marker")
    arguments = (text(f"touch {marker}"),)
    code = (text(f"open({marker!r}, 'w')"),)
    system = name("os", "system")
    hooked = [
      storage("FloatStorage", "0", 6),
      number(0),
      numbers((6,)),
      numbers((1,)),
    ]
    cases = {
      "call": (call(system, *arguments), "os.system"),
      "eval": (call(name("builtins", "eval"), *code), "builtins.eval"),
      "old eval": (
        call(name("__builtin__", "eval"), *code),
        "__builtin__.eval",
      ),
      "in a dict": (mapping(w=call(system, *arguments)), "os.system"),
      "nested": (
        call(call(name("builtins", "getattr"), system, text("x"))),
        "builtins.getattr",
      ),
      "as hooks": (
        call(REBUILD, *hooked, b"\x89", call(system, *arguments)),
        "os.system",
      ),
      "in a parameter": (
        call(
          name("torch._utils", "_rebuild_parameter"),
          call(system, *arguments),
          b"\x88",
          NO_HOOKS,
        ),
        "os.system",
      ),
      "stack global": (
        call(text("os") + text("system") + b"\x93", *arguments),
        "os.system",
      ),
      "dotted": (
        text("collections") + text("OrderedDict.fromkeys") + b"\x93",
        "OrderedDict.fromkeys",
      ),
      "unhashable": (b"]" + text("system") + b"\x93", "global"),
      "inst": (b"(" + arguments[0] + b"ios\nsystem\n", "os.system"),
      "inst admitted": (b"(icollections\nOrderedDict\n", "INST"),
      "obj": (b"(" + system + arguments[0] + b"o", "os.system"),
      "obj admitted": (b"(" + ORDERED_DICT + b"o", "OBJ"),
      "newobj": (system + group(*arguments) + b"\x81", "os.system"),
      "newobj admitted": (ORDERED_DICT + b")\x81", "NEWOBJ"),
      "newobj_ex": (ORDERED_DICT + b")}\x92", "NEWOBJ_EX"),
      "extension": (b"\x82\x01", "EXT1"),
      "text persistent id": (b"Pos\n", "PERSID"),
      "unknown opcode": (b"\xff", "0xff"),
      "pickled": (
        pickle.dumps(Evil(marker), 2)[2:-1],
        "(posix|nt|os).system",
      ),
      "pickled, protocol 4": (
        pickle.dumps(Evil(marker), 4)[2:-1],
        "(posix|nt|os).system",
      ),
      "module": (name("torch.nn.modules.linear", "Linear"), "linear.Linear"),
    }
    for label, (body, found) in cases.items():
      with self.subTest(label):
        self.assert_refused(pt_file(body, FLOATS), found)
        self.assertFalse(os.path.exists(marker))
    # The last but one is a real exploit: the standard unpickler runs it.
    pickle.loads(pickle.dumps(Evil(marker), 2))
    self.assertTrue(os.path.exists(marker))

  @parameterized.named_parameters(
      ("ordered_dict", call(ORDERED_DICT, b"]"), "OrderedDict with arguments"),
      ("size", call(name("torch", "Size"), text("x")), "Size with arguments"),
      ("negative_size", call(name("torch", "Size"), numbers((-1,))), "Size"),
      ("storage", call(name("torch", "FloatStorage")), "torch.FloatStorage"),
      ("tensor", call(REBUILD, number(1)), "_rebuild_tensor_v2 with arg"),
      (
          "hooks",
          call(
              REBUILD,
              storage("FloatStorage", "0", 6),
              number(0),
              numbers((6,)),
              numbers((1,)),
              b"\x89",
              mapping(x=number(1)),
          ),
          "_rebuild_tensor_v2 with arg",
      ),
      (
          "array_as_hooks",
          call(
              REBUILD,
              storage("FloatStorage", "0", 6),
              number(0),
              numbers((6,)),
              numbers((1,)),
              b"\x89",
              ONE_TENSOR,
          ),
          "_rebuild_tensor_v2 with arg",
      ),
      ("called_data", text("x") + b")R", "calls a str"),
      ("attributes", NO_HOOKS + mapping(clear=text("")) + b"b", "clear"),
      ("state_of_dict", b"}" + mapping(x=text("")) + b"b", "fills a dict"),
      ("state_of_type", ORDERED_DICT + mapping() + b"b", "fills a _Global"),
      ("id_is_text", text("x") + b"Q", "persistent id 'x'"),
      ("id_is_short", group(text("storage")) + b"Q", "persistent id"),
      ("id_of_function",
       group(text("storage"), ORDERED_DICT, text("0"), text("cpu"), number(6))
       + b"Q", "persistent id"),
      ("complex", storage("ComplexFloatStorage", "0", 3), "ComplexFloatStor"),
      ("left_global", mapping(a=ORDERED_DICT), "holds a global"),
      ("left_storage", storage("FloatStorage", "0", 6), "holds a global"),
      ("left_in_tuple", group(group(ORDERED_DICT)), "holds a global"),
      ("key_twice", mapping(a=number(1)) + text("a") + number(2) + b"s", "'a'"),
      ("odd_items", b"}(" + text("a") + b"u", "key without"),
      ("two_values", number(1) + number(2), "more than one value"),
      ("after_stop", number(1) + b"." + number(2), "more than one value"),
      ("empty", b"", "takes more"),
      ("below_mark", number(1) + b"(\x85", "takes more"),
      ("no_mark", b"t", "takes more"),
      ("no_memo", b"h\x07", "memo 7"),
      ("protocol", b"\x80\x09", "protocol 9"),
      ("long_text", b"X\xff\xff\xff\xff", "broken at byte"),
      ("bad_text", b"X\x01\0\0\0\xff", "broken at byte"),
      ("half_line", b"cos\nsystem", "broken at byte"),
  )  # fmt: skip
  def test_refused_pickle(self, body, found):
    self.assert_refused(pt_file(body, FLOATS), found)

  @parameterized.named_parameters(
    ("giant", 0, (2**62, 2**62), (1, 1), "size"),
    ("giant_and_empty", 0, (0, 2**62), (1, 1), "size"),
    ("expanded", 0, (2**40,), (0,), "size"),
    ("unprintable", 0, (2**2000,) * 40, (0,) * 40, "size"),
    ("axes", 0, (1,) * 33, (1,) * 33, "size"),
    ("negative_size", 0, (-1,), (1,), "size"),
    ("negative_offset", -1, (1,), (1,), "offset -1"),
    ("negative_stride", 5, (2,), (-1,), "stride"),
    ("fewer_strides", 0, (2, 3), (1,), "stride"),
    ("offset_outside", 6, (1,), (1,), "reach element 6"),
    ("end_outside", 1, (6,), (1,), "reach element 6"),
    ("stride_outside", 0, (2,), (2**2000,), "reach element"),
  )
  def test_refused_tensor(self, offset, size, stride, found):
    stored = storage("FloatStorage", "0", 6)
    body = state_dict(ok=ONE_TENSOR, bad=tensor(stored, offset, size, stride))
    self.assert_refused(pt_file(body, FLOATS), f"tensor 'bad': .*{found}")

  @parameterized.named_parameters(
    ("more", "FloatStorage", "0", 7, "24 bytes"),
    ("giant", "FloatStorage", "0", 2**62, "24 bytes"),
    ("other_type", "DoubleStorage", "0", 6, "24 bytes"),
    ("negative", "FloatStorage", "0", -6, "24 bytes"),
    ("missing", "FloatStorage", "9", 6, "'9' is missing"),
    ("path", "FloatStorage", "../data.pkl", 6, "missing"),
    ("absolute", "FloatStorage", "/etc/passwd", 6, "missing"),
    ("bool", "BoolStorage", "0", 24, "bool of value"),
  )
  def test_refused_storage(self, kind, key, count, found):
    bad = tensor(storage(kind, key, count), 0, (count,), (1,))
    body = state_dict(bad=bad)
    self.assert_refused(pt_file(body, FLOATS), f"tensor 'bad': .*{found}")

  @parameterized.named_parameters(
    ("doubled_tuples", b")" + b"q\0h\0\x86" * 60, "values in all"),
    ("doubled_lists", b"N" + b"q\0]h\0ah\0a" * 60, "values in all"),
    (
      "doubled_key",
      b"}N" + b"q\0h\0\x86" * 20 + b"Ns",
      "tuple in a dict's key",
    ),
    ("deep", b"]" * 100 + b"a" * 99, "nested 65 deep"),
    ("in_itself", b"]q\0h\0a", "into itself"),
    ("cycle", b"]q\0]q\1h\0ah\0h\1a", "part of another"),
    ("memo_index", b"Nr\xff\xff\xff\xffh\1", "no memo 1"),
  )
  def test_bomb(self, body, found):
    start = time.monotonic()
    self.assert_refused(pt_file(body), found)
    self.assertLess(time.monotonic() - start, 5)

  @parameterized.named_parameters(
      ("empty", b"", "is empty"),
      ("text", b"hello world, hello world", "not a zip"),
      ("legacy", pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"...", "legacy"),
      ("only_start", b"PK\x03\x04" + bytes(100), "not a complete zip"),
      ("only_end", b"PK\x05\x06" + bytes(18), "not a zip"),
      ("no_pickle", zipped([("model/version", b"3")]), "no data.pkl"),
      ("script", zipped([("m/data.pkl", b""), ("m/constants.pkl", b"")]),
       "TorchScript"),
      ("two_roots", zipped([("a/data.pkl", b""), ("b/data.pkl", b"")]),
       "2 top-level names"),
      ("path", zipped([("a/data.pkl", b""), ("a/../b", b"")]), "'a/../b'"),
      ("absolute", zipped([("/data.pkl", b"")]), "'/data.pkl'"),
      ("compressed",
       zipped([("a/data.pkl", bytes(10**6))], zipfile.ZIP_DEFLATED),
       "'a/data.pkl' is compressed"),
      ("big_endian",
       zipped([("a/data.pkl", program(b"N")), ("a/byteorder", b"big")]),
       "byteorder is b'big'"),
  )  # fmt: skip
  def test_refused_archive(self, content, found):
    self.assert_refused(content, found)

  def test_entry_twice(self):
    with self.assertWarns(UserWarning):
      content = zipped([("a/data.pkl", program(b"N"))] * 2)
    self.assert_refused(content, "'a/data.pkl' occurs twice")

  @parameterized.named_parameters(
    ("encrypted", 8, b"\x01\x08", "encrypted"),
    ("declared_size", 24, struct.pack("<I", 2**31), "declares"),
    ("both_sizes", 20, struct.pack("<II", 2**31, 2**31), "runs past"),
    ("not_its_header", 42, bytes(4), "local header"),
    ("header_outside", 42, struct.pack("<I", 2**31), "no local header"),
  )
  def test_altered_directory(self, field, value, found):
    content = bytearray(pt_file(mapping(w=ONE_TENSOR), FLOATS))
    start = content.rindex(b"model/data/0") - 46 + field
    content[start : start + len(value)] = value
    self.assert_refused(bytes(content), f"'model/data/0' .*{found}")

  def test_header_outside_the_file(self):
    for offset in (2**31, 2**64 - 1):
      buffer = io.BytesIO()
      with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", program(b"N"))
        archive.infolist()[0].header_offset = offset
      self.assert_refused(buffer.getvalue(), "'a/data.pkl' has no local header")
    content = pt_file(b"N")  # All offsets point 10 bytes further to the front.
    self.assert_refused(content[:30] + content[40:], "no local header")

  def test_truncated(self):
    content = pt_file(state_dict(w=ONE_TENSOR), FLOATS)
    for size in range(len(content)):
      self.assert_refused(content[:size], "zip|empty")

  def test_corrupt_storage(self):
    content = bytearray(pt_file(state_dict(w=ONE_TENSOR), FLOATS))
    content[content.index(FLOATS.tobytes()) + 9] ^= 1
    self.assert_refused(bytes(content), "tensor 'w': .* is corrupt: CRC-32")
    got = self.load(bytes(content), verify=False)["w"]
    self.assertEqual(np.sum(got.ravel() != FLOATS), 1)

  @parameterized.named_parameters(
    ("list", b"](" + ONE_TENSOR + b"e", "holds a list"),
    (
      "number",
      mapping(w=ONE_TENSOR, step=number(3)),
      "entry 'step' is a int",
    ),
    (
      "nested",
      mapping(model=mapping(w=ONE_TENSOR)),
      "'model' is a dict",
    ),
    ("key", b"}" + number(1) + ONE_TENSOR + b"s", "entry 1 is"),
  )
  def test_not_a_state_dict(self, body, found):
    loader = torch_file.load_state_dict
    self.assert_refused(pt_file(body, FLOATS), found, loader=loader)

  def test_missing_file(self):
    for path in (self.path, os.path.dirname(self.path)):
      with self.assertRaisesRegex(errors.InputError, path):
        torch_file.load(path)


class Evil:
  """Runs a command when it is unpickled."""

  def __init__(self, marker: str):
    self.marker = marker

  def __reduce__(self):
    return os.system, (f"touch {self.marker}",)


SEED_BODY = state_dict(
  a=ONE_TENSOR,
  b=tensor(storage("BFloat16Storage", "1", 4), 1, (3, 1), (1, 3)),
  c=tensor(storage("FloatStorage", "0", 6), 0, (3, 2), (1, 3)),
  d=b"](" + number(3) + text("x") + group(b"N", b"\x88") + b"e",
)
SEED_STORAGES = (FLOATS, np.arange(4).astype(ml_dtypes.bfloat16))


@st.composite
def mutated(draw, pieces: list[bytes]) -> bytes:
  """Returns the pieces joined, after deleting, copying and flipping some."""
  pieces = list(pieces)
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, len(pieces) - 1))
    other = draw(st.integers(0, len(pieces) - 1))
    length = draw(st.integers(1, 8))
    action = draw(st.sampled_from(["byte", "delete", "copy", "swap", "end"]))
    if action == "byte":
      piece = bytearray(pieces[at])
      if piece:
        where = draw(st.integers(0, len(piece) - 1))
        piece[where] = draw(st.integers(0, 255))
      pieces[at] = bytes(piece)
    elif action == "delete" and len(pieces) > length:
      del pieces[at : at + length]
    elif action == "copy":
      pieces[at:at] = pieces[other : other + length]
    elif action == "swap":
      pieces[at], pieces[other] = pieces[other], pieces[at]
    elif action == "end" and at:
      del pieces[at:]
    if not pieces:
      return b""
  return b"".join(pieces)


def opcodes(content: bytes) -> list[bytes]:
  starts = [at for _, _, at in pickletools.genops(content)]
  ends = [*starts[1:], len(content)]
  return [content[a:b] for a, b in zip(starts, ends, strict=True)]


def each_byte(content: bytes) -> list[bytes]:
  return [content[at : at + 1] for at in range(len(content))]


def leaves(value):
  if isinstance(value, dict):
    value = [*value.keys(), *value.values()]
  if isinstance(value, (list, tuple)):
    for part in value:
      yield from leaves(part)
  else:
    yield value


SEED = pt_file(SEED_BODY, *SEED_STORAGES)
SEED_PICKLE = program(SEED_BODY)


class MutatedFileTest(parameterized.TestCase):
  """A load or an InputError: no other error, hang, or large allocation."""

  def setUp(self):
    super().setUp()
    self.path = os.path.join(temporary_directory(self), "model.pt")
    self.want = self.outcome(SEED)

  def outcome(self, content: bytes):
    """Returns the leaves of what was loaded, or None if it was refused."""
    with open(self.path, "wb") as file:
      file.write(content)
    try:
      return list(leaves(torch_file.load(self.path)))
    except errors.InputError as error:
      self.assertStartsWith(str(error), self.path)
      return None

  def check(self, content: bytes):
    tracemalloc.start()  # Here: it would slow the making of examples down.
    try:
      got = self.outcome(content)
      used = tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()
    self.assertLess(used, 2_000_000)
    for leaf in got or []:
      kinds = (str, int, float, bool, type(None), np.ndarray)
      self.assertIsInstance(leaf, kinds)
      if isinstance(leaf, np.ndarray):
        self.assertLessEqual(len(leaf.tobytes()), len(content))
    return got

  def fuzz(self, pieces, build, check):
    @hypothesis.settings(
      max_examples=int(os.environ.get("FUZZ_EXAMPLES", "350")),
      deadline=datetime.timedelta(seconds=5),
      # The machine may be busy; the deadline is what finds a hang.
      suppress_health_check=[hypothesis.HealthCheck.too_slow],
      database=None,
    )
    @hypothesis.given(mutated(pieces))
    def run(content):
      check(self.check(build(content)))

    run()

  def test_archive(self):
    def same(got):
      if got is not None:
        for value, want in zip(got, self.want, strict=True):
          np.testing.assert_array_equal(value, want)

    self.fuzz(each_byte(SEED), lambda content: content, same)

  @parameterized.parameters(each_byte, opcodes)
  def test_pickle(self, split):
    # The checksum of the altered pickle is right.
    storages = [
      (f"model/data/{key}", array.tobytes())
      for key, array in enumerate(SEED_STORAGES)
    ]
    self.fuzz(
      split(SEED_PICKLE),
      lambda content: zipped([("model/data.pkl", content), *storages]),
      lambda _: None,
    )


if __name__ == "__main__":
  absltest.main()
