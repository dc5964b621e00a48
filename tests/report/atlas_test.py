"""The atlas: a row a circuit, with what its evidence says."""

import pages
from absl.testing import absltest

from sparse_jax.report import atlas


class AtlasTest(absltest.TestCase):
  def test_a_row_says_what_holds_what_fails_and_what_is_lost(self):
    circuits = pages.nested("quotes")
    for circuit in circuits.values():
      circuit.metrics["faithfulness"] = pages.faithfulness_metrics()
    _, _, core, robust = atlas.table([circuits]).splitlines()
    # 0.99 of the full model less 0.4 under the worst adversary.
    self.assertEqual(
      core,
      "| `quotes` | 0.043, 100.0% | core | 8 | 5 | 0.121 | 98.4% | 0.59 | 7 of"
      " 8 | robust to what is outside it |",
    )
    self.assertStartsWith(robust, "|  |  | robust | 14 | ")

  def test_evidence_that_was_not_measured_is_a_dash(self):
    *_, row = atlas.table([pages.alone()]).splitlines()
    self.assertEndsWith(row, "| – | – | – |")


if __name__ == "__main__":
  absltest.main()
