"""Measures how well a full model does each task.

  python -m experiments.tasks --model=runs/quickstart/model
  python -m experiments.tasks --model=DIR --tasks=var_if,my_task.jsonl

Test pairs come from templates, natural prompts from held-out real files. Losses
are in nats, in brackets 90% bootstrap intervals (over pairs, or over files).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import cli
from sparse_jax import checkpoint, tasks
from sparse_jax import config as config_lib
from sparse_jax.data import sources
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.model import transformer
from sparse_jax.tasks import evaluation, learned
from sparse_jax.tasks import natural as natural_lib
from sparse_jax.utils import files, progress

_MODEL = flags.DEFINE_string("model", None, "Model directory.")
_TASKS = flags.DEFINE_list(
  "tasks", ["all"], "Names or .jsonl and .py files, with commas; or all."
)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the figures to.")
_PAIRS = flags.DEFINE_integer("pairs", 256, "Test pairs a task.", lower_bound=1)
_NATURAL = flags.DEFINE_integer(
  "natural",
  400,
  "Most natural prompts a task; 0 measures none.",
  lower_bound=0,
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "Of the choice of pairs and prompts.", lower_bound=0
)
flags.mark_flag_as_required("model")


@dataclasses.dataclass(frozen=True)
class Row:
  """One task's figures.

  Attributes:
    task: the task.
    test: on template test pairs.
    natural: on natural prompts; None if there are none.
    verdict: whether it is learned well enough to prune.
  """

  task: tasks.Task
  test: evaluation.Score
  natural: evaluation.Score | None
  verdict: learned.LearnedCheck

  def to_dict(self) -> dict[str, Any]:
    """Returns what the JSON file holds of it."""
    return {
      "rule": self.task.rule,
      "answers": list(self.task.answers),
      "test": self.test.to_dict(),
      "natural": self.natural and self.natural.to_dict(),
      "natural_reason": self.task.natural_reason,
      "learned": self.verdict.learned,
      "not_learned_because": list(self.verdict.reasons),
    }


def measure(
  model: transformer.Model,
  params: transformer.Params,
  made: Sequence[tasks.Task],
  prompts: dict[str, tasks.Prompts | None],
  target_loss: float,
  num_pairs: int,
  seed: int,
) -> list[Row]:
  """Returns the tasks' figures.

  Args:
    model: the full model.
    params: its parameters.
    made: the tasks.
    prompts: natural prompts by task name, as `natural_lib.harvest` returns.
    target_loss: what circuits are pruned to, in nats a side.
    num_pairs: test pairs a task; all there are where there are fewer.
    seed: of the pairs.
  """
  diffs = evaluation.make_difference_function(model, params)
  rows = []
  with progress.progress_bar(len(made), 0, "measuring") as bar:
    for task in made:
      bar.set_postfix_str(task.name)
      pairs = task.pairs("test", num_pairs, seed, at_most=True)
      test = evaluation.score_pairs(diffs, pairs, seed)
      found = prompts.get(task.name)
      natural = evaluation.score_prompts(diffs, found, seed) if found else None
      verdict = learned.LearnedCheck(
        test.loss.value, test.accuracy.value, target_loss
      )
      rows.append(Row(task, test, natural, verdict))
      bar.update()
  return rows


_HEADER = (
  "task",
  "pairs",
  "test loss",
  "accuracy %",
  "natural",
  "natural loss",
  "accuracy %",
  "learned",
)


def table(rows: Sequence[Row]) -> str:
  """Returns the figures as aligned columns."""
  cells = [_HEADER]
  for row in rows:
    natural = row.natural
    cells.append(
      (
        row.task.name,
        str(row.test.count),
        *_figures(row.test),
        str(natural.count) if natural else "-",
        *(_figures(natural) if natural else ("-", "-")),
        "yes" if row.verdict.learned else "no",
      )
    )
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) if i in (0, 7) else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ).rstrip()
    for line in cells
  )


def _figures(score: evaluation.Score) -> tuple[str, str]:
  loss, accuracy = score.loss, score.accuracy
  return (
    f"{loss.value:.3f} [{loss.low:.3f}, {loss.high:.3f}]",
    f"{100 * accuracy.value:.1f} [{100 * accuracy.low:.1f},"
    f" {100 * accuracy.high:.1f}]",
  )


def notes(rows: Sequence[Row], skipped: dict[str, str], natural: bool) -> str:
  """Returns, line by line, what is missing from the table and why."""
  learned = sum(row.verdict.learned for row in rows)
  verdict = rows[0].verdict
  lines = [
    f"{learned} of {len(rows)} tasks are learned well enough to prune: test"
    f" accuracy at least {100 * verdict.min_accuracy:g}% and loss at most"
    f" {verdict.max_loss:g} nats"
  ]
  for row in rows:
    if not row.verdict.learned:
      reasons = "; ".join(row.verdict.reasons)
      lines.append(f"not learned: {row.task.name}: {reasons}")
  for row in rows:
    if natural and row.natural is None:
      reason = (
        row.task.natural_reason or "these files do not call for both answers"
      )
      lines.append(f"no natural prompts: {row.task.name}: {reason}")
  lines += [f"skipped: {name}: {why}" for name, why in skipped.items()]
  return "\n".join(lines)


def main(overrides: list[str]) -> None:
  """Measures as the flags say."""
  del overrides  # The command has no config.
  model, params = checkpoint.load_model(_MODEL.value)
  tokenizer = checkpoint.load_tokenizer(_MODEL.value)
  run = checkpoint.load_run(_MODEL.value)
  config = run or config_lib.Config()
  made, skipped = tasks.make_tasks(_TASKS.value, tokenizer)
  prompts = {}
  natural = any(task.find_points for task in made) and _NATURAL.value > 0
  if natural:
    prompts = natural_lib.harvest(
      made,
      sources.documents(config.data, "eval", progress=True),
      _NATURAL.value,
      _SEED.value,
      model.config.context_length or config.data.context_length,
      progress=True,
    )
  rows = measure(
    model,
    params,
    made,
    prompts,
    config.prune.target_per_side,
    _PAIRS.value,
    _SEED.value,
  )
  print(table(rows))
  print()
  print(notes(rows, skipped, natural))
  if natural and run is None:
    print(
      "natural files: data.source="
      f"{config.data.source!r}; what this model was trained on is not known,"
      " so they may not be held out"
    )
  if _OUT.value:
    files.write_json(
      _OUT.value,
      {
        "model_fingerprint": fingerprint_lib.fingerprint(model, params),
        "seed": _SEED.value,
        "target_loss": config.prune.target_per_side,
        "gate": {
          "min_accuracy": rows[0].verdict.min_accuracy,
          "max_loss": rows[0].verdict.max_loss,
        },
        "natural": {
          "source": config.data.source,
          "held_out": run is not None,
        }
        if natural
        else None,
        "tasks": {row.task.name: row.to_dict() for row in rows},
        "skipped": skipped,
      },
    )


if __name__ == "__main__":
  cli.run(main, __doc__)
