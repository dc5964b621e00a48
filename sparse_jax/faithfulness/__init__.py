"""Whether a circuit is what the model computes: measures and controls."""

from sparse_jax.faithfulness.criteria import (
  THRESHOLDS,
  Criterion,
  Evidence,
  check_criteria,
  evidence,
  summary,
  verdict,
)
from sparse_jax.faithfulness.measure import (
  FaithfulnessOptions,
  measure_all,
  measure_faithfulness,
)
from sparse_jax.faithfulness.reproduce import (
  check_circuit,
  left_out,
  reproduce,
  reproduce_metrics,
)
from sparse_jax.faithfulness.verification import Verification, verify

__all__ = [
  "THRESHOLDS",
  "Criterion",
  "Evidence",
  "FaithfulnessOptions",
  "Verification",
  "check_circuit",
  "check_criteria",
  "evidence",
  "left_out",
  "measure_all",
  "measure_faithfulness",
  "reproduce",
  "reproduce_metrics",
  "summary",
  "verdict",
  "verify",
]
