"""Measures speed and memory as ratios, both sides in one run.

  python -m experiments.benchmark --out=runs/benchmark.json
  python -m experiments.benchmark --short

--torch_python names a Python that has PyTorch; with it the baselines run too.
docs/performance.md has results.
"""

import dataclasses
import functools
import time

import jax
from absl import flags

from experiments import cli
from experiments.benchmark import measure, saving, scaling, torch_baselines
from sparse_jax.utils import errors, files, host, progress

_OUT = flags.DEFINE_string(
  "out", "runs/benchmark.json", "JSON file to write the metrics to."
)
_PLOT = flags.DEFINE_string(
  "plot", "", "PNG file to draw the growth of time and memory to."
)
_SHORT = flags.DEFINE_bool(
  "short", False, "Tiny shapes: a trial; its metrics mean nothing."
)
_ONLY = flags.DEFINE_string(
  "only", "", "Measure only what has this in its name, such as 'mask step'."
)
_GROWTH = flags.DEFINE_bool(
  "growth", True, "Measure growth with width, density, depth and batch."
)
_CIRCUIT = flags.DEFINE_string(
  "circuit", "", "Circuit directory that is timed against its model."
)
_TORCH_PYTHON = flags.DEFINE_string(
  "torch_python", "", "Python that has PyTorch, to run the baselines with."
)


def main(overrides: list[str]) -> None:
  """Measures, prints the tables and writes the files."""
  del overrides
  start = time.perf_counter()
  on_cpu = jax.default_backend() == "cpu"
  baselines = torch_baselines.Baselines(
    _TORCH_PYTHON.value, "cpu" if on_cpu else "cuda"
  )
  plan = measure.CPU if on_cpu else measure.ACCELERATOR
  plan = measure.SHORT if _SHORT.value else plan
  plan = dataclasses.replace(plan, circuit=_CIRCUIT.value)
  todo = dict(measure.measurements(plan, baselines))
  todo[f"checkpoint, {plan.saved}"] = functools.partial(
    saving.measure_pause, plan.saved, plan.rounds
  )
  names = "; ".join(todo)
  todo = {name: m for name, m in todo.items() if _ONLY.value in name}
  if not todo:
    raise errors.bad_value("--only", _ONLY.value, f"a part of: {names}")
  environment = host.environment()
  environment["versions"]["torch"] = baselines.torch_version()
  metrics, growths = [], []

  def save() -> None:
    """Writes what there is: an interrupted run keeps its metrics."""
    written = {
      "seconds": time.perf_counter() - start,
      "short": _SHORT.value,
      "metrics": [m.to_dict() for m in metrics],
      "growth": [g.to_dict() for g in growths],
    }
    files.write_json(_OUT.value, environment | written)

  save()
  axes = plan.growth_axes if _GROWTH.value else {}
  with progress.progress_bar(len(todo) + len(axes), 0, "benchmark") as bar:
    for name, measurement in todo.items():
      bar.set_postfix_str(name)
      metrics += measurement()
      save()
      bar.update()
    for axis, values in axes.items():
      bar.set_postfix_str(f"growth with {axis}")
      growths.append(
        scaling.measure_growth(axis, plan.growth_base, values, plan.rounds)
      )
      save()
      bar.update()
  print(measure.table(metrics))
  if growths:
    print("\n" + scaling.growth_table(growths))
    if _PLOT.value:
      scaling.plot_growth(_PLOT.value, growths)
  if on_cpu:
    print("\nno accelerator here: its metrics were not measured")
  print(f"\n{time.perf_counter() - start:.0f} s; written to {_OUT.value}")


if __name__ == "__main__":
  cli.run(main, __doc__)
