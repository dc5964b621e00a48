"""Progress bars."""

import tqdm


def progress_bar(total: int, initial: int, description: str) -> tqdm.tqdm:
  """Returns a progress bar that is quiet where nobody watches a terminal."""
  bar = tqdm.tqdm(
    total=total,
    initial=initial,
    desc=description,
    dynamic_ncols=True,
    mininterval=0.2,
  )
  if not bar.fp.isatty():
    bar.mininterval = 15.0
  return bar
