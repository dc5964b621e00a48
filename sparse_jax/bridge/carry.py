"""Carry-over: how much of the dense model's behaviour a sparse circuit carries.

At every bridge the dense state loses the component that the circuit's channels
decode to and gets that of the counter-prompt in its place; what is measured is
the share of the dense model's logit difference that moves with it.

Axes: S sequences, L position, D dense residual, E sparse residual.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import circuit as circuit_lib
from sparse_jax import sites
from sparse_jax import tasks as tasks_lib
from sparse_jax.bridge import directory as directory_lib
from sparse_jax.bridge import maps, points, steering
from sparse_jax.model import fingerprint
from sparse_jax.tasks import evaluation
from sparse_jax.utils import errors


def carry_over(
  bridge: directory_lib.Bridge,
  circuit: circuit_lib.Circuit,
  task: str | tasks_lib.Pairs | None = None,
  seed: int = 0,
) -> dict[str, Any]:
  """Returns the share of the dense model's logit difference that is carried.

  `share` is that of the circuit's channels, `random` of as many others at every
  bridge, `all` of all channels: the most that these bridges carry. Each is a
  mean with its 90% interval over templates: 0 where nothing moves, 1 where the
  dense model answers as on the counter-prompt. Bigram logits stay the prompt's.

  Args:
    bridge: of the models.
    circuit: of the sparse model.
    task: its name or pairs; by default the circuit's.
    seed: of the random channels.

  Raises:
    InputError: if the circuit is another model's.
  """
  check_circuit(bridge, circuit)
  sequences = steering.aligned_pairs(bridge, task or circuit.task)
  chosen = circuit_channels(bridge, circuit)
  kinds = {
    "share": chosen,
    "random": np.random.default_rng(seed).permuted(chosen, axis=1),
    "all": np.ones_like(chosen),
  }
  own_S = np.asarray(_differences(bridge.arrays, chosen & False, sequences))
  # The counter-prompt's own difference is of the same answers the other way.
  gap_S = own_S + np.roll(own_S, len(own_S) // 2)
  groups = np.asarray(sequences.groups)

  def share(channels):
    carried_S = np.asarray(_differences(bridge.arrays, channels, sequences))
    estimate = evaluation.ratio_estimate(own_S - carried_S, gap_S, groups, seed)
    return estimate._asdict()

  return {
    "num_channels": [int(n) for n in chosen.sum(1)],
    "logit_difference": float(np.mean(own_S)),
    **{kind: share(channels) for kind, channels in kinds.items()},
  }


def check_circuit(
  bridge: directory_lib.Bridge, circuit: circuit_lib.Circuit
) -> None:
  """Raises InputError for a circuit of another model than the sparse one."""
  span = bridge.span
  own = fingerprint.fingerprint(span.sparse, bridge.arrays.sparse)
  if circuit.model_fingerprint != own:
    raise errors.bad_value(
      f"circuit of {circuit.task}: model_fingerprint",
      circuit.model_fingerprint,
      f"{own}, the bridge's sparse model",
    )


def circuit_channels(
  bridge: directory_lib.Bridge, circuit: circuit_lib.Circuit
) -> np.ndarray:
  """Returns the residual channels of a circuit at each bridge, `[bridges, E]`.

  They are those that its nodes write before the bridge or read behind it. At a
  site that the circuit does not gate every node is one of its own.
  """
  config = bridge.span.sparse.config
  order = sites.all_site_ids(config.n_layer)
  found = np.zeros((len(bridge.span.points), config.d_model), bool)
  for i, point in enumerate(bridge.span.points):
    at = order.index(point)
    for layer in range(config.n_layer):
      for sublayer in ("attn", "mlp"):
        for name, is_write in (("resid_delta", True), ("act_in", False)):
          site = f"{sublayer}.{name}"
          is_before = order.index(sites.site_id(site, layer)) < at
          if is_before != is_write:
            continue
          mask = circuit.node_mask.get(site)
          # Concatenated positions stand behind the residual channels.
          found[i] |= True if mask is None else mask[layer][: config.d_model]
  return found


@jax.jit
def _differences(arrays, channels_PxE, sequences):
  """Returns the dense model's logit differences `[S]`, channels replaced."""
  span = arrays.span
  states = points.body_states(
    span.dense, arrays.dense, sequences.tokens, span.points
  )

  def replace(site, layer, x_SxLxD):
    name = sites.site_id(site, layer)
    if name not in span.points:
      return x_SxLxD
    i = span.points.index(name)
    encode = functools.partial(span.encode, arrays.maps, i)
    counter_SxLxE = encode(steering.other_side(states[i]))
    change_SxLxE = channels_PxE[i] * (counter_SxLxE - encode(x_SxLxD))
    return x_SxLxD + maps.decode_difference(arrays.maps, i, change_SxLxE)

  logits_SxV = steering.logits_at(span.dense, arrays.dense, sequences, replace)
  pick = lambda of: jnp.take_along_axis(logits_SxV, of[:, None], 1)[:, 0]
  return pick(sequences.correct) - pick(sequences.incorrect)
