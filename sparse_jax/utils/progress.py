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


def byte_bar(description: str, size: int, show: bool = True) -> tqdm.tqdm:
  """Returns a bar over `size` bytes that appears if the work takes a while."""
  return tqdm.tqdm(
    desc=description,
    total=size,
    unit="B",
    unit_scale=True,
    delay=1,
    leave=False,
    disable=not show,
  )
