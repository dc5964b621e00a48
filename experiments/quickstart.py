"""Trains, prunes, checks and draws a circuit on the machine's own Python files.

  python -m experiments.quickstart

The same command again resumes, or only prunes and draws if training is done.
"""

import pathlib
import time
from typing import Any

from absl import flags

from experiments import cli
from sparse_jax import config as config_lib
from sparse_jax import files, metrics, prune, report, search, tasks, train
from sparse_jax.data import windows

_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/quickstart", "Directory of the run; the same one resumes."
)
_CONFIG = flags.DEFINE_string(
  "config",
  str(pathlib.Path(__file__).parent / "configs" / "quickstart.py"),
  "Python file with get_config().",
)


def pretraining_means(trained: train.Trained) -> prune.SiteArrays:
  """Returns every node's mean over windows of the training tokens."""
  config = trained.config
  batches = windows.eval_batches(
    trained.data.train,
    context_length=config.data.context_length,
    batch_size=config.train.batch_size,
    num_batches=config.prune.mean_batches,
  )
  return prune.mean_activations(
    trained.model, trained.params, batches[:, :, :-1]
  )


def run(config: config_lib.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs the whole path; returns what summary.json holds."""
  start = time.perf_counter()
  trained = train.run(config, workdir)
  trained_at = time.perf_counter()
  means = pretraining_means(trained)
  summary = {
    "eval_loss": trained.eval_loss,
    "block_weights_zero": 1 - train.block_density(trained.params),
    "training_seconds": trained_at - start,
    "tasks": {},
  }
  with files.exclusive(workdir):
    for name in config.tasks:
      task = tasks.make_task(name, trained.data.tokenizer)
      circuit = search.find_circuit(
        trained.model, trained.params, task, config.prune, means, config.seed
      )
      circuit.save(workdir / "circuits" / name)
      summary["tasks"][name] = circuit.metrics
    page = workdir / "report.html"
    report.write_page(
      page,
      [
        report.from_directory(workdir / "circuits" / name)
        for name in config.tasks
      ],
      training=metrics.read_jsonl(workdir / "metrics.jsonl"),
      title="Circuits of a weight-sparse transformer",
    )
    summary["seconds"] = time.perf_counter() - start
    files.write_json(workdir / "summary.json", summary)
  return summary


def summary_text(summary: dict[str, Any]) -> str:
  """Returns the summary as a person reads it."""
  lines = [
    f"block weights {100 * summary['block_weights_zero']:.1f}% zero,"
    f" held-out loss {summary['eval_loss']:.3f} nats a token",
    "",
    f"{'task':<22} {'nodes':>5} {'edges':>5}   "
    "test loss (accuracy): circuit, full model, model without circuit",
  ]
  for name, m in summary["tasks"].items():
    columns = [
      f"{m[f'{p}test_loss']:.3f} ({100 * m[f'{p}test_accuracy']:.0f}%)"
      for p in ("", "full_model_", "without_circuit_")
    ]
    note = "" if m["meets_target"] else "   misses the target loss"
    lines.append(
      f"{name:<22} {m['num_nodes']:>5} {m['num_edges']:>5}   "
      + "  ".join(columns)
      + note
    )
  return "\n".join(lines)


def main(overrides: list[str]) -> None:
  """Runs the quickstart as the flags say."""
  workdir = pathlib.Path(_WORKDIR.value)
  config = cli.load_config(_CONFIG.value, overrides)
  summary = run(config, workdir)
  print(f"\n{summary_text(summary)}\n\nreport: {workdir / 'report.html'}")


if __name__ == "__main__":
  cli.run(main, __doc__)
