"""Circuits to draw, hostile strings, and a reader of the pages they give."""

import dataclasses
import html.parser
import itertools
import math

import numpy as np
from hypothesis import strategies as st

from sparse_jax import circuit as circuit_lib
from sparse_jax import config as config_lib
from sparse_jax import sites
from sparse_jax.report import activations

HOSTILE = (
  "</script><script>window.pwned = 1</script>",
  '"><img src=x onerror="window.pwned = 1">',
  "' onmouseover='window.pwned = 1",
  "</style><svg onload=window.pwned=1>",
  "<!-- ",
  "]]>",
  "&lt;b&gt;",
  "javascript:window.pwned=1",
  "\u2028\u2029\u202eabc\u2066\x00\x1b\x7f\ufeff",
  "\ud800",
  "\ufffd",
  "\u0301",
  "\r\n\t  ",
  "",
)
HOSTILE_TEXT = st.lists(
  st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(), max_size=5)),
  max_size=3,
).map("".join)


def node(site, index):
  return {"site": site, "index": index}


def edge(source, target, weight):
  ends = tuple(sites.parse_site_id(site, 9)[0] for site, _ in (source, target))
  kinds = {(kind.source, kind.target): kind.name for kind in sites.EDGE_KINDS}
  return {
    "kind": kinds[ends],
    "from": node(*source),
    "to": node(*target),
    "weight": weight,
  }


def small(task="single_double_quote", **fields):
  """Returns a circuit of 8 nodes, 5 edges and one residual wire.

  Fields are those of `Circuit` and `ModelConfig`; others go to its details.
  """
  a, q = ("0.attn.act_in", 3), ("0.attn.q", 17)
  v, w = ("0.attn.v", 18), ("0.attn.resid_delta", 5)
  r, h = ("0.mlp.act_in", 5), ("0.mlp.post_act", 200)
  o = ("0.mlp.resid_delta", 9)
  fields = {
    "nodes": [node(*n) for n in (a, q, v, w, r, h, o, ("final_resid", 5))],
    "edges": [
      edge(a, q, 0.5),
      edge(a, v, -1.25),
      edge(v, w, 2.0),
      edge(r, h, 1e-5),
      edge(h, o, 0.125),
    ],
    "metrics": {
      "num_nodes": 8,
      "num_edges": 5,
      "test_loss": 0.121,
      "test_accuracy": 0.984,
      "full_model_test_loss": 0.043,
      "full_model_test_accuracy": 1.0,
      "without_circuit_test_loss": 2.91,
      "without_circuit_test_accuracy": 0.48,
      "logit_scale": 1.37,
    },
    "ablation": "mean_pretrain",
    "model_fingerprint": "",
    "target_loss": 0.15,
  } | fields
  names = {field.name for field in dataclasses.fields(config_lib.ModelConfig)}
  config = config_lib.ModelConfig(
    **{"n_layer": 2, "d_model": 64, "d_mlp": 256, "d_head": 16}
    | {"vocab_size": 9}
    | {name: fields.pop(name) for name in names & set(fields)}
  )
  node_mask = {
    name: np.zeros(config.site_shape(name), bool) for name in sites.NODE_SITES
  }
  for kept in fields.pop("nodes"):
    name, layer = sites.parse_site_id(kept["site"], config.n_layer)
    node_mask[name][layer or 0, kept["index"]] = True
  names = {field.name for field in dataclasses.fields(circuit_lib.Circuit)}
  return circuit_lib.Circuit(
    task=task,
    model_config=config,
    sparsity=config_lib.SparsityConfig(),
    logit_scale=1.37,
    node_mask=node_mask,
    means={k: np.zeros(m.shape, np.float32) for k, m in node_mask.items()},
    **{name: fields.pop(name) for name in names & set(fields)},
    details=fields,
  )


def alone(*args, **fields):
  """Returns what `load_all` does where there is no robust circuit."""
  return {"core": small(*args, **fields)}


def nested(task="single_double_quote", num_support=6, **fields):
  """Returns what `load_all` does: `small` and `num_support` nodes around it.

  Fields are those of the core. Support joins the core and other support.
  """
  shape = {"d_model": 1024, "d_mlp": 1024}
  core = small(task, **shape, **fields)
  hidden = [("0.mlp.post_act", 300 + i) for i in range((num_support + 1) // 2)]
  writes = [("0.mlp.resid_delta", 20 + i) for i in range(num_support // 2)]
  new = [edge(("0.mlp.act_in", 5), h, math.sin(1 + h[1])) for h in hidden]
  new += [edge(hidden[i], w, math.cos(i)) for i, w in enumerate(writes)]
  sizes = {
    "num_nodes": core.num_nodes + num_support,
    "num_edges": core.num_edges + len(new),
  }
  robust = small(
    task,
    **shape,
    nodes=core.nodes + [node(*n) for n in hidden + writes],
    edges=core.edges + new,
    metrics=core.metrics | sizes | {"test_loss": 0.0456},
  )
  return {"core": core, "robust": robust}


def example(text="x"):
  return {
    "prompt_tokens": ["a", text, "\n", " b"],
    "answer": text,
    "counter_prompt_tokens": ["a", "y", "\n", " b"],
    "counter_answer": "z",
    "circuit_prob": 0.9,
    "full_prob": 0.99,
  }


def dense(num_nodes, num_edges):
  """One layer's MLP, joined at random-looking places."""
  reads = [("0.mlp.act_in", i) for i in range(num_nodes // 2)]
  hidden = [("0.mlp.post_act", i) for i in range(num_nodes - num_nodes // 2)]
  pairs = itertools.islice(itertools.product(reads, hidden), num_edges)
  return small(
    d_model=1024,
    d_mlp=1024,
    nodes=[node(*n) for n in reads + hidden],
    edges=[edge(a, b, math.sin(1 + i)) for i, (a, b) in enumerate(pairs)],
    metrics={"num_nodes": num_nodes, "num_edges": num_edges},
  )


def evidence(circuits, texts=("a", "b", " c", "d\n", "'", '"')):
  """Returns what `activations.collect` could have found: two pairs of prompts.

  Every node holds 2, -1, 0 and 1 on a first side and 0 on a second one, and
  peaks in the middle of the one piece of held-out code.
  """
  values = np.array([2, -1, 0, 1, 0, 0, 0, 0], np.float32)
  tokens, n = [0, 1, 2, 3], len(texts)
  rising = [("full model", np.array([0.0, 1, 2, 3]))]
  circuit = ("circuit", np.array([0.0, 0, 1, 2.5]))
  pair = activations.Prompt(
    [
      activations.Side(tokens, (n - 2, n - 1), [*rising, circuit]),
      activations.Side(tokens[::-1], (n - 1, n - 2), [*rising, circuit]),
    ]
  )
  own = activations.Prompt([pair.sides[0]], is_own=True)
  peak = np.array([0, 0.5, 2, 0.25], np.float32)
  node_values = activations.NodeValues(
    scale=2.0,
    prompts=np.concatenate([values, values, values[:4]]),
    most=[activations.Snippet(0, 0, 2, peak)],
    least=[],
    histogram=(0.0, 2.0, [0] * 11 + [2], [2] + [0] * 11),
  )
  found = []
  for each in circuits:
    outer = list(each.values())[-1]
    keys = [f"{x['site']}:{x['index']}" for x in outer.nodes]
    row = [1.0, 0.5, 0.5, 0, 0.25, 0.75, 0, 0, 0.5, 0.25]  # Four by four.
    found.append(
      activations.Activations(
        dict.fromkeys(keys, node_values),
        [pair, pair, own],
        {"0.1": np.array(row * 5)},
      )
    )
  window = (HOSTILE[0] + ".py", np.arange(len(texts)))
  return activations.Evidence(found, [window], dict(enumerate(texts)))


def faithfulness_metrics():
  """As circuit.json holds them: all criteria hold but one."""
  estimate = lambda v: {"value": v, "low": v - 0.1, "high": v + 0.1}
  score = lambda loss, accuracy: {
    "loss": estimate(loss),
    "accuracy": estimate(accuracy),
  }
  control = lambda nodes, meets: {
    "num_nodes": nodes,
    "meets_target": meets,
    "test_accuracy": 0.9,
    "curve": [
      {"num_nodes": 1, "validation_loss": 0.7},
      {"num_nodes": nodes, "validation_loss": 0.1},
    ],
  }
  return {
    "ablation": "zero",
    "target_loss": 0.15,
    "sufficiency_and_necessity": {
      "full_model": score(0.05, 0.99),
      "zero": {
        "circuit": score(0.1, 0.97),
        "without_circuit": score(0.9, 0.5),
        "without_random_circuit": score(0.3, 0.8),
        "without_random_others": score(0.06, 0.98),
      },
    },
    "agreement": {
      "test": {
        "num_prompts": 8,
        "kl": estimate(0.1),
        "agreement": estimate(0.95),
      }
    },
    "interchange": {"curve": [score(0.1, 0.97), score(0.12, 0.97)]},
    "partial_ablation": {
      "adversarial": {"by": "sign_ascent_ones", **score(2.0, 0.4)},
      "random": [
        {"fraction": f, **score(0.05 + f / 20, 0.99)} for f in (0.0, 0.5, 1.0)
      ],
      "random_circuit": [
        {"fraction": f, **score(0.05 + f / 2, 0.7)} for f in (0.0, 0.5, 1.0)
      ],
      "by_steps": {
        "circuit": [{"steps": n, "loss": 0.1 + n / 80} for n in (0, 40, 320)],
        "random_circuit": [
          {"steps": n, "loss": 0.3 + n / 40} for n in (0, 40, 320)
        ],
      },
      "by_size": [
        {"num_nodes": n, "loss": 9 / n, "accuracy_lost": 3 / n}
        for n in (10, 100, 1000)
      ],
      "budget": {"steps": 40, "rate": 0.1, "starts": ["ones", "zeros"]},
    },
    "curve": {
      "points": [
        {"share": s, "num_nodes": round(1e3 * s), "faithfulness": s**0.25}
        for s in (0.0, 0.01, 0.1, 1.0)
      ],
      "cpr": 0.75,
      "cmd": 0.25,
    },
    "controls": {
      "same": control(10, True),
      "nonsense": control(40, True),
      "reinitialised": control(90, False) | {"curve": []},
      "backup": control(20, True) | {"curve": []},
      "jaccard_over_seeds": 0.4,
      "extra_nodes": {"nonsense": 30, "reinitialised": None},
    },
    "importance": {
      "nodes": [
        {"site": "0.attn.v", "index": 3, "loss_without": estimate(0.4)},
        {"site": "0.attn.v", "index": 1, "loss_without": estimate(0.9)},
      ],
      "edges": [
        {
          "from": {"site": "0.attn.v", "index": 3},
          "to": {"site": "0.attn.resid_delta", "index": 1},
          "loss_without": estimate(0.8),
        }
      ],
    },
  }


class Page(html.parser.HTMLParser):
  """What a browser would find: elements with attributes, and text."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.open, self.text = [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs), []))
    if tag not in ("meta", "link", "br", "input"):
      self.open.append(self.elements[-1])

  def handle_endtag(self, tag):
    assert self.open[-1][0] == tag, (tag, self.open[-1])
    self.open.pop()

  def handle_data(self, data):
    self.text.append(data)
    for element in self.open:
      element[2].append(data)

  def handle_comment(self, data):
    raise AssertionError(f"comment {data!r}")

  def find(self, tag, class_=None):
    return [
      (attributes, "".join(text))
      for name, attributes, text in self.elements
      if name == tag
      and (class_ is None or class_ in (attributes.get("class") or "").split())
    ]

  def rows(self, class_):
    """Returns the number of body rows of the tables of a class."""
    inside, count = False, 0
    for tag, attributes, _ in self.elements:
      if tag == "table":
        inside = class_ in (attributes.get("class") or "").split()
      count += inside and tag == "th" and attributes.get("scope") == "row"
    return count
