"""Which parameter is sparse, at what density, protected how: one table.

Rules are regular expressions over parameter paths; the first match wins and a
parameter without a match is an error, so that a new one cannot stay dense by
oversight. A parameter stacked over layers holds one matrix per layer; density
and selection are per matrix.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

import jax

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.utils import errors


@dataclasses.dataclass(frozen=True)
class Rule:
  """What training does to the parameters whose path matches.

  Attributes:
    pattern: regular expression that the whole path matches.
    density: which density schedule applies, None for dense.
    unit_axis: axis along which a unit's weights lie; each unit's
      `min_alive` largest are protected. None protects nothing.
    decays: whether weight decay applies.
  """

  pattern: str
  density: Literal["block", "embedding"] | None = None
  unit_axis: int | None = None
  decays: bool = False


def rules(sparsity: config_lib.SparsityConfig) -> tuple[Rule, ...]:
  """Returns the table, first match first (the authors' train.py)."""
  bias_density = "block" if sparsity.biases == "sparse" else None
  return (
    # A unit reads through a column and writes through a row of `[in, out]`.
    Rule(sites.C_ATTN, "block", unit_axis=-2, decays=True),
    Rule(sites.C_FC, "block", unit_axis=-2, decays=True),
    Rule(sites.ATTN_C_PROJ, "block", unit_axis=-1, decays=True),
    Rule(sites.MLP_C_PROJ, "block", unit_axis=-1, decays=True),
    Rule(f"{sites.EMBED}|{sites.UNEMBED}", "embedding", decays=True),
    Rule(sites.POSITION, decays=True),
    Rule(sites.BIGRAM),
    Rule(r"layers/(attn|mlp)/\w+/bias", bias_density),
    Rule(rf"{sites.SINK}|(layers/)?ln_\w+/(scale|bias)|{sites.LOGIT_BIAS}"),
  )


def match(table: tuple[Rule, ...], path: str) -> Rule:
  """Returns the first rule that matches a path.

  Raises:
    InputError: if none does.
  """
  for rule in table:
    if re.fullmatch(rule.pattern, path):
      return rule
  raise errors.InputError(
    f"no sparsity rule matches parameter {path!r}; add one to"
    " sparse_jax/rules.py"
  )


def map_rules(
  f: Callable[[Rule, Any], Any], table: tuple[Rule, ...], tree
) -> Any:
  """Returns `f(rule, leaf)` for every parameter of a tree."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: f(match(table, sites.path_name(path)), leaf), tree
  )


def labels(model: config_lib.ModelConfig, params) -> Any:
  """Returns a static tree: "trained", or "fixed" for constants.

  A fixed bigram table, sinusoids and the released models' output bias are
  constants.
  """
  fixed = {sites.LOGIT_BIAS}
  if model.bigram == "fixed":
    fixed.add(sites.BIGRAM)
  if model.positions == "sinusoidal":
    fixed.add(sites.POSITION)
  return jax.tree_util.tree_map_with_path(
    lambda path, _: "fixed" if sites.path_name(path) in fixed else "trained",
    params,
  )
