"""How long a checkpoint holds up the training."""

import dataclasses
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator

from experiments.benchmark import measure
from sparse_jax.training import checkpoints as checkpoints_lib

_STEPS = 5  # Between two saves: the first ones run beside the writing.


def measure_pause(
  shape: measure.Shape, rounds: int
) -> Iterator[measure.Metric]:
  """Measures for how long `save` holds up the loop, in steps."""
  (step,) = measure.training_steps([shape])
  checkpoints_lib.checksums(step.state)  # Compiled before the first step.
  times: dict[str, list[float]] = {
    name: [] for name in ("pause", "step", "first_step", "whole")
  }
  with tempfile.TemporaryDirectory() as root:
    checkpoints = checkpoints_lib.TrainingCheckpoints(pathlib.Path(root))

    def save(number: int, until_whole: bool = False) -> float:
      begin = time.perf_counter()
      checkpoints.save(number, step.state)
      if until_whole:
        checkpoints.wait()
      return time.perf_counter() - begin

    for number in range(_STEPS * rounds):
      times["pause"].append(save(2 * number))
      first, *_ = step.sample(_STEPS)
      checkpoints.wait()
      times["first_step"].append(first)
      times["step"] += step.sample(_STEPS)
      times["whole"].append(save(2 * number + 1, until_whole=True))
    checkpoints.close()
  medians = {name: statistics.median(of) for name, of in times.items()}
  metric = measure.Timed(medians, {}).metric(
    "pause of a checkpoint, in steps", shape, "pause/step", 1.0, at_most=True
  )
  longest = max(times["pause"]) / medians["step"]
  details = {**metric.details, "longest_pause_in_steps": longest}
  yield dataclasses.replace(metric, details=details)
