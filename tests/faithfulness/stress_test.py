"""Stress: what a circuit predicts, and what the predictions are worth."""

import random
import re

import jax
import numpy as np
import pytest
import small_circuits
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_jax import tasks
from sparse_jax.faithfulness import stress, sufficiency
from sparse_jax.report import stress as picture
from sparse_jax.tasks import grammar as grammar_lib
from sparse_jax.tasks import pairs

TOKENIZER = small_circuits.TOKENIZER
OPTIONS = stress.StressOptions(
  num_random=40, num_rounds=3, num_neighbours=20, num_predicted=30
)


@pytest.fixture(scope="module")
def grammar():
  return grammar_lib.of_task(
    tasks.make_task("single_double_quote", TOKENIZER), 200
  )


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_a_prompt_has_its_shape_and_its_quote(grammar, seed):
  prompt = grammar.draw(random.Random(seed))
  again = grammar.make(prompt.shape, prompt.row, prompt.side, prompt.seed)
  assert again == prompt and TOKENIZER.encode(prompt.text) == [*prompt.tokens]
  plain = grammar.make(
    grammar_lib.Shape(), prompt.row, prompt.side, prompt.seed
  )
  texts, answers = grammar.rows[prompt.row]
  assert plain.text == texts[prompt.side]
  assert prompt.correct == answers[prompt.side]
  shape, added = prompt.shape, prompt.text.count("\n") - plain.text.count("\n")
  assert added == shape.distractors + shape.distance
  quote, other = (TOKENIZER.token_text(a)[0] for a in answers)
  if prompt.side:
    quote, other = other, quote
  # The string is the last thing, and still open; the rest is the other's.
  inside = prompt.text.rpartition(quote)[2]
  assert len(inside.split()) == (
    len(plain.text.rpartition(quote)[2].split()) + shape.length
  )
  assert prompt.text.count("(") >= plain.text.count("(") + shape.depth
  assert prompt.text.count(quote) == 1
  assert len(re.findall(re.escape(other), prompt.text)) >= shape.distractors


def test_neighbours_differ_in_one_thing(grammar):
  rng = random.Random(0)
  prompt = grammar.draw(rng)
  for _ in range(30):
    near = grammar.vary(prompt, rng)
    changed = [
      name
      for name in ("row", "seed", *grammar_lib.LARGEST)
      if getattr(near, name, None) != getattr(prompt, name, None)
      or getattr(near.shape, name, 0) != getattr(prompt.shape, name, 0)
    ]
    assert len(changed) <= 1
    prompt = near


def test_other_tasks_have_a_grammar_or_say_so():
  task = tasks.make_task("single_double_quote", TOKENIZER)
  other = grammar_lib.of_task(task, 200)
  assert other.largest == grammar_lib.LARGEST
  short = grammar_lib.Grammar(task, 3, other.rules, other.neutral, other.rows)
  with pytest.raises(grammar_lib.errors.InputError, match="context of 3"):
    short.draw(random.Random(0))


def fails_from(distractors):
  """Returns a model that fails from so many distracting lines on."""
  return lambda prompts: np.array(
    [distractors - 0.5 - p.shape.distractors for p in prompts]
  )


def test_predictions_of_the_model_itself_are_all_real(grammar):
  # Random prompts: 4 distractors in one of five. The circuit is the model; the
  # other one fails always.
  found = stress.measure(
    grammar, fails_from(4), fails_from(4), [fails_from(0)], OPTIONS
  )
  assert found.predicted.rate == found.same_shape.rate == 1
  assert found.random.num_failures == sum(
    p.shape.distractors == 4 for p in found.random.prompts
  )
  assert found.num_searched > 40
  assert len(found.other.prompts) == 30 >= len(found.predicted.prompts)
  assert len(found.every.prompts) >= len(found.predicted.prompts)
  ratio = found.times_random(found.predicted)
  assert ratio["value"] == 1 / found.random.rate
  assert ratio["low"] < ratio["value"] < ratio["high"]
  assert found.auroc == 1
  texts = [p.text for p in found.every.prompts]
  assert len(set(texts)) == len(texts)


def test_a_circuit_that_never_fails_predicts_nothing(grammar):
  found = stress.measure(
    grammar, fails_from(9), fails_from(9), [fails_from(9)], OPTIONS
  )
  assert found.predicted.rate is None and found.auroc is None
  assert found.times_random(found.predicted) == dict.fromkeys(
    ("value", "low", "high")
  )
  assert found.to_dict()["random"]["share"] == 0


def test_circuit_and_model_are_run_as_they_are(grammar, tmp_path):
  circuit, params = small_circuits.make(positions="learned", context_length=200)
  rng = random.Random(0)
  prompts = [grammar.draw(rng) for _ in range(3)]
  got = stress.differences(circuit, params)(prompts)
  full = stress.model_differences(circuit, params)(prompts)
  tokens, lengths = pairs.pad_rows([p.tokens for p in prompts], 200)
  for apply, want in (
    (circuit.apply, got),
    (circuit.model.apply, full),
  ):
    logits = np.asarray(jax.jit(apply)(params, tokens))
    for i, p in enumerate(prompts):
      last = logits[i, lengths[i] - 1]
      difference = float(last[p.correct] - last[p.incorrect])
      assert want[i] == pytest.approx(difference, rel=1e-3, abs=1e-4)
  shuffled = sufficiency.random_mask(circuit.node_mask, 0)
  for name, mask in circuit.node_mask.items():
    assert shuffled[name].sum() == mask.sum()
  found = stress.measure(
    grammar, fails_from(2), fails_from(3), [fails_from(1)], OPTIONS
  )
  files = tmp_path / "a.svg", tmp_path / "b.svg"
  for path in files:
    picture.write_picture(path, found)
  assert files[0].read_bytes() == files[1].read_bytes()
  assert b"</svg>" in files[0].read_bytes()
