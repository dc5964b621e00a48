"""Measures how well a full model does each task.

  python -m experiments.tasks --model=runs/quickstart/model
  python -m experiments.tasks --model=DIR --tasks=var_if,my_task.jsonl

Test pairs come from templates, natural prompts from held-out real files. Losses
are in nats, in brackets 90% bootstrap intervals (over pairs, or over files).
Pairs much longer than what the model was trained on are left out and counted.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments import cli
from sparse_jax import checkpoint, tasks
from sparse_jax import config as config_lib
from sparse_jax.data import sources
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import transformer
from sparse_jax.tasks import evaluation
from sparse_jax.tasks import learned as learned_lib
from sparse_jax.tasks import natural as natural_lib
from sparse_jax.utils import errors, files, progress, tables

_MODEL = flags.DEFINE_string("model", None, "A model directory.")
_TASKS = flags.DEFINE_list("tasks", ["all"], cli.TASKS_HELP)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the metrics to.")
_PAIRS = flags.DEFINE_integer("pairs", 256, "Test pairs a task.", lower_bound=1)
_NATURAL = flags.DEFINE_integer(
  "natural", 400, "Most natural prompts a task; 0 measures none.", lower_bound=0
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Of the choice of pairs and prompts.", lower_bound=0
)
_MAX_TOKENS = flags.DEFINE_integer(
  "max_tokens",
  None,
  "Longest prompt measured, in tokens; four times the model's context by"
  " default, or the context where the model learns positions.",
  lower_bound=1,
)
cli.require("model")


@dataclasses.dataclass(frozen=True)
class Row:
  """One task's metrics, on template test pairs and on natural prompts."""

  task: tasks.Task
  too_long: str  # Why pairs are left out, or "".
  test: evaluation.Score
  natural: evaluation.Score | None
  verdict: learned_lib.LearnedCheck

  def to_dict(self) -> dict[str, Any]:
    """Returns what the JSON file holds of it."""
    return {
      "rule": self.task.rule,
      "answers": list(self.task.answers),
      "too_long": self.too_long,
      "test": self.test.to_dict(),
      "natural": self.natural and self.natural.to_dict(),
      "natural_reason": self.task.natural_reason,
      "learned": self.verdict.learned,
      "not_learned_because": list(self.verdict.reasons),
    }


def longest(model: transformer.Model, context_length: int) -> int:
  """Returns how many tokens a prompt may have to be measured."""
  if model.config.positions == "none":
    return _MAX_TOKENS.value or 4 * context_length
  return min(context_length, _MAX_TOKENS.value or context_length)


def drop_long(pairs: tasks.Pairs, limit: int) -> tuple[tasks.Pairs, str]:
  """Returns the pairs of at most `limit` tokens, and a note on the others."""
  fits = np.maximum(pairs.lengths, pairs.counter_lengths) <= limit
  if fits.all():
    return pairs, ""
  note = f"{np.sum(~fits)} of {len(pairs)} pairs are longer than {limit} tokens"
  if not fits.any():
    raise errors.InputError(f"{note}; --max_tokens allows more")
  kept = {
    name: tuple(itertools.compress(values, fits))
    if isinstance(values, tuple)
    else values[fits]
    for name, values in vars(pairs).items()
  }
  return tasks.Pairs(**kept), f"{note}: skipped; --max_tokens allows more"


def measure(
  model: transformer.Model,
  params: transformer.Params,
  made: Sequence[tasks.Task],
  prompts: dict[str, tasks.Prompts | None],
  target_loss: float,
  limit: int,
) -> tuple[list[Row], dict[str, str]]:
  """Returns the tasks' metrics, and by name why others have none.

  Natural prompts are by task name, as `natural.harvest` returns them; the
  target loss, in nats a side, is what circuits are pruned to; a prompt has at
  most `limit` tokens.
  """
  diffs = evaluation.make_difference_function(model, params)
  seed = _SEED.value
  rows, skipped = [], {}
  with progress.progress_bar(len(made), 0, "measuring") as bar:
    for task in made:
      bar.set_postfix_str(task.name)
      bar.update()
      try:
        pairs = task.pairs("test", _PAIRS.value, seed, at_most=True)
        pairs, too_long = drop_long(pairs, limit)
      except errors.InputError as e:
        skipped[task.name] = str(e)
        continue
      test = evaluation.score(diffs, pairs, seed)
      found = prompts.get(task.name)
      natural = evaluation.score(diffs, found, seed) if found else None
      reached = test.loss.value, test.accuracy.value
      verdict = learned_lib.LearnedCheck(*reached, target_loss)
      rows.append(Row(task, too_long, test, natural, verdict))
  return rows, skipped


def table(rows: Sequence[Row]) -> str:
  """Returns the metrics as aligned columns."""
  header = "task|pairs|test loss|accuracy %|natural|natural loss|accuracy %"
  cells = []
  for row in rows:
    scores = *_shown(row.test), *_shown(row.natural)
    learned = "yes" if row.verdict.learned else "no"
    cells.append((row.task.name, *scores, learned))
  return tables.text((*header.split("|"), "learned"), cells, left=(0, 7))


def _shown(score: evaluation.Score | None) -> tuple[str, str, str]:
  if not score:
    return "-", "-", "-"
  loss, (value, low, high) = score.loss, (100 * x for x in score.accuracy)
  return (
    str(score.count),
    f"{loss.value:.3f} [{loss.low:.3f}, {loss.high:.3f}]",
    f"{value:.1f} [{low:.1f}, {high:.1f}]",
  )


def notes(rows: Sequence[Row], skips: Sequence[str], natural: bool) -> str:
  """Returns, line by line, what is missing from the table and why."""
  num_learned = sum(row.verdict.learned for row in rows)
  verdict = rows[0].verdict
  lines = [
    f"{num_learned} of {len(rows)} tasks are learned well enough to prune: test"
    f" accuracy at least {100 * verdict.min_accuracy:g}% and loss at most"
    f" {verdict.max_loss:g} nats"
  ]
  lines += [f"{r.task.name}: {r.too_long}" for r in rows if r.too_long]
  lines += [
    f"not learned: {r.task.name}: {'; '.join(r.verdict.reasons)}"
    for r in rows
    if not r.verdict.learned
  ]
  files_lack = "these files do not call for both answers"
  lines += [
    f"no natural prompts: {r.task.name}: {r.task.natural_reason or files_lack}"
    for r in rows
    if natural and r.natural is None
  ]
  return "\n".join([*lines, *skips])


def main(overrides: list[str]) -> int | None:
  """Measures as the flags say."""
  del overrides  # The command has no config.
  model, params = checkpoint.load_model(_MODEL.value)
  tokenizer = checkpoint.load_tokenizer(_MODEL.value)
  run = checkpoint.load_run(_MODEL.value)
  config = run or config_lib.Config()
  made, skipped = tasks.make_tasks(_TASKS.value, tokenizer)
  context_length = model.config.context_length or config.data.context_length
  prompts = {}
  if natural := any(task.find_points for task in made) and _NATURAL.value > 0:
    documents = sources.documents(config.data, "eval", progress=True)
    limits = _NATURAL.value, _SEED.value, context_length
    prompts = natural_lib.harvest(made, documents, *limits, progress=True)
  target_loss = config.prune.target_per_side
  limit = longest(model, context_length)
  rows, failed = measure(model, params, made, prompts, target_loss, limit)
  skipped |= failed
  skips = [f"skipped: {name}: {why}" for name, why in skipped.items()]
  if not rows:
    print("\n".join(skips))
    return 1
  print(f"{table(rows)}\n\n{notes(rows, skips, natural)}")
  if natural and run is None:
    print(
      f"natural files: data.source={config.data.source!r}; what this model was"
      " trained on is not known, so they may not be held out"
    )
  if _OUT.value:
    gate = rows[0].verdict
    held_out = {"source": config.data.source, "held_out": run is not None}
    written = {
      "model_fingerprint": fingerprint_lib.fingerprint(model, params),
      "seed": _SEED.value,
      "target_loss": target_loss,
      "gate": {"min_accuracy": gate.min_accuracy, "max_loss": gate.max_loss},
      "natural": held_out if natural else None,
      "tasks": {row.task.name: row.to_dict() for row in rows},
      "skipped": skipped,
    }
    files.write_json(_OUT.value, written)
  return None


if __name__ == "__main__":
  cli.run(main, __doc__)
