"""Released circuits, built by hand, and identities of what they become."""

import functools
import pathlib
import struct
import tempfile

import helpers
import jax
import numpy as np
import torch_files as pt
from absl.testing import absltest, parameterized

import sparse_jax as sj
from sparse_jax import sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import means as means_lib
from sparse_jax.released import circuits as released_circuits
from sparse_jax.utils import errors

ANSWERS = (7, 11)
LENGTHS = (9, 4, 6, 1, 5, 9, 2, 3)


@functools.cache
def shared():
  model, params, _ = helpers.tiny_model(positions="concatenated", d_position=6)
  params = helpers.sparsify(params, 0.5)
  tokens = np.random.default_rng(4).integers(1, 40, (8, 9))
  tokens[np.arange(9) >= np.array(LENGTHS)[:, None]] = 0
  return model, params, tokens


class PtWriter:
  """Writes plain data with arrays as a `.pt` file."""

  def __init__(self):
    self.storages = []

  def value(self, x) -> bytes:
    if x is None:
      return b"N"
    if isinstance(x, np.ndarray):
      kinds = {"int64": "LongStorage", "float32": "FloatStorage"}
      kind = kinds.get(x.dtype.name, "BoolStorage")
      self.storages.append(x)
      strides = [s // x.itemsize for s in x.strides]
      stored = pt.storage(kind, str(len(self.storages) - 1), x.size)
      return pt.tensor(stored, 0, x.shape, strides)
    if isinstance(x, dict):
      items = [self.value(k) + self.value(v) for k, v in x.items()]
      return b"}(" + b"".join(items) + b"u"
    if isinstance(x, (list, tuple)):
      return pt.group(*map(self.value, x))
    if isinstance(x, str):
      return pt.text(x)
    if isinstance(x, float):
      return b"G" + struct.pack(">d", x)
    return pt.number(x)

  @classmethod
  def write(cls, path, x) -> None:
    writer = cls()
    body = writer.value(x)
    pathlib.Path(path).write_bytes(pt.pt_file(body, *writer.storages))


def indices(mask) -> dict[str, np.ndarray]:
  """`circuit_data` of masks."""
  return {
    sites.site_id(name, row): np.flatnonzero(kept)
    for name, rows in mask.items()
    for row, kept in enumerate(rows)
  }


def viz(mask=None, **changes):
  """The contents of a viz_data.pt with the parts that are read, and others."""
  model, _, tokens = shared()
  mask = helpers.random_masks(model, 0.5) if mask is None else mask
  contents = {
    "circuit_data": indices(mask),
    "samples": {"0.attn.q": {3: {0.001: [[], [(tokens[0], None, 2)]]}}},
    "importances": {
      "loss": 0.5,
      "interv_loss": np.array(0.25, np.float32),
      "task_samples": (tokens, {"0.attn.q": np.zeros((8, 9, 3), np.float32)}),
      "beeg_model_config": {"n_layer": 2, "d_model": 16, "unknown": None},
    },
    "num_total_nodes": 300,
    "prune_config": {"target_loss": 0.3, "k_coef": 1e-4, "name": "prune_v4"},
  }
  for name, value in changes.items():
    target = contents if name in contents else contents["importances"]
    target[name] = value
  return contents


class ReleasedCircuitTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / "viz_data.pt"
    self.model, self.params, self.tokens = shared()
    self.means = helpers.random_means(self.model)

  def load(self, contents, answers=ANSWERS):
    PtWriter.write(self.path, contents)
    return released_circuits.load_circuit(
      self.path, self.model, self.params, self.means, answers, "brackets"
    )

  def test_loss_against_the_logits_of_the_last_token(self):
    mask = helpers.random_masks(self.model, 0.5)
    made = self.load(viz(mask))
    for name, kept in mask.items():
      np.testing.assert_array_equal(made.node_mask[name], kept)
    losses, right = [], []
    logits = np.asarray(jax.jit(made.apply)(self.params, self.tokens))
    for row, length in enumerate(LENGTHS):
      good, bad = ANSWERS if row < 4 else ANSWERS[::-1]
      last = logits[row, length - 1]
      losses.append(np.log1p(np.exp(last[bad] - last[good])))
      right.append(last[good] > last[bad])
    np.testing.assert_allclose(
      made.metrics["test_loss"], np.mean(losses), rtol=1e-5
    )
    self.assertEqual(made.metrics["test_accuracy"], np.mean(right))
    self.assertEqual(made.num_edges, edges_lib.count_edges(self.params, mask))

  def test_a_circuit_of_everything_is_the_model(self):
    everything = {
      name: np.ones(self.model.config.site_shape(name), bool)
      for name in sites.LAYER_NODE_SITES
    }
    made = self.load(viz(everything))
    self.assertAlmostEqual(
      made.metrics["test_loss"], made.metrics["full_model_test_loss"], places=6
    )
    # The other class order asks the opposite question.
    other = self.load(viz(everything), ANSWERS[::-1])
    self.assertEqual(
      other.metrics["test_accuracy"], 1 - made.metrics["test_accuracy"]
    )

  def test_stored_metrics_are_halved_and_saved(self):
    made = self.load(viz())
    self.assertEqual(made.target_loss, 0.15)
    stored = made.details["released"]
    self.assertEqual(stored["full_model_loss"], 0.25)
    self.assertEqual(stored["circuit_loss"], 0.125)
    made.save(self.path.parent / "circuit")
    again = sj.Circuit.load(self.path.parent / "circuit")
    self.assertEqual(again.details["released"], stored)
    self.assertEqual(again.nodes, made.nodes)
    self.assertEqual(again.edges, made.edges)

  def test_a_site_that_is_not_named_stays_open(self):
    mask = helpers.random_masks(self.model, 0.5)
    data = indices(mask)
    del data["0.attn.q"], data["0.attn.k"], data["1.attn.k"]
    # Booleans say the same as indices.
    data["1.attn.v"] = mask["attn.v"][1]
    made = self.load(viz(circuit_data=data))
    self.assertNotIn("attn.k", made.node_mask)
    self.assertFalse(made.node_mask["attn.q"][0].any())
    np.testing.assert_array_equal(made.node_mask["attn.v"], mask["attn.v"])

  def test_padding_is_cut(self):
    tokens = np.zeros((4, 9), np.int64)
    tokens[0, :3] = tokens[2, :2] = 5
    tokens[1, 1] = 6
    got = released_circuits.task_sequences(
      (tokens, None), ANSWERS, self.model.config, "file"
    )
    np.testing.assert_array_equal(got.positions, [2, 1, 1, 0])
    np.testing.assert_array_equal(got.tokens, tokens[:, :3])
    np.testing.assert_array_equal(got.correct, [7, 7, 11, 11])
    np.testing.assert_array_equal(got.incorrect, [11, 11, 7, 7])

  def test_means_in_both_layouts(self):
    tokens = self.tokens[:, :4]
    means = jax.tree.map(
      np.asarray, means_lib.mean_activations(self.model, self.params, [tokens])
    )
    by_hook = {
      sites.site_id(name, row): value.reshape((1,) * (row % 2) + value.shape)
      for name, rows in means.items()
      for row, value in enumerate(rows)
    }
    for layout in ({**by_hook, "logits": np.zeros(3, np.float32)}, means):
      PtWriter.write(self.path, layout)
      got = released_circuits.load_means(self.path, self.model)
      self.assertEqual(list(got), list(sites.NODE_SITES))
      jax.tree.map(np.testing.assert_array_equal, got, means)

  @parameterized.named_parameters(
    ("width", {"final_resid": np.zeros(5, np.float32)}, "need 16 finite"),
    (
      "layer",
      {"0.attn.q": np.zeros(16, np.float32)},
      "1.attn.q is missing; need a tensor",
    ),
    ("rows", {"attn.q": np.zeros((3, 16), np.float32)}, "has 3 layers; need 2"),
    (
      "nan",
      {"final_resid": np.full(16, np.nan, np.float32)},
      "final_resid has shape .*16 finite",
    ),
    ("kind", [1, 2], "the file is a tuple; need a mapping"),
  )
  def test_bad_means_are_refused(self, contents, message):
    PtWriter.write(self.path, contents)
    with self.assertRaisesRegex(errors.InputError, message):
      released_circuits.load_means(self.path, self.model)

  @parameterized.named_parameters(
    ("no_data", {"circuit_data": {}}, "circuit_data is empty"),
    ("site", {"circuit_data": {"2.attn.q": np.arange(2)}}, "site '2.attn.q'"),
    (
      "index",
      {"circuit_data": {"1.attn.q": np.arange(17)}},
      "circuit_data 1.attn.q holds int64 from 0 to 16; need indices from 0",
    ),
    (
      "floats",
      {"circuit_data": {"1.attn.q": np.zeros(2, np.float32)}},
      "1.attn.q holds float32",
    ),
    (
      "means",
      {"circuit_data": {"final_resid": np.arange(2)}},
      r"means of final_resid have shape None; need \(1, 16\)",
    ),
    (
      "model",
      {"beeg_model_config": {"d_model": 32}},
      "a model with d_model=32; need this model's 16",
    ),
    ("samples", {"task_samples": None}, "task_samples is missing"),
    (
      "odd",
      {"task_samples": (np.ones((3, 4), np.int64),)},
      r"shape \(3, 4\) of int64; need whole numbers",
    ),
    (
      "tokens",
      {"task_samples": (np.full((2, 4), 40),)},
      "tokens up to 40; need 0 to 39",
    ),
    ("importances", {"importances": [1]}, "importances is a tuple"),
  )
  def test_bad_files_are_refused(self, changes, message):
    with self.assertRaisesRegex(errors.InputError, message):
      self.load(viz(**changes))

  @parameterized.parameters(((7, None),), ((7, 40),), ((7,),))
  def test_bad_answers_are_refused(self, answers):
    with self.assertRaisesRegex(errors.InputError, "answers=.*two tokens"):
      self.load(viz(), answers)


if __name__ == "__main__":
  absltest.main()
