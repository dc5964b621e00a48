"""Names of residual channels: what writes them, and what reads them."""

import numpy as np

from sparse_jax.model import program as program_lib

_MOST = 2  # More writers or readers than these are only counted.


class Names:
  """The residual channels of a program that holds all of them.

  `head0_3_to_mlp1_r90` is channel 90, which head 3 of layer 0 writes and the
  MLP of layer 1 reads. Channels that no open node writes hold the token.
  """

  def __init__(self, program: program_lib.Program):
    self._program = program
    self.writers: dict[int, list[str]] = {}
    self.readers: dict[int, list[str]] = {}
    for i, sublayer in enumerate(program.sublayers):
      self._add(i // 2, sublayer.body)
    difference_xR = np.ptp(program.output.weight_RxC, axis=-1)
    for channel in np.flatnonzero(difference_xR):
      if int(channel) in self.writers:
        self._note(self.readers, channel, "answer")

  def _add(self, layer: int, body) -> None:
    if isinstance(body, program_lib.Attention):
      self._add_attention(layer, body)
    elif body is not None:
      self._read(body.input, body.up, f"mlp{layer}")
      self._write(body.down, slice(None), f"mlp{layer}")

  def _add_attention(self, layer: int, body: program_lib.Attention) -> None:
    row = 0
    d_head = self._program.config.d_head
    for m in (body.query, body.key, body.value):
      for head in body.heads:
        is_own = m.site.channels // d_head == head.index
        self._read(body.input, m, f"head{layer}_{head.index}", is_own)
    for head in body.heads:
      rows = slice(row, row + len(head.v_at))
      self._write(body.write, rows, f"head{layer}_{head.index}")
      row = rows.stop

  def _read(self, source, m: program_lib.Map, name: str, is_own=True) -> None:
    weight_SxN = m.weight_SxT[:, m.site.is_open & is_own]
    for channel in source.site.opened[np.any(weight_SxN != 0, -1)]:
      self._note(self.readers, channel, name)

  def _write(self, m: program_lib.Map, rows: slice, name: str) -> None:
    weight_SxN = m.weight_SxT[rows][:, m.site.is_open]
    for channel in m.site.opened[np.any(weight_SxN != 0, 0)]:
      self._note(self.writers, channel, name)

  def _note(self, table, channel, name: str) -> None:
    found = table.setdefault(int(channel), [])
    if name not in found:
      found.append(name)

  def __getitem__(self, channel: int) -> str:
    """Returns the name of a channel, an identifier."""
    d_model = self._program.config.d_model
    if channel >= d_model:
      return f"position_p{channel - d_model}"
    writers = _short(self.writers.get(channel, ["token"]), "writers")
    readers = _short(self.readers.get(channel, ["none"]), "readers")
    return f"{writers}_to_{readers}_r{channel}"


def _short(names: list[str], what: str) -> str:
  if len(names) > _MOST:
    return f"{what}{len(names)}"
  return "_".join(names)
