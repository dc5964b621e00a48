"""Attribution graphs: effects that add up, in the fields that viewers read."""

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest
import small_circuits

from sparse_jax import explain, programs, sites
from sparse_jax.model import edges as edges_lib
from sparse_jax.model import hooks, transformer
from sparse_jax.programs import attribution

PROMPT = "x = ['alpha"

_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}
_OPTIONAL = {"type": ["number", "null"]}


def _object(required, **properties):
  return {
    "type": "object",
    "properties": properties,
    "required": required.split(),
  }


# What a graph must have for Neuronpedia, `apps/webapp/app/api/graph/
# graph-schema.json` in hijohnnylin/neuronpedia, and for circuit-tracer,
# `circuit_tracer/frontend/graph_models.py` in safety-research/circuit-tracer.
SCHEMA = _object(
  "metadata qParams nodes links",
  metadata=_object(
    "slug scan prompt_tokens prompt transcoder_list",
    slug=_TEXT,
    scan=_TEXT,
    prompt=_TEXT,
    prompt_tokens={"type": "array", "items": _TEXT},
    transcoder_list={"type": "array", "items": _TEXT},
    schema_version={"type": "integer"},
  ),
  qParams=_object(
    "pinnedIds supernodes linkType clickedId sg_pos",
    pinnedIds={"type": "array", "items": _TEXT},
    supernodes={"type": "array"},
    linkType=_TEXT,
    clickedId=_TEXT,
    sg_pos=_TEXT,
  ),
  nodes={
    "type": "array",
    "items": _object(
      "node_id feature layer ctx_idx feature_type jsNodeId clerp",
      node_id=_TEXT,
      feature={"type": "integer"},
      layer=_TEXT,
      ctx_idx={"type": "integer"},
      feature_type={
        "enum": [
          "cross layer transcoder",
          "mlp reconstruction error",
          "embedding",
          "logit",
        ]
      },
      jsNodeId=_TEXT,
      clerp=_TEXT,
      influence=_OPTIONAL,
      activation=_OPTIONAL,
      token_prob=_NUMBER,
      is_target_logit={"type": "boolean"},
    ),
  },
  links={
    "type": "array",
    "items": _object(
      "source target weight", source=_TEXT, target=_TEXT, weight=_NUMBER
    ),
  },
)


@pytest.fixture(scope="module")
def explained():
  """Returns (explanation, parameters, the model's probabilities)."""
  circuit, params = small_circuits.make(share=0.3, fraction=0.5)
  tokens = small_circuits.TOKENIZER.encode(PROMPT)
  _, probabilities = explain.top_tokens(circuit.model, params, tokens)
  explanation = explain.explain(
    circuit.model,
    params,
    circuit,
    small_circuits.TOKENIZER,
    tokens,
    probabilities,
  )
  return explanation, params, probabilities


@pytest.fixture(scope="module")
def found(explained):
  return attribution.effects(explained[0])


def numbers(found) -> dict[tuple[str, int, int], int]:
  """Returns the number of each (group, position, column)."""
  places = [
    (name, *at)
    for name, values in found.departures.items()
    for at in np.ndindex(values.shape)
  ]
  return {place: i for i, place in enumerate(places)}


def test_a_weights_effect_is_the_departure_times_the_weight(explained, found):
  explanation, _, _ = explained
  circuit, number = explanation.circuit, numbers(found)
  effect = {edge[:2]: edge[2] for edge in found.edges}
  kept = {}
  for node in circuit.nodes:
    kept.setdefault(node["site"], []).append(node["index"])
  checked = 0
  for edge in circuit.edges:
    if edge["kind"] not in ("query", "key", "value"):
      continue  # Others pass an activation or a head.
    source, target = (
      (edge[end]["site"], kept[edge[end]["site"]].index(edge[end]["index"]))
      for end in ("from", "to")
    )
    for at in range(len(found.values[target[0]])):
      got = effect.get(
        (number[source[0], at, source[1]], number[target[0], at, target[1]])
      )
      if got is not None:
        departure = found.departures[source[0]][at, source[1]]
        assert got == pytest.approx(departure * edge["weight"], rel=1e-4)
        checked += 1
  assert checked > 20


def test_effects_on_an_answer_add_up_to_what_nodes_and_tokens_give(
  explained, found
):
  explanation, params, _ = explained
  circuit, sequences = explanation.circuit, explanation.evaluator.sequences
  tokens = sequences.tokens[:, : int(sequences.positions[0]) + 1]
  model = circuit.model
  alone = lambda p, t: model.residual(p, t, circuit.hook(p, t))
  x_D = jax.jit(alone)(params, tokens)[0, -1]
  size = jnp.sqrt(jnp.mean(jnp.square(x_D)) + transformer.RMS_EPS)
  # What is left of the stream without tokens and nodes: all sites' means.
  rest_D = sum(
    circuit.means[name].sum(0)
    for name in ("attn.resid_delta", "mlp.resid_delta")
  )
  # So scaled that the norm divides it by the whole stream's size.
  norm = np.asarray(params["ln_f"]["scale"])
  bias = params["ln_f"].get("bias", 0.0)
  answers = [int(sequences.correct[0]), int(sequences.incorrect[0])]
  columns_2xD = np.asarray(edges_lib.parameter(params, sites.UNEMBED))[answers]
  rest_2 = columns_2xD @ (rest_D / size * norm + bias)
  rest_2 = rest_2 + params["logit_bias"][jnp.array(answers)]
  rest_2 += edges_lib.parameter(params, sites.BIGRAM)[
    tokens[0, -1], jnp.array(answers)
  ]
  given_2 = found.values["answers"][0] - circuit.logit_scale * rest_2
  first = len(numbers(found)) - 2
  for i in range(2):
    total = sum(e for _, target, e in found.edges if target == first + i)
    assert total == pytest.approx(float(given_2[i]), rel=1e-3, abs=1e-4)


def test_norms_held_at_their_own_scale_change_no_value(explained):
  explanation, params, _ = explained
  model, tokens = explanation.circuit.model, explanation.evaluator.sequences[0]
  held = lambda p, t: model.apply(p, t, hooks.freeze_norms_at(None))
  got, want = (jax.jit(f)(params, tokens) for f in (held, model.apply))
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_graph_has_the_published_fields_and_hangs_together(explained):
  explanation, _, probabilities = explained
  graph = programs.attribution_graph(
    explanation,
    small_circuits.TOKENIZER,
    PROMPT,
    probabilities,
    slug="quote",
    scan="small",
  )
  jsonschema.validate(graph, SCHEMA)
  nodes = {node["node_id"]: node for node in graph["nodes"]}
  assert len(nodes) == len(graph["nodes"])
  assert len({n["jsNodeId"] for n in graph["nodes"]}) == len(nodes)
  assert "".join(graph["metadata"]["prompt_tokens"]) == PROMPT
  left = {node["node_id"] for node in graph["nodes"]}
  for link in graph["links"]:
    source, target = nodes[link["source"]], nodes[link["target"]]
    # A head reads earlier positions, never later ones.
    assert source["ctx_idx"] <= target["ctx_idx"]
    assert link["weight"] and target["feature_type"] != "embedding"
    left.discard(link["source"])
  # All but answers, and tokens that say nothing, lead somewhere.
  kinds = {nodes[i]["feature_type"] for i in left}
  assert kinds <= {"logit", "embedding"}
  for node in graph["nodes"]:
    if node["feature_type"] == "cross layer transcoder":
      layer, number, at = map(int, node["node_id"].split("_"))
      assert (str(layer), number, at) == (
        *(node["layer"], node["feature"], node["ctx_idx"]),
      )
      assert 0 < node["influence"] <= 1 + 1e-9
