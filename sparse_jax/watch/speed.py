"""What watching costs: prompts a second against the model's own."""

import functools
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.watch import monitor as monitor_lib


def throughput(
  monitor: monitor_lib.Monitor, prompts: Sequence[str], rounds: int = 3
) -> dict[str, Any]:
  """Returns the monitor's rate over the model's, and what it is made of.

  The model gives the next token of prompts that are tokens already; the monitor
  goes from text to JSON. Both run in turn, after a round that only compiles.
  "ratio" is of the medians, the rates are in prompts a second.
  """
  encoded = [monitor.encode(prompt) for prompt in prompts]
  runs = {
    "model": lambda: _next_tokens(monitor, encoded),
    "monitor": lambda: [json.dumps(said) for said in monitor(prompts)],
  }
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for _ in range(1 + rounds):
    for name, run in runs.items():
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  typical = {n: statistics.median(times[1:]) for n, times in seconds.items()}
  _, readings = monitor.measure(encoded)
  return {
    "num_prompts": len(prompts),
    "readings_per_prompt": sum(len(r.rows) for r in readings.values())
    / len(prompts),
    "rounds": rounds,
    "model": len(prompts) / typical["model"],
    "monitor": len(prompts) / typical["monitor"],
    "ratio": typical["model"] / typical["monitor"],
  }


def _next_tokens(monitor, encoded) -> list[np.ndarray]:
  found = []
  for batch in monitor_lib.batches(encoded, monitor.context_length):
    found.append(np.asarray(_next(monitor.model, monitor.params, *batch)))
  return found


@functools.partial(jax.jit, static_argnames="model")
def _next(model, params, tokens_BxL, positions_B):
  x_BxD = model.residual(params, tokens_BxL, None, positions_B)[:, 0]
  last_B = tokens_BxL[jnp.arange(len(tokens_BxL)), positions_B]
  return jnp.argmax(model.unembed(params, x_BxD, last_B), -1)
