"""Rows of metrics.jsonl stand once each, whatever interrupted the run."""

import json
import math
import pathlib
import resource
import struct
import tempfile

from absl.testing import absltest
from tensorboardX.proto import event_pb2

from sparse_jax.training import metric_log
from sparse_jax.utils import errors


def read_events(path):
  """Yields a TensorBoard file's events: length, checksum, event, checksum."""
  data = path.read_bytes()
  while data:
    (length,) = struct.unpack_from("<Q", data)
    yield event_pb2.Event.FromString(data[12 : 12 + length])
    data = data[16 + length :]


class MetricsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.root / "metrics.jsonl"

  def write(self, resumed_step, steps):
    writer = metric_log.MetricWriter(self.root, resumed_step)
    for step in steps:
      writer.write(step, {"train_loss": step / 2})
    writer.close()

  def test_rows_are_json_objects(self):
    writer = metric_log.MetricWriter(self.root, 0)
    writer.write(1, {"train_loss": 2.5, "eval_loss": math.inf}, {"a/b": 0.5})
    writer.close()
    self.assertEqual(
      json.loads(self.path.read_text()),
      {
        "step": 1,
        "train_loss": 2.5,
        "eval_loss": None,
        "densities": {"a/b": 0.5},
      },
    )

  def test_a_row_is_on_disk_at_once(self):
    writer = metric_log.MetricWriter(self.root, 0)
    writer.write(1, {"train_loss": 2.5})
    self.assertLen(metric_log.read_jsonl(self.path), 1)
    writer.close()

  def test_resuming_drops_what_came_after_the_checkpoint(self):
    self.write(0, [1, 2, 3])
    self.write(2, [3, 4])
    steps = [row["step"] for row in metric_log.read_jsonl(self.path)]
    self.assertEqual(steps, [1, 2, 3, 4])

  def test_starting_again_drops_all(self):
    self.write(0, [1, 2, 3])
    self.write(0, [1])
    self.assertLen(metric_log.read_jsonl(self.path), 1)

  def test_a_torn_last_row_is_left_out(self):
    self.write(0, [1, 2])
    with open(self.path, "a") as f:
      f.write('{"step": 3, "train_l')
    self.assertLen(metric_log.read_jsonl(self.path), 2)
    self.write(2, [3])
    self.assertLen(metric_log.read_jsonl(self.path), 3)

  def test_a_missing_file_has_no_rows(self):
    self.assertEqual(metric_log.read_jsonl(self.path), [])

  def test_a_damaged_row_is_named(self):
    for damaged in ("not json", "3"):
      self.path.write_text('{"step": 1}\n' + damaged + '\n{"step": 2}\n')
      with self.assertRaisesRegex(errors.InputError, "line 2") as e:
        metric_log.read_jsonl(self.path)
      self.assertIn(str(self.path), str(e.exception))

  def test_tensorboard_reads_the_same_scalars(self):
    self.write(0, [1, 2, 3])
    (path,) = (self.root / "tensorboard").iterdir()
    scalars = [
      (event.step, value.simple_value)
      for event in read_events(path)
      for value in event.summary.value
      if value.tag == "train_loss"
    ]
    self.assertEqual(scalars, [(1, 0.5), (2, 1.0), (3, 1.5)])

  def test_a_full_disk_is_one_error_and_no_wait(self):
    writer = metric_log.MetricWriter(self.root, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    self.addCleanup(resource.setrlimit, resource.RLIMIT_FSIZE, limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, limits[1]))
    with self.assertRaisesRegex(errors.InputError, "^cannot write .*too large"):
      for step in range(5000):
        writer.write(step, {"train_loss": 1.0, "other": 1.0})


if __name__ == "__main__":
  absltest.main()
