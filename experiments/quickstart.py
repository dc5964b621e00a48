"""Trains, prunes, checks and draws a circuit on the machine's own Python files.

  python -m experiments.quickstart

The same command again resumes, or only prunes and draws if training is done.
"""

import pathlib
import time
from typing import Any

from absl import flags

from experiments import cli
from sparse_jax import checkpoint, faithfulness, report, tasks
from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax.data import sources
from sparse_jax.faithfulness import pipeline
from sparse_jax.report import activations
from sparse_jax.training import loop, metric_log
from sparse_jax.utils import files, host

_WORKDIR = flags.DEFINE_string(
  "workdir", "runs/quickstart", "Directory of the run; the same one resumes."
)
_CONFIG = flags.DEFINE_string(
  "config",
  str(pathlib.Path(__file__).parent / "configs" / "quickstart.py"),
  "A Python file with get_config().",
)


def find_circuits(
  trained: loop.Trained, config: config_lib.Config, workdir: pathlib.Path
) -> dict[str, Any]:
  """Prunes the tasks that the model has learned; returns metrics by task.

  The first task is pruned in any case, and marked if it is not learned.
  """
  pipe = pipeline.Pipeline(
    model=trained.model,
    params=trained.params,
    means=checkpoint.load_means(trained.model_directory),
    config=config,
    controls=False,  # Four more prunings: `experiments.verify` does them.
  )
  made, skipped = tasks.make_tasks(config.tasks, trained.data.tokenizer)
  metrics = {}
  for task in made:
    learned, reasons = pipe.choose([task], config.tasks[:1])
    skipped |= reasons
    found = pipe.run(learned, workdir / "circuits")
    for name, circuits in found.items():
      metrics[name] = circuits.core.metrics
      if circuits.robust is not None:
        metrics[name] = metrics[name] | {"robust": circuits.robust.metrics}
  return metrics | {
    name: {"learned": False, "reasons": [reason]}
    for name, reason in skipped.items()
  }


def run(config: config_lib.Config, workdir: pathlib.Path) -> dict[str, Any]:
  """Runs the whole path; returns what summary.json holds."""
  start = time.perf_counter()
  trained = loop.run(config, workdir)
  trained_at = time.perf_counter()
  with files.exclusive(workdir):
    metrics = find_circuits(trained, config, workdir)
    circuits = [
      circuit_lib.load_all(workdir / "circuits" / name)
      for name, m in metrics.items()
      if "num_nodes" in m
    ]
    report.write_page(
      workdir / "report.html",
      circuits,
      evidence=activations.collect(
        trained.model,
        trained.params,
        trained.data.tokenizer,
        circuits,
        sources.documents(config.data, "eval", progress=True),
      ),
      training=metric_log.read_jsonl(workdir / "metrics.jsonl"),
      title="Circuits of a weight-sparse transformer",
    )
    summary = {
      "eval_loss": trained.eval_loss,
      "block_weights_zero": 1 - loop.block_density(trained.params),
      "tasks": metrics,
      "training_seconds": trained_at - start,
      "seconds": time.perf_counter() - start,
      "compiled": host.compiled()._asdict(),
      "peak_memory_bytes": host.peak_memory(),
    }
    files.write_json(workdir / "summary.json", summary)
  return summary


def summary_text(summary: dict[str, Any]) -> str:
  """Returns the summary as a person reads it."""
  lines = [
    f"block weights {100 * summary['block_weights_zero']:.1f}% zero,"
    f" held-out loss {summary['eval_loss']:.3f} nats a token,"
    f" {summary['seconds'] / 60:.1f} minutes,"
    f" of which compiling {host.Compiled(**summary['compiled'])},"
    f" at most {summary['peak_memory_bytes'] / 2**30:.1f} GiB of memory",
    "",
    "test loss in nats and accuracy, on prompts of templates never seen before",
    f"{'circuit':<28} {'nodes':>5} {'edges':>6} {'circuit':>13}"
    f" {'full model':>13} {'without it':>13}",
  ]
  for name, m in summary["tasks"].items():
    if "num_nodes" not in m:
      lines.append(f"{name:<28} not pruned, {'; '.join(m['reasons'])}")
      continue
    circuits = {f"{name}, core": m}
    if "robust" in m:
      circuits[f"{name}, robust"] = m["robust"]
    lines += [_row(label, metrics) for label, metrics in circuits.items()]
    for label, metrics in circuits.items():
      if not metrics["meets_target"]:
        lines.append(f"  {label}: misses its target on validation pairs")
      lines += ["", f"{label} circuit: is it what the model computes?"]
      lines += [faithfulness.summary(metrics["faithfulness"])]
    lines.append("")
    if not m["learned"]:
      lines.append("  not learned: the full model does not do this task")
  return "\n".join(lines)


def _row(label: str, metrics: dict[str, Any]) -> str:
  columns = [
    f"{metrics[p + 'loss']:.3f} ({100 * metrics[p + 'accuracy']:.1f}%)"
    for p in ("test_", "full_model_test_", "without_circuit_test_")
  ]
  row = f"{label:<28} {metrics['num_nodes']:>5} {metrics['num_edges']:>6}"
  return " ".join([row, *(f"{c:>13}" for c in columns)])


def main(overrides: list[str]) -> None:
  """Runs the quickstart as the flags say."""
  workdir = pathlib.Path(_WORKDIR.value)
  config = cli.load_config(_CONFIG.value, overrides)
  summary = run(config, workdir)
  print(f"\n{summary_text(summary)}\n")
  print(f"report: {workdir / 'report.html'}")
  for name, metrics in summary["tasks"].items():
    if "num_nodes" in metrics:
      print(
        "against nonsense labels and random weights: python -m"
        f" experiments.verify --circuit={workdir / 'circuits' / name}"
      )


if __name__ == "__main__":
  cli.run(main, __doc__, "prune.num_runs=8")
