"""Lines in, lines out: none is lost, and none stops the others."""

import io
import itertools
import json
import os

import small_monitor
from absl.testing import absltest

from sparse_jax.watch import stream


def watch(data: bytes, **options):
  monitor, *_ = small_monitor.watched()
  return list(stream.watch(monitor, io.BytesIO(data), **options))


class StreamTest(absltest.TestCase):
  def test_bad_lines_get_an_error_and_the_stream_goes_on(self):
    lines = [
      b'"x = 1"',
      b"x = 1",
      b"",
      b'{"prompt": "x = 1"}',
      b'{"prompt": 1}',
      b'"\xff"',
      b'""',
      b'"\\ud800"',
      b"[" * 5000,
      b'"' + b"x" * stream.MAX_BYTES + b'"',
      b'"' + b"x " * (stream.MAX_BYTES // 2 - 3) + b'"',
      b'"last"',
    ]
    for live in (False, True):
      records = watch(b"\n".join(lines), live=live)
      self.assertEqual([r["line"] for r in records], [1, 2, *range(4, 13)])
      failed = {r["line"]: r["error"] for r in records if "error" in r}
      self.assertEqual(set(failed), {2, 5, 6, 7, 8, 9, 10})
      self.assertRegex(failed[2], "line 2='x = 1' is not accepted; need")
      self.assertRegex(failed[6], "byte 1 that is no UTF-8")
      self.assertRegex(failed[10], f"longer than {stream.MAX_BYTES} bytes")
      whole = [r for r in records if "error" not in r]
      first, same = whole[0], whole[1]
      self.assertEqual({**first, "line": 4}, same)
      for record in records:
        self.assertNotIn("\n", json.dumps(record, allow_nan=False))

  def test_more_than_a_chunk_comes_back_in_order(self):
    count = 2 * stream.CHUNK + 3
    records = watch(b'"x"\n' * count)
    self.assertEqual([r["line"] for r in records], list(range(1, count + 1)))

  def test_a_live_stream_answers_before_it_ends(self):
    monitor, *_ = small_monitor.watched()
    read, write = os.pipe()
    with open(read, "rb") as file, open(write, "wb", buffering=0) as out:
      records = stream.watch(monitor, file, live=True)
      for number in range(1, 4):
        out.write(b'"x = 1"\n')
        self.assertEqual(next(records)["line"], number)
      out.close()
      self.assertEqual(list(itertools.islice(records, 1)), [])


if __name__ == "__main__":
  absltest.main()
