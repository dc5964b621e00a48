"""Arrays from files of others: nothing runs, nothing grows without end."""

import zipfile

import numpy as np

from sparse_jax.utils import errors, files

# Where no caller knows better: the means of 48 layers of 8,192 channels.
MOST_BYTES = 1 << 28


def read_npz(
  path: files.PathLike, what: str, most_bytes: int = MOST_BYTES
) -> dict[str, np.ndarray]:
  """Returns the arrays of an .npz file, by name.

  A few kilobytes of zip can hold gigabytes of zeros: what would unpack to more
  than `most_bytes` is not unpacked. Raises InputError for that, and for a file
  that is missing, damaged or holds anything but plain arrays; `what` says what
  was expected.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      size = sum(info.file_size for info in archive.infolist())
    if size > most_bytes:
      raise errors.InputError(
        f"{path} unpacks to {size} bytes; need at most {most_bytes}: {what}"
      )
    with np.load(path, allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
    for name, array in arrays.items():
      if not isinstance(array, np.ndarray):  # NumPy gives such a file as bytes.
        raise TypeError(f"{name!r} is no array")
    return arrays
  except errors.InputError:
    raise
  except Exception as e:  # Zip, zlib and NumPy raise many kinds.
    raise errors.InputError(
      f"{path}: {type(e).__name__} {e}; need {what}"
    ) from e
