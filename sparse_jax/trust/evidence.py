"""Measurements of one circuit against its model: no training, only forwards.

Every figure is a mean over sequences with a 90% bootstrap interval over pairs
(`evaluate.score_gaps`): {"value", "low", "high"}. Losses are in nats.
"""

import dataclasses
import functools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparse_jax import (
  calibrate,
  discretise,
  edge_masks,
  evaluate,
  prune,
  sites,
  taps,
)
from sparse_jax import circuit as circuit_lib
from sparse_jax import model as model_lib

_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
_NUM_RANDOM = 8
_ADVERSARIAL_SHARES = (0.05, 0.2, 0.5, 1.0)
_RESAMPLES = 2000
_CORRUPTED_SHARE = 0.15
_MAX_NODES = 400
_MAX_EDGES = 1000

Gates = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Subject:
  """A circuit in its model, with the prompts it is examined on.

  Attributes:
    model: the model it was cut from.
    params: its parameters.
    circuit: the circuit.
    means: by ablation, its values per gated site `[layers, width]`.
    test: test pairs as sequences; row i pairs with row i + S/2.
    seed: of random subsets, corruption and the bootstrap.
  """

  model: model_lib.Model
  params: model_lib.Params
  circuit: circuit_lib.Circuit
  means: Mapping[str, Mapping[str, Any]]
  test: prune.Sequences
  seed: int

  @property
  def gates(self) -> dict[str, np.ndarray]:
    """The circuit's nodes, 1 for kept, per site `[layers, width]` float32."""
    mask = self.circuit.node_mask
    return {name: np.asarray(m, np.float32) for name, m in mask.items()}

  @property
  def own_means(self) -> Mapping[str, Any]:
    """The ablation values that the circuit itself stores."""
    return self.circuit.means

  @property
  def calibration(self) -> calibrate.Calibration:
    """What was fitted to the circuit's logits."""
    shift = self.circuit.details.get("answer_shift", 0.0)
    return calibrate.Calibration(self.circuit.logit_scale, shift)

  @functools.cached_property
  def _gated_gap(self):
    return jax.jit(
      lambda params, gates, means, sequences: prune.answer_gap(
        self.model, params, sequences, taps.gate(gates, means)
      )
    )

  def gap(
    self, gates: Gates, means=None, sequences: prune.Sequences | None = None
  ) -> np.ndarray:
    """Returns logit gaps with these gates, uncalibrated, `[S]`."""
    means = self.own_means if means is None else means
    means = {name: jnp.asarray(means[name]) for name in gates}
    gates = {name: jnp.asarray(g, jnp.float32) for name, g in gates.items()}
    sequences = sequences or self.test
    return np.asarray(self._gated_gap(self.params, gates, means, sequences))

  def calibrated(
    self, gap: np.ndarray, sequences: prune.Sequences | None = None
  ) -> np.ndarray:
    """Returns gaps with the circuit's scale and shift."""
    s = sequences or self.test
    sign = np.asarray(calibrate.answer_sign(s.right, s.wrong))
    return np.asarray(calibrate.calibrate(gap, sign, self.calibration))

  def full_gap(self, sequences: prune.Sequences | None = None) -> np.ndarray:
    """Returns the whole model's logit gaps, `[S]`."""
    ones = {name: np.ones_like(g) for name, g in self.gates.items()}
    return self.gap(ones, sequences=sequences)


def estimate(values: np.ndarray, groups, seed: int) -> dict[str, float]:
  """Returns a mean with its bootstrap interval over groups."""
  found = evaluate.mean_estimate(np.asarray(values, float), groups, seed)
  return {"value": found.value, "low": found.low, "high": found.high}


def _pairs(count: int) -> np.ndarray:
  return np.tile(np.arange(count // 2), 2)


def ratio(num_S: np.ndarray, den_S: np.ndarray, seed: int):
  """Returns sum(num) / sum(den) with its 90% interval over pairs, or None.

  None where nothing varies: a ratio to 0 says nothing.
  """
  if not np.sum(den_S) > 0:
    return None
  half = len(num_S) // 2
  num_P, den_P = (x[:half] + x[half:] for x in (num_S, den_S))
  times_RxP = np.random.default_rng(seed).multinomial(
    half, np.full(half, 1 / half), _RESAMPLES
  )
  den_R = times_RxP @ den_P
  drawn = (times_RxP @ num_P)[den_R > 0] / den_R[den_R > 0]
  low, high = np.quantile(drawn, [0.05, 0.95])
  value = np.sum(num_S) / np.sum(den_S)
  return {"value": float(value), "low": float(low), "high": float(high)}


def score(gap: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
  """Returns task loss and accuracy of logit gaps over pairs.

  Args:
    gap: `[S]`, or `[draws, S]`: then the mean of the draws' losses and
      accuracies, never the score of their mean gap, which is an ensemble's.
    seed: of the bootstrap.
  """
  gap = np.atleast_2d(gap).astype(float)
  groups = _pairs(gap.shape[1])
  return {
    "loss": estimate(np.logaddexp(0, -gap).mean(0), groups, seed),
    "accuracy": estimate((gap > 0).mean(0), groups, seed),
  }


def random_circuit(gates: Gates, seed: int) -> dict[str, np.ndarray]:
  """Returns gates with as many random nodes in every site and layer."""
  rng = np.random.default_rng(seed)
  return {name: rng.permuted(g, axis=1) for name, g in gates.items()}


def sufficiency_and_necessity(subject: Subject) -> dict[str, Any]:
  """Returns, by ablation, scores of circuit, of model without it, of controls.

  The model without a random circuit of the same sites and sizes has to keep
  what the model without the circuit loses (Wang et al. 2022, "Interpretability
  in the wild": faithfulness and completeness; FACTS section 3).
  """
  gates = subject.gates
  without = {name: 1 - g for name, g in gates.items()}
  result = {}
  for ablation, means in subject.means.items():
    own = ablation == subject.circuit.ablation
    gap = subject.gap(gates, means)
    random = [
      subject.gap(
        {
          name: 1 - g
          for name, g in random_circuit(gates, subject.seed + i).items()
        },
        means,
      )
      for i in range(_NUM_RANDOM)
    ]
    # Other ablations move the logits' scale: what was fitted is for its own.
    result[ablation] = {
      "circuit": score(subject.calibrated(gap) if own else gap, subject.seed),
      "without_circuit": score(subject.gap(without, means), subject.seed),
      "without_random_circuit": score(np.stack(random), subject.seed),
    }
  result["full_model"] = score(subject.full_gap(), subject.seed)
  return result


def _binary_kl(gap_p: np.ndarray, gap_q: np.ndarray) -> np.ndarray:
  """Returns KL(p || q) of two-answer distributions, in nats, `[S]`."""
  p = 1 / (1 + np.exp(-gap_p.astype(float)))
  log_p, log_not_p = -np.logaddexp(0, -gap_p), -np.logaddexp(0, gap_p)
  log_q, log_not_q = -np.logaddexp(0, -gap_q), -np.logaddexp(0, gap_q)
  return p * (log_p - log_q) + (1 - p) * (log_not_p - log_not_q)


def corrupted(
  sequences: prune.Sequences, vocab_size: int, seed: int
) -> prune.Sequences:
  """Returns the prompts with a share of their tokens drawn at random."""
  rng = np.random.default_rng(seed)
  tokens = np.asarray(sequences.tokens)
  drawn = rng.integers(0, vocab_size, tokens.shape)
  changed = rng.random(tokens.shape) < _CORRUPTED_SHARE
  return sequences._replace(
    tokens=jnp.asarray(np.where(changed, drawn, tokens), jnp.int32)
  )


def agreement(
  subject: Subject,
  prompts: Mapping[str, prune.Sequences],
  groups: Mapping[str, Sequence[Hashable]] | None = None,
) -> dict[str, Any]:
  """Returns how far the circuit answers as the model does, labels aside.

  Per set of prompts: KL(model || circuit) over the two answers, in nats, and
  the share of prompts on which both prefer the same answer.

  Args:
    subject: the circuit in its model.
    prompts: named sets of sequences.
    groups: by name, labels of what the bootstrap resamples together, such as
      files; pairs where nothing is said.
  """
  result = {}
  for name, sequences in prompts.items():
    full = subject.full_gap(sequences)
    gap = subject.calibrated(
      subject.gap(subject.gates, None, sequences), sequences
    )
    alike = (groups or {}).get(name)
    alike = _pairs(len(full)) if alike is None else alike
    result[name] = {
      "num_prompts": len(full),
      "kl": estimate(_binary_kl(full, gap), alike, subject.seed),
      "agreement": estimate((full > 0) == (gap > 0), alike, subject.seed),
    }
  return result


def interchange(subject: Subject) -> dict[str, Any]:
  """Returns the loss as circuit nodes take the full model's values.

  A random fraction of the kept nodes is set to what it is in the whole trained
  model, AbsTopK included, on the same prompt; the rest runs as in the circuit.
  `fvu` is the fraction of variance unexplained of the circuit's values at its
  nodes, per site and layer: E(full - circuit)^2 / Var(full), over the prompts'
  tokens, not their padding.
  """
  model, params, test = subject.model, subject.params, subject.test
  gates = {n: jnp.asarray(g) for n, g in subject.gates.items()}
  means = {n: jnp.asarray(m) for n, m in subject.own_means.items()}

  @jax.jit
  def run(params, test, gates, means, chosen):
    full: dict[str, jax.Array] = {}
    prune.answer_gap(model, params, test, taps.record(full))
    seen: dict[str, jax.Array] = {}

    def swap(site, layer, x):
      if site not in chosen:
        return x
      c = chosen[site][0 if layer is None else layer]
      return jnp.where(c > 0, full[sites.site_id(site, layer)], x)

    tap = taps.compose(taps.gate(gates, means), swap, taps.record(seen))
    gap = prune.answer_gap(model, params, test, tap)
    return gap, {
      name: (full[name], seen[name])
      for name in seen
      if name.partition(".")[2] in gates
    }

  rng = np.random.default_rng(subject.seed)
  draws = {name: rng.random(g.shape) for name, g in subject.gates.items()}
  curve = []
  for fraction in _FRACTIONS:
    chosen = {
      name: jnp.asarray((draws[name] < fraction) * g, jnp.float32)
      for name, g in subject.gates.items()
    }
    gap, acts = run(params, test, gates, means, chosen)
    scored = score(subject.calibrated(np.asarray(gap)), subject.seed)
    curve.append({"fraction": fraction, **scored})
    if fraction == 0.0:
      fvu = _unexplained(
        acts, subject.gates, np.asarray(test.positions), subject.seed
      )
  return {"curve": curve, "fvu": fvu}


def _unexplained(acts, gates, positions, seed) -> dict[str, Any]:
  found = {}
  for name, (full, seen) in acts.items():
    layer, _, site = name.partition(".")
    nodes = np.flatnonzero(gates[site][int(layer)])
    if not len(nodes):
      continue
    full, seen = (np.asarray(x)[..., nodes] for x in (full, seen))
    # Sites that are computed at the answer's position alone have one token.
    last = positions if full.shape[1] > 1 else np.zeros_like(positions)
    used = np.arange(full.shape[1])[None] <= last[:, None]
    center = full[used].mean(0)
    total = lambda x, w=used: (np.square(x).sum(-1) * w).sum(1)
    found[name] = ratio(total(full - seen), total(full - center), seed)
  return found


def partial_ablation(subject: Subject) -> dict[str, Any]:
  """Returns scores between the whole model and the circuit.

  `random`: a random fraction of the complement is ablated. `relaxed`: all of
  it, by a share (gates between 0 and 1). `adversarial`: one choice of its nodes
  for all test pairs, the worst of several shares of those whose ablation raises
  the loss to first order, by the gradient at the whole model and halfway to the
  circuit; a faithful circuit does not care. Logits are not rescaled.
  """
  gates = subject.gates
  rng = np.random.default_rng(subject.seed)
  draws = {name: rng.random(g.shape) for name, g in gates.items()}
  steps = {"random": [], "relaxed": []}
  for fraction in _FRACTIONS:
    part = {
      name: np.where(draws[name] < fraction, g, 1.0)
      for name, g in gates.items()
    }
    relaxed = {name: 1 - fraction * (1 - g) for name, g in gates.items()}
    for name, chosen in (("random", part), ("relaxed", relaxed)):
      scored = score(subject.gap(chosen), subject.seed)
      steps[name].append({"fraction": fraction, **scored})
  means = {n: jnp.asarray(m) for n, m in subject.own_means.items()}
  ones = {name: jnp.ones_like(g) for name, g in gates.items()}
  loss = lambda g, params, test, means: prune.gap_loss(
    prune.answer_gap(subject.model, params, test, taps.gate(g, means))
  )
  slope = jax.jit(jax.grad(loss))
  worst = None
  for start in (ones, {name: (1 + g) / 2 for name, g in gates.items()}):
    start = {name: jnp.asarray(g) for name, g in start.items()}
    found = slope(start, subject.params, subject.test, means)
    for chosen in _worst_first(gates, found):
      scored = score(subject.gap(chosen), subject.seed)
      if worst is None or scored["loss"]["value"] > worst["loss"]["value"]:
        num_ablated = int(sum(np.sum(c == 0) for c in chosen.values()))
        worst = {"num_ablated": num_ablated, **scored}
  return {**steps, "adversarial": worst}


def _worst_first(gates, slope) -> Iterator[dict[str, np.ndarray]]:
  """Yields gates that close growing shares of what hurts outside a circuit."""
  # Closing a gate changes the loss by minus its gradient, to first order.
  harm = {
    name: np.where((g == 0) & (np.asarray(slope[name]) < 0), -slope[name], 0.0)
    for name, g in gates.items()
  }
  ranked = np.sort(np.concatenate([np.ravel(h) for h in harm.values()]))[::-1]
  harmful = int(np.sum(ranked > 0))
  for share in _ADVERSARIAL_SHARES:
    if harmful:
      least = ranked[max(1, int(share * harmful)) - 1]
      yield {n: np.where(h >= least, 0.0, 1.0) for n, h in harm.items()}
    else:
      yield {name: np.ones_like(g) for name, g in gates.items()}


def frozen_norms(subject: Subject) -> dict[str, Any] | None:
  """Returns the circuit's score with every norm's scale held at the model's.

  Ablation changes norms, which then rescale what is left; a circuit that needs
  this works by another way. None for norms that are not RMS norms.
  """
  model, params, test = subject.model, subject.params, subject.test
  if model.config.norm != "rms" or model.config.concatenates_positions:
    return None
  gates = {n: jnp.asarray(g) for n, g in subject.gates.items()}
  means = {n: jnp.asarray(m) for n, m in subject.own_means.items()}

  @jax.jit
  def run(params, test, gates, means):
    full: dict[str, jax.Array] = {}
    prune.answer_gap(model, params, test, taps.record(full))
    tap = taps.compose(taps.freeze_norms(full), taps.gate(gates, means))
    return prune.answer_gap(model, params, test, tap)

  gap = np.asarray(run(params, test, gates, means))
  return score(subject.calibrated(gap), subject.seed)


def attention(subject: Subject) -> dict[str, dict[str, float]]:
  """Returns how much the kept heads look elsewhere, by "layer.head".

  The total variation distance between the head's pattern in the circuit and in
  the model, sink included, mean over queries of the test prompts: 0 is the
  same pattern, 1 disjoint ones.
  """
  config, circuit = subject.model.config, subject.circuit
  kept = np.zeros((config.n_layer, config.n_head), bool)
  for name in ("attn.q", "attn.k", "attn.v"):
    if name in circuit.node_mask:
      mask = circuit.node_mask[name]
      kept |= mask.reshape(config.n_layer, config.n_head, -1).any(-1)
  names = [
    sites.site_id(n, layer)
    for layer in range(config.n_layer)
    for n in ("attn.q", "attn.k")
  ]

  @jax.jit
  def patterns(params, test):
    runs = []
    for tap in (taps.identity, circuit.tap):
      acts: dict[str, jax.Array] = {}
      subject.model.residual(
        params,
        test.tokens,
        taps.compose(tap, taps.record(acts, names)),
      )
      runs.append(acts)
    sinks = params["layers"]["attn"].get("sink")
    split = lambda x: x.reshape(*x.shape[:-1], config.n_head, config.d_head)
    length = test.tokens.shape[1]
    # Values that name their own position make attention return its pattern.
    shape = (len(test.tokens), length, config.n_head, length)
    own = jnp.broadcast_to(jnp.eye(length)[:, None], shape)
    distance = []
    for layer in range(config.n_layer):
      sink = None if sinks is None else sinks[layer]
      p, q = (
        model_lib.attend(
          split(acts[sites.site_id("attn.q", layer)]),
          split(acts[sites.site_id("attn.k", layer)]),
          own,
          sink,
        )
        for acts in runs
      )
      # What a pattern lacks to one is the sink's.
      distance.append(
        (jnp.abs(p - q).sum(-1) + jnp.abs(p.sum(-1) - q.sum(-1))) / 2
      )
    return jnp.stack(distance)

  distance = np.asarray(
    patterns(subject.params, subject.test)
  )  # [layers, S, T, heads]
  index = np.arange(distance.shape[2])
  used = index[None] <= np.asarray(subject.test.positions)[:, None]
  mean_LxSxH = (distance * used[None, ..., None]).sum(2) / used.sum(1)[:, None]
  return {
    f"{layer}.{head}": estimate(
      mean_LxSxH[layer, :, head], _pairs(len(used)), subject.seed
    )
    for layer, head in zip(*np.nonzero(kept), strict=True)
  }


def importance(
  subject: Subject, fit_on: prune.Sequences
) -> dict[str, list[dict[str, Any]] | None]:
  """Returns the loss without each node and without each edge, exactly.

  A circuit of more nodes or edges than anyone would read one by one has None in
  their place: it is the nearest miss of a model that has not learned the task.

  Args:
    subject: the circuit in its model.
    fit_on: training pairs; each loss is measured there, calibrated anew.
  """
  circuit = subject.circuit
  if circuit.num_nodes > _MAX_NODES:
    return {"nodes": None, "edges": None}
  means = {n: jnp.asarray(m) for n, m in circuit.means.items()}
  judge = discretise.Judge(subject.model, subject.params, means, False, fit_on)
  names = prune.in_order(circuit.node_mask)
  shapes = {name: circuit.node_mask[name].shape for name in names}
  flat, losses = discretise.leave_one_out(judge, circuit.node_mask)
  described = [
    {"site": sites.site_id(name, row), "index": int(index)}
    for name, (rows, width) in shapes.items()
    for row in range(rows)
    for index in range(width)
  ]
  nodes = [
    {**described[i], "loss_without": float(loss)}
    for i, loss in zip(flat, losses, strict=True)
  ]
  if circuit.num_edges > _MAX_EDGES:
    return {"nodes": nodes, "edges": None}
  edge_losses = _losses_without_edges(judge, circuit)
  edges = [
    {
      "from": edge["from"],
      "to": edge["to"],
      "loss_without": float(loss),
    }
    for edge, loss in zip(circuit.edges, edge_losses, strict=True)
  ]
  return {"nodes": nodes, "edges": edges}


def _losses_without_edges(judge, circuit) -> np.ndarray:
  kinds = {kind.name: kind for kind in sites.EDGE_KINDS}
  nodes = discretise.jnp_mask(circuit.node_mask)
  shapes = {
    kind.matrix: circuit_lib.parameter(judge.params, kind.matrix).shape
    for kind in sites.EDGE_KINDS
  }
  losses = []
  chunk = 8
  for start in range(0, len(circuit.edges), chunk):
    gates = {p: np.ones((chunk, *s), np.float32) for p, s in shapes.items()}
    part = circuit.edges[start : start + chunk]
    for row, edge in enumerate(part):
      kind = kinds[edge["kind"]]
      width = shapes[kind.matrix][-1] // kind.num_blocks
      column = kind.block * width + edge["to"]["index"]
      layer = int(edge["from"]["site"].split(".")[0])
      gates[kind.matrix][row, layer, edge["from"]["index"], column] = 0
    found, _ = edge_masks.edge_losses(
      judge.model,
      False,
      judge.params,
      judge.means,
      nodes,
      gates,
      judge.sequences,
    )
    losses.append(np.asarray(found)[: len(part)])
  return np.concatenate(losses) if losses else np.zeros(0)
