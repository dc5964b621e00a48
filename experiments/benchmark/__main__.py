"""Measures speed and memory as ratios, both sides in one run.

  python -m experiments.benchmark --out=runs/benchmark.json
  python -m experiments.benchmark --short

The PyTorch peers are run where they are installed (--torch_python, --peer_dir).
docs/performance.md says what was found.
"""

import time

import jax
from absl import flags

from experiments import cli
from experiments.benchmark import baseline_runs, measure, scaling
from sparse_jax.utils import errors, files, progress

_OUT = flags.DEFINE_string(
  "out", "runs/benchmark.json", "JSON file to write the figures to."
)
_PLOT = flags.DEFINE_string(
  "plot", "", "PNG file to draw the growth of time and memory to."
)
_SHORT = flags.DEFINE_bool(
  "short", False, "Minute shapes: a trial; its figures mean nothing."
)
_ONLY = flags.DEFINE_string(
  "only", "", "Measure only what has this in its name, such as 'mask step'."
)
_GROWTH = flags.DEFINE_bool(
  "growth", True, "Measure growth with width, density, depth and batch."
)
_TORCH_PYTHON = flags.DEFINE_string(
  "torch_python", "peer/bin/python", "Python that has PyTorch, for the peers."
)
_PEER_DIR = flags.DEFINE_string(
  "peer_dir", "peer", "Directory of the peers' scripts."
)


def main(overrides: list[str]) -> None:
  """Measures, prints the tables and writes the files."""
  del overrides
  start = time.perf_counter()
  on_cpu = jax.default_backend() == "cpu"
  peers = baseline_runs.find_peers(
    _TORCH_PYTHON.value,
    _PEER_DIR.value,
    required=any(flags.FLAGS[n].present for n in ("torch_python", "peer_dir")),
    device="cpu" if on_cpu else "cuda",
  )
  plan = measure.cpu_plan() if on_cpu else measure.accelerator_plan()
  if _SHORT.value:
    plan = measure.short_plan()
  todo = list(measure.measurements(plan, peers))
  if _ONLY.value:
    names = [name for name, _ in todo]
    todo = [(name, m) for name, m in todo if _ONLY.value in name]
    if not todo:
      raise errors.bad_value(
        "--only", _ONLY.value, f"a part of: {'; '.join(names)}"
      )
  before = measure.environment(peers)
  figures, growths = [], []

  def save() -> None:
    """Writes what there is: an interrupted run keeps its figures."""
    files.write_json(
      _OUT.value,
      before
      | {
        "seconds": time.perf_counter() - start,
        "short": _SHORT.value,
        "figures": [f.to_dict() for f in figures],
        "growth": [g.to_dict() for g in growths],
      },
    )

  save()
  axes = plan.growth_axes if _GROWTH.value else {}
  with progress.progress_bar(len(todo) + len(axes), 0, "benchmark") as bar:
    for name, run in todo:
      bar.set_postfix_str(name)
      figures += run()
      save()
      bar.update()
    for axis, values in axes.items():
      bar.set_postfix_str(f"growth with {axis}")
      growths.append(
        scaling.measure_growth(axis, plan.growth_base, values, plan.rounds)
      )
      save()
      bar.update()
  print(measure.table(figures))
  if growths:
    print("\n" + scaling.growth_table(growths))
    if _PLOT.value:
      scaling.plot_growth(_PLOT.value, growths)
  if on_cpu:
    print("\nno accelerator at hand: its figures were not measured")
  print(f"\n{time.perf_counter() - start:.0f} s; written to {_OUT.value}")


if __name__ == "__main__":
  cli.run(main, __doc__)
