"""The monitor: as explanations say, by hand, and whatever stands beside it."""

import dataclasses
import pathlib
import tempfile

import numpy as np
import small_monitor
from absl.testing import absltest
from hypothesis import given
from hypothesis import strategies as st

import sparse_jax as sj
from sparse_jax import explain, sites
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import hooks
from sparse_jax.utils import errors
from sparse_jax.watch import thresholds

TOKENIZER, watched = small_monitor.TOKENIZER, small_monitor.watched
TEXTS = (
  "x = ['alpha",
  'x = ["beta',
  "def gamma():\n  return gamma\n" * 3,
  "delta",
)


class ReadingTest(absltest.TestCase):
  def test_differences_are_those_of_explanations(self):
    monitor, circuit, params = watched()
    rows = [TOKENIZER.encode(text) for text in TEXTS]
    outlook, readings = monitor.measure(rows)
    reading = readings["quotes"]
    np.testing.assert_array_equal(reading.rows, np.arange(len(TEXTS)))
    np.testing.assert_array_equal(reading.answers[:, 0], outlook.top)
    for i, row in enumerate(rows):
      _, p_V = explain.top_tokens(circuit.model, params, row)
      want = explain.explain(
        circuit.model, params, circuit, TOKENIZER, row, p_V
      ).influence
      got = (
        reading.full[i],
        reading.circuit[i],
        reading.without[i],
        reading.mass[i],
        outlook.probability[i],
        outlook.entropy[i],
      )
      p_V = p_V.astype(np.float64)
      np.testing.assert_allclose(
        got,
        (
          want.full_difference,
          want.circuit_difference,
          want.without_difference,
          want.mass,
          p_V.max(),
          -np.sum(p_V * np.log(np.maximum(p_V, 1e-30))),
        ),
        rtol=1e-3,
        atol=1e-3,
      )

  def test_a_circuit_that_is_no_program_runs_as_the_model_does(self):
    _, circuit, params = watched()
    frozen = dataclasses.replace(circuit, freeze_norms=True)
    monitor = sj.Monitor(circuit.model, params, {"quotes": frozen}, TOKENIZER)
    row = TOKENIZER.encode(TEXTS[0])
    _, p_V = explain.top_tokens(circuit.model, params, row)
    want = explain.explain(
      circuit.model, params, frozen, TOKENIZER, row, p_V
    ).influence.circuit_difference
    _, readings = monitor.measure([row])
    [got] = readings["quotes"].circuit
    self.assertAlmostEqual(got, want, 3)

  def test_nodes_are_seen_at_the_last_token_and_at_their_peak(self):
    monitor, circuit, params = watched()
    row = TOKENIZER.encode(TEXTS[2])
    _, readings = monitor.measure([row])
    _, acts = hooks.run_with_sites(circuit.model, params, [row])
    want = []
    for full_name in sorted(acts):
      site, layer = sites.parse_site_id(full_name, 2)
      kept = circuit.node_mask.get(site, np.zeros((2, 1), bool))[layer or 0]
      if not kept.any():
        continue
      x_LxN = np.asarray(acts[full_name])[0][:, kept]
      if layer == 1 and site not in ("attn.act_in", "attn.k", "attn.v"):
        x_LxN = x_LxN[-1:]  # Computed there alone.
      far = np.abs(x_LxN - circuit.means[site][layer, kept])
      peak = x_LxN[far.argmax(0), np.arange(x_LxN.shape[1])]
      want += [x_LxN[-1], peak]
    np.testing.assert_allclose(
      readings["quotes"].nodes[0], np.concatenate(want), atol=1e-4
    )

  def test_a_prompt_is_read_as_if_it_stood_alone(self):
    monitor, *_ = watched()
    texts = [text[: 1 + i] for i in range(9) for text in TEXTS]
    together = monitor(texts)
    self.assertEqual(
      [r["num_tokens"] for r in together],
      [len(TOKENIZER.encode(text)) for text in texts],
    )
    for i in (0, 7, 34):
      [alone] = monitor([texts[i]])
      said, [one] = together[i].pop("circuits"), alone.pop("circuits")
      np.testing.assert_equal(alone["next"], together[i]["next"])
      for key, value in one.items():
        if isinstance(value, float):
          self.assertAlmostEqual(value, said[0][key], delta=2e-3)

  def test_of_a_long_prompt_the_last_tokens_are_read(self):
    monitor, circuit, _ = watched()
    row = list(range(5, 105))
    limit = circuit.model_config.context_length
    (outlook, _), (want, _) = (
      monitor.measure([r]) for r in (row, row[-limit:])
    )
    np.testing.assert_array_equal(outlook.residual, want.residual)

  def test_no_prompts_and_none_to_which_it_applies(self):
    monitor, circuit, params = watched()
    self.assertEqual(monitor([]), [])
    # A model that says token 7 and nothing else.
    sure = np.zeros_like(params["logit_bias"])
    sure[7] = 99
    params = params | {"logit_bias": sure}
    fingerprint = fingerprint_lib.fingerprint(circuit.model, params)
    circuit = dataclasses.replace(circuit, model_fingerprint=fingerprint)
    monitor = sj.Monitor(circuit.model, params, {"quotes": circuit}, TOKENIZER)
    [record] = monitor(["x"])
    self.assertEqual((record["circuits"], record["alarms"]), ([], []))

  def test_bad_prompts_are_refused(self):
    monitor, *_ = watched()
    for prompt, message in (
      ("", "prompt=''.*at least one token"),
      ([], "at least one token"),
      ([9999], "token=9999.*0 to"),
      (["a"], "prompt='a'"),
      ("\ud800", "cannot be encoded"),
    ):
      with self.assertRaisesRegex(errors.InputError, message):
        monitor([prompt])


class AlarmTest(absltest.TestCase):
  def test_alarms_sound_above_their_limits(self):
    monitor, *_ = watched(disagreement=-1e9, outside=1e9)
    for record in monitor(TEXTS):
      [said] = record["circuits"]
      sounding = {"disagreement"} | (
        {"range"} if said["distance"] > 0 else set()
      )
      self.assertEqual(set(said["alarms"]), sounding)
      self.assertEqual(set(record["alarms"]), sounding)
      want = 1 - said["without_difference"] / said["model_difference"]
      self.assertAlmostEqual(said["share"], want, delta=0.01 * abs(want) + 1e-3)
      agrees = said["circuit_difference"] >= 0
      self.assertEqual(said["prefers"], said["answers"][0 if agrees else 1])

  def test_without_thresholds_there_are_none(self):
    monitor, *_ = watched()
    for record in monitor(TEXTS):
      self.assertIsNone(record["circuits"][0]["alarms"])
      self.assertEqual(record["alarms"], [])

  def test_thresholds_say_what_the_answers_are(self):
    with_tokenizer, circuit, params = watched(outside=1.0)
    monitor = sj.Monitor(circuit.model, params, {"quotes": circuit})
    rows = [TOKENIZER.encode(text) for text in TEXTS]
    for mine, text in zip(monitor(rows), with_tokenizer(rows), strict=True):
      self.assertEqual(TOKENIZER.token_text(mine["next"]), text["next"])
      self.assertEqual(mine["alarms"], text["alarms"])
    _, bare, params = watched()
    with self.assertRaisesRegex(errors.InputError, "quotes has no thresholds"):
      sj.Monitor(bare.model, params, {"quotes": bare})

  def test_they_are_saved_with_the_circuit(self):
    _, circuit, _ = watched(outside=float("inf"), range=0.5)
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    circuit.save(root / "quotes")
    loaded = sj.Circuit.load(root / "quotes")
    want, got = (thresholds.read("quotes", c) for c in (circuit, loaded))
    np.testing.assert_equal(got.limits, want.limits)
    np.testing.assert_array_equal(got.low, want.low)
    self.assertNotIn("watch", (root / "quotes" / "circuit.json").read_text())

  def test_those_of_another_circuit_are_refused(self):
    _, circuit, _ = watched(outside=1.0)
    node = circuit.nodes[0]
    less = circuit.without(f"{node['site']}:{node['index']}")
    with self.assertRaisesRegex(errors.InputError, "another circuit"):
      thresholds.read("quotes", less)
    stored = circuit.details["watch"]
    for damage in (
      {"limits": {}},
      {"low": ["x"]},
      {"low": [1.0]},
      {"rate": []},
    ):
      damaged = thresholds.attach({"q": circuit}, {"q": stored | damage})["q"]
      with self.assertRaisesRegex(errors.InputError, "thresholds of q"):
        thresholds.read("q", damaged)


class ThresholdsTest(absltest.TestCase):
  @given(
    st.lists(st.floats(-9, 9), min_size=1, max_size=60), st.floats(0.01, 0.5)
  )
  def test_of_scores_and_one_more_at_most_the_rate_is_above(self, scores, rate):
    limit = thresholds.limit(np.array(scores), rate)
    above = sum(score > limit for score in scores)
    self.assertLessEqual(above, rate * (len(scores) + 1) + 1e-6)
    if np.isinf(limit):
      self.assertLess(len(scores) + 1, 1 / rate + 1e-6)

  def test_limits_by_hand(self):
    scores = np.arange(1.0, 20)  # 19: the largest is the limit at 1 in 20.
    self.assertEqual(thresholds.limit(scores, 0.05), 19)
    self.assertEqual(thresholds.limit(scores, 0.1), 18)
    self.assertEqual(thresholds.limit(scores[:-1], 0.05), np.inf)

  def test_distance_by_hand(self):
    usual = thresholds.Thresholds(
      circuit="",
      answers=np.zeros((1, 2), int),
      rate=0.1,
      num_prompts=1,
      low=np.array([0.0, -1.0, 2.0]),
      high=np.array([2.0, 1.0, 2.0]),
      limits={},
    )
    # The last never moved: a tenth of the mean width, 4/30, stands for its own.
    got = usual.distance(np.array([[1.0, 0, 2], [3, -3, 2], [0, 0, 2.4]]))
    np.testing.assert_allclose(got, [0, (0.5 + 1) / 3, 0.4 / (4 / 30) / 3])


if __name__ == "__main__":
  absltest.main()
