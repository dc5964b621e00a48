"""Measures which tasks a training run has learned, checkpoint by checkpoint.

  python -m experiments.learning --workdir=runs/reference --out=learning.json

A checkpoint is kept every `train.keep_every` steps. Accuracies and losses are
on the tasks' test pairs and, where a task has a rule for real code, on prompts
from held-out files.
"""

import functools
import pathlib

import jax
from absl import flags

from experiments import cli
from sparse_jax import config as config_lib
from sparse_jax import tasks
from sparse_jax.data import sources, tokens
from sparse_jax.model import transformer
from sparse_jax.tasks import evaluation
from sparse_jax.tasks import learned as learned_lib
from sparse_jax.tasks import natural as natural_lib
from sparse_jax.training import checkpoints as checkpoints_lib
from sparse_jax.training import loop, transforms
from sparse_jax.utils import errors, files, progress, tables

_WORKDIR = flags.DEFINE_string("workdir", None, "A training run's directory.")
_TASKS = flags.DEFINE_list("tasks", ["all"], cli.TASKS_HELP)
_OUT = flags.DEFINE_string("out", None, "JSON file to write the metrics to.")
_PAIRS = flags.DEFINE_integer("pairs", 256, "Test pairs a task.", lower_bound=1)
_NATURAL = flags.DEFINE_integer(
  "natural", 400, "Most natural prompts a task; 0 measures none.", lower_bound=0
)
cli.require("workdir")


def measure(model, params, made, prompts, config) -> dict[str, dict]:
  """Returns by task the loss and accuracy on test pairs and on real code."""
  diffs = evaluation.make_difference_function(model, params)
  scores = {}
  for task in made:
    pairs = task.pairs("test", _PAIRS.value, config.seed, at_most=True)
    test = evaluation.score(diffs, pairs, config.seed)
    found = prompts.get(task.name)
    natural = evaluation.score(diffs, found, config.seed) if found else None
    check = learned_lib.LearnedCheck(
      test.loss.value, test.accuracy.value, config.prune.target_per_side
    )
    scores[task.name] = {
      "test": test.to_dict(),
      "natural": natural and natural.to_dict(),
      "learned": check.learned,
    }
  return scores


def table(rows: list[dict]) -> str:
  """Returns the accuracies in percent, a row a task, a column a checkpoint."""
  header = "task", *(f"{row['tokens'] / 1e6:.1f}M" for row in rows)
  lines = []
  for name in rows[-1]["tasks"]:
    of = [row["tasks"][name] for row in rows]
    shown = [
      f"{s['test']['accuracy']:.0%}{'*' if s['learned'] else ''}" for s in of
    ]
    lines.append((name, *shown))
  learned = [sum(s["learned"] for s in row["tasks"].values()) for row in rows]
  lines.append(("learned (*)", *learned))
  return tables.markdown(header, lines)


def main(overrides: list[str]) -> None:
  """Measures as the flags say."""
  del overrides  # The command has no config of its own.
  workdir = pathlib.Path(_WORKDIR.value)
  config = config_lib.from_config_dict(
    files.read_json(workdir / "config.json", "a run's config")
  )
  data = tokens.prepare(
    config.data,
    config.data.directory or workdir / "data",
    batch_size=config.train.batch_size,
    frozen=True,
  )
  config = config_lib.resolve(config, data.tokenizer.vocab_size)
  model = transformer.Model(config.model, config.sparsity)
  shapes = jax.eval_shape(model.init, jax.random.key(0))
  optimizer = transforms.sparse_adam(config, shapes)
  init = functools.partial(loop.init_state, model, optimizer)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  state = jax.tree.map(
    lambda s: s.update(sharding=device),
    jax.eval_shape(init, jax.random.key(0)),
  )
  checkpoints = checkpoints_lib.TrainingCheckpoints(
    workdir / "checkpoints", config.train.keep_every
  )
  if not checkpoints.steps():
    raise errors.InputError(
      f"--workdir={workdir} has no checkpoints; need a run that has begun"
    )
  made, _ = tasks.make_tasks(_TASKS.value, data.tokenizer)
  prompts = {}
  if _NATURAL.value and any(task.find_points for task in made):
    documents = sources.documents(config.data, "eval", progress=True)
    length = config.data.context_length
    limits = _NATURAL.value, config.seed, length
    prompts = natural_lib.harvest(made, documents, *limits, progress=True)
  a_step = config.train.batch_size * config.data.context_length
  rows = []
  with progress.progress_bar(len(checkpoints.steps()), 0, "measuring") as bar:
    for step in checkpoints.steps():
      params = checkpoints.restore(state, step).params
      scores = measure(model, params, made, prompts, config)
      rows.append({"step": step, "tokens": step * a_step, "tasks": scores})
      bar.update()
  if _OUT.value:
    files.write_json(_OUT.value, rows)
  print(table(rows))


if __name__ == "__main__":
  cli.run(main, __doc__)
