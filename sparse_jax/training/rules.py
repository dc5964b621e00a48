"""Which parameter is sparse, at what density, protected how: one table.

A rule is a regular expression over parameter paths and what training does to
the parameters that it matches. The first match wins, and a parameter without a
match is an error: a new one cannot stay dense by oversight. A parameter stacked
over layers holds one matrix per layer; density and selection are per matrix.
"""

import dataclasses
import re
from typing import Any, Literal

import jax

from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.utils import errors


@dataclasses.dataclass(frozen=True)
class Rule:
  """What training does to the parameters whose whole path matches."""

  pattern: str
  density: Literal["block", "embedding"] | None = (
    None  # The schedule; or dense.
  )
  # Along which a unit's weights lie: its `min_alive` largest are protected.
  unit_axis: int | None = None
  decays: bool = False
  trained: bool = True  # False for constants, which stay as initialised.


def table(
  model: config_lib.ModelConfig, sparsity: config_lib.SparsityConfig
) -> tuple[Rule, ...]:
  """Returns the rules, first match first (the authors' train.py)."""
  bias_density = "block" if sparsity.biases == "sparse" else None
  return (
    # A unit reads through a column and writes through a row of `[in, out]`.
    Rule(sites.C_ATTN, "block", unit_axis=-2, decays=True),
    Rule(sites.C_FC, "block", unit_axis=-2, decays=True),
    Rule(sites.ATTN_C_PROJ, "block", unit_axis=-1, decays=True),
    Rule(sites.MLP_C_PROJ, "block", unit_axis=-1, decays=True),
    Rule(f"{sites.EMBED}|{sites.UNEMBED}", "embedding", decays=True),
    Rule(sites.POSITION, decays=True, trained=model.positions != "sinusoidal"),
    Rule(sites.BIGRAM, trained=model.bigram != "fixed"),
    Rule(r"layers/(attn|mlp)/\w+/bias", bias_density),
    Rule(rf"{sites.SINK}|(layers/)?ln_\w+/(scale|bias)"),
    # The released models have one; in training it stays zero.
    Rule(sites.LOGIT_BIAS, trained=False),
  )


def match(rules: tuple[Rule, ...], path: str) -> Rule:
  """Returns the first rule that matches a path."""
  for rule in rules:
    if re.fullmatch(rule.pattern, path):
      return rule
  raise errors.InputError(
    f"no sparsity rule matches parameter {path!r}; add one to"
    " sparse_jax/training/rules.py"
  )


def rule_tree(
  model: config_lib.ModelConfig, sparsity: config_lib.SparsityConfig, params
) -> Any:
  """Returns the rule of every parameter, in the parameters' structure."""
  rules = table(model, sparsity)
  return jax.tree_util.tree_map_with_path(
    lambda path, _: match(rules, sites.path_name(path)), params
  )
