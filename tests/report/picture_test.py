"""The drawing as a PNG: its size, its colours, and hostile text in it."""

import io
import pathlib
import tempfile

import numpy as np
import pages
from absl.testing import absltest, parameterized
from matplotlib import image

from sparse_jax.report import picture
from sparse_jax.utils import errors


class PictureTest(parameterized.TestCase):
  def _pixels(self, circuit):
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    picture.write_picture(path / "new" / "circuit.png", circuit)
    png = (path / "new" / "circuit.png").read_bytes()
    return np.round(255 * image.imread(io.BytesIO(png))[..., :3]).astype(int)

  def _share(self, pixels, colour):
    near = np.abs(pixels - np.array(colour)).max(-1) < 60
    return near.mean()

  def test_it_is_white_and_shows_both_signs_of_edges(self):
    pixels = self._pixels(pages.small())
    self.assertGreater(pixels.shape[1], 900)
    self.assertGreater(self._share(pixels, (255, 255, 255)), 0.8)
    np.testing.assert_array_equal(pixels[0, 0], [255, 255, 255])
    positive, negative = (31, 111, 178), (192, 74, 18)
    alone = self._pixels(
      pages.small(
        edges=[pages.edge(("0.attn.act_in", 3), ("0.attn.q", 17), 0.5)]
      )
    )
    for colour, legend in ((positive, alone), (negative, alone)):
      self.assertGreater(self._share(pixels, colour), 0.0005)
      self.assertGreater(
        self._share(pixels, colour), self._share(legend, colour)
      )

  def test_labels_are_drawn_without_fonts_of_the_machine(self):
    circuit = lambda index: pages.small(
      nodes=[pages.node("0.attn.q", index)], edges=[], metrics={}
    )
    a, b = (self._pixels(circuit(index)) for index in (17, 18))
    self.assertEqual(a.shape, b.shape)
    self.assertTrue((a != b).any())

  @parameterized.parameters(*pages.HOSTILE)
  def test_a_hostile_name_is_text(self, name):
    self._pixels(pages.small(task=name))

  def test_an_empty_circuit_is_an_error(self):
    with self.assertRaisesRegex(errors.InputError, "empty; need one with"):
      self._pixels(pages.small(nodes=[], edges=[]))


if __name__ == "__main__":
  absltest.main()
