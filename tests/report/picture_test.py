"""The drawing as a PNG: its size, its colours, and hostile text in it."""

import io
import pathlib
import re
import tempfile
from xml.etree import ElementTree

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

  def _svg(self, circuit, theme="light"):
    path = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    picture.write_svg(path / "circuit.svg", circuit, theme)
    return (path / "circuit.svg").read_text("utf-8")

  @parameterized.parameters(*pages.HOSTILE)
  def test_an_svg_is_whole_has_its_fonts_and_loads_nothing(self, name):
    text = self._svg(pages.small(task=name))
    root = ElementTree.fromstring(text)
    nodes = [e for e in root.iter() if "data-key" in e.attrib]
    self.assertLen(nodes, 8)
    self.assertEqual(text.count("@font-face"), 3)
    self.assertNotIn("var(--", text)
    kinds = {e.tag.rpartition("}")[2] for e in root.iter()}
    self.assertNoCommonElements(kinds, ("script", "image", "foreignObject"))
    for place in re.findall(r"url\(([^)]{0,20})", text):
      self.assertStartsWith(place, "data:font/ttf")
    self.assertLess(len(text), 150_000)

  def test_an_svg_is_light_or_dark(self):
    light, dark = (self._svg(pages.small(), theme) for theme in picture.THEMES)
    self.assertIn("#1f6fb2", light)
    self.assertIn("#62acec", dark)
    self.assertNotIn("#1f6fb2", dark)
    self.assertIn('class="back"', dark)
    with self.assertRaisesRegex(errors.InputError, "theme.*'grey'.*light"):
      self._svg(pages.small(), "grey")

  def test_an_empty_circuit_is_an_error(self):
    with self.assertRaisesRegex(errors.InputError, "empty; need one with"):
      self._svg(pages.small(nodes=[], edges=[]))
    with self.assertRaisesRegex(errors.InputError, "empty; need one with"):
      self._pixels(pages.small(nodes=[], edges=[]))


if __name__ == "__main__":
  absltest.main()
