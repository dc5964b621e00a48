"""A monitor of a small random model, for tests of watching."""

import dataclasses
import functools

import numpy as np
import small_circuits

import sparse_jax as sj
from sparse_jax.model import fingerprint as fingerprint_lib
from sparse_jax.watch import thresholds

TOKENIZER = small_circuits.TOKENIZER


@functools.cache
def watched(**usual):
  """Returns (monitor, circuit, params); `'` or `"` always comes next."""
  circuit, params = small_circuits.make(share=0.3)
  answers = [TOKENIZER.single_token(quote) for quote in small_circuits.QUOTES]
  params["logit_bias"] = np.array(params["logit_bias"])
  params["logit_bias"][answers] += 30
  fingerprint = fingerprint_lib.fingerprint(circuit.model, params)
  circuit = dataclasses.replace(
    circuit,
    model_fingerprint=fingerprint,
    details=circuit.details | {"answer_shift": 0.25},
  )
  if usual:
    circuit = with_usual(circuit, answers, **usual)
  monitor = sj.Monitor(circuit.model, params, {"quotes": circuit}, TOKENIZER)
  return monitor, circuit, params


def with_usual(circuit, answers, **limits):
  num_values = 2 * circuit.num_nodes
  usual = thresholds.Thresholds(
    circuit=thresholds.identity(circuit),
    answers=np.array([answers]),
    rate=0.05,
    num_prompts=9,
    low=np.full(num_values, -1.0),
    high=np.full(num_values, 1.0),
    limits={"disagreement": 0.0, "outside": 0.0, "range": 0.0, **limits},
  )
  return thresholds.attach({"quotes": circuit}, {"quotes": usual.to_dict()})[
    "quotes"
  ]
