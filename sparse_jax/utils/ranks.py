"""Statistics of ranks."""

import numpy as np
import scipy.stats


def auroc(score_R: np.ndarray, is_positive_R: np.ndarray) -> float | None:
  """Returns the chance that a positive scores higher, ties counted half.

  None where all are positive or none is (Hanley and McNeil 1982).
  """
  count = int(is_positive_R.sum())
  num_pairs = count * (len(is_positive_R) - count)
  if not num_pairs:
    return None
  least = count * (count + 1) / 2
  rank_R = scipy.stats.rankdata(score_R)
  return float((rank_R[is_positive_R].sum() - least) / num_pairs)
