"""Arrays from files of others."""

import pathlib
import tempfile
import zipfile

import numpy as np
from absl.testing import absltest

from sparse_jax.utils import arrays, errors


class ReadNpzTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = root / "a.npz"

  def test_reads_what_numpy_wrote(self):
    np.savez(self.path, a=np.arange(3), b=np.eye(2))
    found = arrays.read_npz(self.path, "arrays")
    np.testing.assert_array_equal(found["a"], np.arange(3))
    np.testing.assert_array_equal(found["b"], np.eye(2))

  def test_what_would_unpack_to_too_much_is_not_unpacked(self):
    np.savez_compressed(self.path, a=np.zeros(1 << 16))
    self.assertLess(self.path.stat().st_size, 1 << 12)
    with self.assertRaisesRegex(
      errors.InputError, "unpacks to .* at most 1000"
    ):
      arrays.read_npz(self.path, "arrays", 1000)

  def test_what_is_no_array_is_refused(self):
    np.savez(self.path, a=np.array([{}], object))
    objects = self.path.read_bytes()
    with zipfile.ZipFile(self.path, "w") as archive:
      archive.writestr("a.npy", b"no array")
    text = self.path.read_bytes()
    for raw in (objects, text, b"", objects[:99], b"PK\3\4"):
      self.path.write_bytes(raw)
      with self.assertRaisesRegex(errors.InputError, "a.npz: .*need arrays"):
        arrays.read_npz(self.path, "arrays")
    self.path.unlink()
    with self.assertRaisesRegex(errors.InputError, "FileNotFound.*need arrays"):
      arrays.read_npz(self.path, "arrays")


if __name__ == "__main__":
  absltest.main()
