"""What a bridge carries, beside a linear map without sparsity and the mean.

Axes: B batch, W window, P bridge points, N tokens, D dense residual and a one
behind it, S the sparse residual and a one.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax.bridge import maps as maps_lib
from sparse_jax.bridge import objective, points
from sparse_jax.model import transformer
from sparse_jax.utils import progress

# Of the mean square of a channel: what least squares adds to the diagonal.
_RIDGE = 1e-6


def figures(
  span: objective.Span,
  params: objective.Params,
  dense: transformer.Params,
  train_batches: np.ndarray,
  held_out: np.ndarray,
) -> dict[str, Any]:
  """Returns how much each bridge carries, and both baselines.

  Per bridge and map, on held-out windows: `variance_explained_encode` and
  `_decode`, 1 less the normalised error, and `kl_encode` and `kl_decode`, the
  nats a token by which a hybrid pass's answers differ from the dense model's.
  The linear maps are least squares over `train_batches`, and so is the mean.

  Args:
    span: the models.
    params: the sparse model's and the plain bridges'.
    dense: the dense model's.
    train_batches: int `[batches, B, W]` windows.
    held_out: the same, of other text.
  """
  linear, mean = baselines(span, params, dense, train_batches)
  # A baseline has no AbsTopK, nor has what it is to give.
  settings = dataclasses.replace(span.settings, activation_fraction=1.0)
  open_span = dataclasses.replace(span, settings=settings)
  kinds = {
    "bridge": (span, params["maps"]),
    "linear": (open_span, linear),
    "mean": (open_span, mean),
  }
  bar = progress.progress_bar(len(kinds) * len(held_out), 0, "figures")
  with bar:
    found = {
      kind: _mean_losses(
        of, {"sparse": params["sparse"], "maps": maps}, dense, held_out, bar
      )
      for kind, (of, maps) in kinds.items()
    }
  at = lambda kind, i: {
    "variance_explained_encode": 1 - float(found[kind]["nmse_encode"][i]),
    "variance_explained_decode": 1 - float(found[kind]["nmse_decode"][i]),
    "kl_encode": float(found[kind]["kl_encode"][i]),
    "kl_decode": float(found[kind]["kl_decode"][i]),
  }
  return {
    "sparse_loss": float(found["bridge"]["cross_entropy"]),
    "kl_dense_sparse": float(found["bridge"]["distillation"]),
    "bridges": [
      {"point": point, **{kind: at(kind, i) for kind in kinds}}
      for i, point in enumerate(span.points)
    ],
  }


def _mean_losses(span, params, dense, batches, bar) -> dict[str, np.ndarray]:
  rows = []
  for windows_BxW in batches:
    rows.append(jax.device_get(_losses(span, params, dense, windows_BxW)))
    bar.update()
  return jax.tree.map(lambda *x: np.mean(np.stack(x), 0), *rows)


_losses = jax.jit(
  functools.partial(objective.all_losses, in_units=False), static_argnums=0
)


def baselines(
  span: objective.Span,
  params: objective.Params,
  dense: transformer.Params,
  batches: Iterable[np.ndarray],
) -> tuple[maps_lib.Maps, maps_lib.Maps]:
  """Returns the least squares maps of both directions, and the means' maps."""
  total = None
  for windows in batches:
    part = _moments(span, params["sparse"], dense, windows[:, :-1])
    part = jax.tree.map(np.float64, jax.device_get(part))
    total = part if total is None else jax.tree.map(np.add, total, part)
  dd_PxDxD, ds_PxDxS, ss_PxSxS = total
  both = (dd_PxDxD, ds_PxDxS), (ss_PxSxS, np.swapaxes(ds_PxDxS, 1, 2))
  names = "encoder", "decoder"
  linear = {n: _linear(*of) for n, of in zip(names, both, strict=True)}
  mean = {n: _mean(*of) for n, of in zip(names, both, strict=True)}
  return linear, mean


def plain_maps(
  span: objective.Span,
  params: objective.Params,
  dense: transformer.Params,
  batches: np.ndarray,
) -> maps_lib.Maps:
  """Returns the trained maps of plain states: their units are those of text.

  Batches are int `[batches, B, W]` windows.
  """
  of = [
    _units(span, params["sparse"], dense, windows[:, :-1])
    for windows in batches
  ]
  units = jax.tree.map(lambda *x: jnp.mean(jnp.stack(x), 0), *of)
  return maps_lib.out_of_units(params["maps"], *units)


@functools.partial(jax.jit, static_argnums=0)
def _units(span, sparse, dense, tokens):
  models = (span.dense, dense), (span.sparse, sparse)
  return tuple(
    maps_lib.units_of(points.body_states(*of, tokens, span.points))
    for of in models
  )


@functools.partial(jax.jit, static_argnums=0)
def _moments(span, sparse, dense, tokens):
  """Returns sums of products over tokens: dense by dense, by sparse, sparse."""

  def states(model, params):
    found = jnp.stack(points.body_states(model, params, tokens, span.points))
    flat = found.reshape(len(found), -1, found.shape[-1]).astype(jnp.float32)
    return jnp.pad(flat, ((0, 0), (0, 0), (0, 1)), constant_values=1.0)

  d, s = states(span.dense, dense), states(span.sparse, sparse)
  product = lambda a, b: jnp.einsum("PNX,PNY->PXY", a, b)
  return product(d, d), product(d, s), product(s, s)


def _linear(xx: np.ndarray, xy: np.ndarray) -> dict[str, jax.Array]:
  """Returns the least squares map of moments `[P, X, X]` and `[P, X, Y]`."""
  mean_square = np.trace(xx[:, :-1, :-1], axis1=1, axis2=2) / (xx.shape[1] - 1)
  ridge = _RIDGE * mean_square[:, None, None] * np.eye(xx.shape[1])
  solved = np.linalg.solve(xx + ridge, xy)[..., :-1].astype(np.float32)
  kernel, bias = jnp.asarray(solved[:, :-1]), jnp.asarray(solved[:, -1])
  return {"kernel": kernel, "bias": bias}


def _mean(xx: np.ndarray, xy: np.ndarray) -> dict[str, jax.Array]:
  """Returns the map to the mean, whatever the input."""
  mean = (xy[:, -1, :-1] / xx[:, -1:, -1]).astype(np.float32)
  kernel = jnp.zeros((len(xy), xx.shape[1] - 1, mean.shape[-1]))
  return {"kernel": kernel, "bias": jnp.asarray(mean)}
