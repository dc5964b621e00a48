"""A circuit on one prompt as an attribution graph, for other tools to draw.

Nodes are the circuit's channels at each position, the prompt's tokens and the
logits of the two answers. An edge is a first-order effect: how much the target
changes for the source's departure from its ablation value, all other nodes
held. RMS norms hold their scale, as in circuit-tracer; attention does not.

Fields are those of `apps/webapp/app/api/graph/graph-schema.json` in
hijohnnylin/neuronpedia, ids those of `circuit_tracer/frontend/graph_models.py`
in safety-research/circuit-tracer.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import explain, sites
from sparse_jax.model import hooks, transformer
from sparse_jax.tasks import mask_evaluator
from sparse_jax.utils import progress

_ROWS_PER_CALL = 64
_TOKENS, _ANSWERS = "tokens", "answers"
# What viewers draw as a feature; they know no other kind.
_FEATURE = "cross layer transcoder"


@dataclasses.dataclass(frozen=True, eq=False)
class Effects:
  """What flows where in a circuit on a prompt of L tokens.

  Groups of nodes are "tokens" `[L, 1]`, each site's kept channels `[L, n]`, by
  full name in forward order, and "answers" `[1, 2]`. Nodes are numbered through
  all groups, row by row.

  Attributes:
    values: by group. Tokens have none, answers their logits.
    departures: by group, what each node's value is away from its ablation
      value: what an effect is the effect of. 1 for a token: its embedding goes.
    edges: (source, target, effect), numbers as above.
    influence: `[N]`, the share of both answers' effects that passes each node,
      each target's effects counted by size.
  """

  values: Mapping[str, np.ndarray]
  departures: Mapping[str, np.ndarray]
  edges: list[tuple[int, int, float]]
  influence: np.ndarray


def effects(explanation: explain.Explanation) -> Effects:
  """Returns the effects on a prompt, of nodes that lead to its answers."""
  circuit, evaluator = explanation.circuit, explanation.evaluator
  sequences = evaluator.sequences
  length = int(sequences.positions[0]) + 1
  evaluator = evaluator.on(
    sequences._replace(tokens=sequences.tokens[:, :length])
  )
  kept: dict[str, list[int]] = {}
  means: dict[str, list[float]] = {}
  for node in circuit.nodes:
    name, layer = sites.parse_site_id(
      node["site"], circuit.model_config.n_layer
    )
    mean = circuit.means[name][layer or 0, node["index"]]
    kept.setdefault(node["site"], []).append(node["index"])
    means.setdefault(node["site"], []).append(float(mean))
  order = sites.all_site_ids(circuit.model_config.n_layer)
  kept_N = {s: np.array(kept[s]) for s in order if s in kept}
  run = evaluator, dict(circuit.node_mask), kept_N, circuit.logit_scale
  values = jax.tree.map(np.asarray, _values(*run))
  departures = {
    _TOKENS: np.ones((length, 1)),
    **{s: values[s] - np.array(means[s]) for s in kept_N},
    _ANSWERS: np.ones((1, 2)),
  }
  # Compiled functions sort the names of what they return.
  values = {name: values[name] for name in departures}
  return Effects(values, departures, *_sweep(run, departures))


def _sweep(run, departures) -> tuple[list[tuple[int, int, float]], np.ndarray]:
  """Goes from the answers back; returns edges, and what passes each node."""
  names = list(departures)
  starts = np.cumsum([0, *(departures[n].size for n in names)])
  departure_N = np.concatenate([departures[n].ravel() for n in names])
  edges: list[tuple[int, int, float]] = []
  influence_N = np.zeros(starts[-1])
  influence_N[starts[-2] :] = 0.5
  bar = progress.progress_bar(len(names) - 1, 0, "effects")
  with bar:
    # A node's targets all lie in later sites.
    for i in range(len(names) - 1, 0, -1):
      reached = starts[i] + np.flatnonzero(
        influence_N[starts[i] : starts[i + 1]]
      )
      for first in range(0, len(reached), _ROWS_PER_CALL):
        rows = reached[first : first + _ROWS_PER_CALL]
        one_CxN = np.zeros((_ROWS_PER_CALL, starts[-1]), np.float32)
        one_CxN[np.arange(len(rows)), rows] = 1
        effect_CxN = _slopes(run, departures, one_CxN) * departure_N
        for target, effect_N in zip(rows, effect_CxN[: len(rows)], strict=True):
          sources = np.flatnonzero(effect_N)
          size = np.abs(effect_N[sources])
          influence_N[sources] += influence_N[target] * size / size.sum()
          edges += [(int(s), int(target), float(effect_N[s])) for s in sources]
      bar.update()
  return edges, influence_N


def _slopes(run, groups, one_CxN: np.ndarray) -> np.ndarray:
  """Returns how targets, one a row, change with every node, `[C, N]`."""
  split = np.cumsum([g.size for g in groups.values()])[:-1]
  parts = zip(groups, np.split(one_CxN, split, -1), strict=True)
  of_targets = {n: p.reshape(-1, *groups[n].shape) for n, p in parts}
  slopes = _pull_back(*run, of_targets)
  # An answer is no source.
  slopes[_ANSWERS] = of_targets[_ANSWERS] * 0
  flat = [np.asarray(slopes[n]).reshape(len(one_CxN), -1) for n in groups]
  return np.concatenate(flat, -1)


def _run(evaluator, mask, kept, scale, moves):
  """Returns the groups' values, kept nodes moved and cut from what is before.

  So a value depends on the moves of the nodes that reach it directly.
  """
  model, sequences = evaluator.model, evaluator.sequences
  values = {_TOKENS: jnp.zeros(moves[_TOKENS].shape)}
  is_rms = model.config.norm == "rms"

  def hook(site, layer, x):
    name = sites.site_id(site, layer)
    if site == "resid_in" and layer == 0:
      x = x * (1 + moves[_TOKENS])
    if name in kept:
      x_LxN = x[0]
      values[name] = x_LxN[:, kept[name]]
      x_LxN = jax.lax.stop_gradient(x_LxN)
      x = x_LxN.at[:, kept[name]].add(moves[name])[None]
    return x

  of_circuit = hooks.circuit_hook(
    *(model, evaluator.params, sequences.tokens, None, mask),
    *(evaluator.means, evaluator.freeze_norms),
  )
  all_hooks = of_circuit, hook
  if is_rms and not (model.config.parallel or evaluator.freeze_norms):
    all_hooks = hooks.freeze_norms_at(None), *all_hooks
  x_1xLxD = model.residual(
    evaluator.params, sequences.tokens, hooks.compose(*all_hooks)
  )
  answers = jnp.stack([sequences.correct, sequences.incorrect], -1)
  x_1xD, token_1 = x_1xLxD[:, -1], sequences.tokens[:, -1]
  unembed = lambda x: model.unembed(evaluator.params, x, token_1, answers)
  logits_1x2 = unembed(x_1xD)
  if is_rms:
    # The norm lies behind every site; the logits are linear in what it gives.
    fixed_1x2, own = unembed(jnp.zeros_like(x_1xD)), transformer.rms(x_1xD)
    held = own / jax.lax.stop_gradient(own)
    logits_1x2 = fixed_1x2 + (logits_1x2 - fixed_1x2) * held
  values[_ANSWERS] = scale * logits_1x2
  return values


def _still(evaluator, kept) -> dict[str, jax.Array]:
  length = evaluator.sequences.tokens.shape[1]
  moves = {name: jnp.zeros((length, len(n))) for name, n in kept.items()}
  return {_TOKENS: jnp.zeros((length, 1)), **moves}


@jax.jit
def _values(evaluator: mask_evaluator.MaskEvaluator, mask, kept, scale):
  return _run(evaluator, mask, kept, scale, _still(evaluator, kept))


@jax.jit
def _pull_back(evaluator, mask, kept, scale, of_targets):
  run = functools.partial(_run, evaluator, mask, kept, scale)
  _, back = jax.vjp(run, _still(evaluator, kept))
  return jax.vmap(lambda one: back(one)[0])(of_targets)


def graph(
  explanation: explain.Explanation,
  tokenizer,
  prompt: str,
  probabilities: np.ndarray,
  *,
  slug: str,
  scan: str,
) -> dict[str, Any]:
  """Returns the attribution graph of an explained prompt, fit for JSON.

  A channel's number counts through its layer's sites; its label has site and
  index. `influence` is cumulative from the most important node on, so that a
  viewer's threshold keeps the first nodes.

  Args:
    explanation: of the prompt, by one circuit.
    tokenizer: the model's.
    prompt: the text.
    probabilities: the whole model's, of the next token, `[V]`.
    slug: the graph's name.
    scan: the model's name.
  """
  found = effects(explanation)
  sequences, circuit = explanation.evaluator.sequences, explanation.circuit
  length = int(sequences.positions[0]) + 1
  tokens = sequences.tokens[0, :length].tolist()
  answers = [int(sequences.correct[0]), int(sequences.incorrect[0])]
  nodes = [_token_node(t, at) for at, t in enumerate(tokens)]
  by_site: dict[str, list[int]] = {}
  for node in circuit.nodes:
    by_site.setdefault(node["site"], []).append(node["index"])
  for site, value_LxN in found.values.items():
    if site in by_site:
      nodes += [
        _channel_node(circuit.model_config, site, index, at, value_LxN[at, n])
        for at in range(length)
        for n, index in enumerate(by_site[site])
      ]
  last = str(circuit.model_config.n_layer + 1)
  for token in answers:
    chance = float(probabilities[token])
    nodes.append(
      _node(f"{last}_{token}_{length - 1}", token, last, length - 1, "logit")
      | {
        "clerp": f"{explain.shown(tokenizer, token)} ({chance:.1%})",
        "token_prob": chance,
        "is_target_logit": token == answers[0],
      }
    )
  _add_influence(nodes, found.influence)
  used = {end for edge in found.edges for end in edge[:2]}
  used |= {*range(length), len(nodes) - 2, len(nodes) - 1}
  ids = [node["node_id"] for node in nodes]
  return {
    "metadata": {
      "slug": slug,
      "scan": scan,
      "transcoder_list": [],
      "prompt_tokens": [tokenizer.token_text(t) for t in tokens],
      "prompt": prompt,
      "schema_version": 1,
      "info": {
        "description": f"Circuit of {circuit.task}: {circuit.num_nodes} nodes,"
        f" {circuit.num_edges} edges",
        "generator": {"name": "sparse_jax"},
      },
    },
    "qParams": {
      "pinnedIds": [],
      "supernodes": [],
      "linkType": "both",
      "clickedId": ids[-2],
      "sg_pos": "",
    },
    "nodes": [node for i, node in enumerate(nodes) if i in used],
    "links": [
      {"source": ids[source], "target": ids[target], "weight": effect}
      for source, target, effect in found.edges
    ],
  }


def _node(node_id, feature, layer, at, kind) -> dict[str, Any]:
  head, _, tail = node_id.rpartition("_")
  return {
    "node_id": node_id,
    "feature": feature,
    "layer": layer,
    "ctx_idx": at,
    "feature_type": kind,
    "jsNodeId": f"{head}-{tail}",
    "clerp": "",
    "influence": None,
    "activation": None,
  }


def _token_node(token: int, at: int) -> dict[str, Any]:
  return _node(f"E_{token}_{at}", at, "E", at, "embedding")


def _channel_node(config, site, index, at, value) -> dict[str, Any]:
  name, layer = sites.parse_site_id(site, config.n_layer)
  before = sites.NODE_SITES[: sites.NODE_SITES.index(name)]
  number = sum(config.width(other) for other in before) + index
  row = config.n_layer if layer is None else layer
  node = _node(f"{row}_{number}_{at}", number, str(row), at, _FEATURE)
  return node | {"clerp": f"{site}:{index}", "activation": float(value)}


def _add_influence(nodes, influence_N: np.ndarray) -> None:
  """Adds the cumulative influence of all nodes but the answers."""
  share_N = influence_N[:-2]
  order = np.argsort(-share_N, kind="stable")
  total = max(float(share_N.sum()), np.finfo(float).tiny)
  for i, sofar in zip(order, np.cumsum(share_N[order]) / total, strict=True):
    nodes[i]["influence"] = float(sofar)
