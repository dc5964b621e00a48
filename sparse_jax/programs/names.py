"""Names of residual channels: what writes them, and what reads them."""

import numpy as np

from sparse_jax.model import program as program_lib

_OUTPUT = "answer"
# By channel, (sublayer, name) of the open nodes that write or read it.
_Found = dict[int, list[tuple[int, str]]]


class Names:
  """The residual channels of a program that holds all of them.

  `head0_3_to_mlp1_r90` is channel 90 as the MLP of layer 1 reads it: so far
  head 3 of layer 0 has written to it. `heads0` are several heads of layer 0,
  `many` are heads and MLPs; where no open node has written, `token` has.
  """

  def __init__(self, program: program_lib.Program):
    self._program = program
    self._writers: _Found = {}
    self._readers: _Found = {}
    for i, sublayer in enumerate(program.sublayers):
      if isinstance(sublayer.body, program_lib.Attention):
        self._add_attention(i, sublayer.body)
      elif sublayer.body is not None:
        self._read(i, sublayer.body.input, sublayer.body.up, f"mlp{i // 2}")
        self._write(i, sublayer.body.down, slice(None), f"mlp{i // 2}")

  def _add_attention(self, i: int, body: program_lib.Attention) -> None:
    row, d_head = 0, self._program.config.d_head
    for head in body.heads:
      name = f"head{i // 2}_{head.index}"
      for m in (body.query, body.key, body.value):
        self._read(
          i, body.input, m, name, m.site.channels // d_head == head.index
        )
      rows = slice(row, row + len(head.v_at))
      self._write(i, body.write, rows, name)
      row = rows.stop

  def _read(self, i, source, m: program_lib.Map, name, is_own=True) -> None:
    weight_SxN = m.weight_SxT[:, m.site.is_open & is_own]
    for channel in source.site.opened[np.any(weight_SxN != 0, -1)]:
      _note(self._readers, channel, i, name)

  def _write(self, i, m: program_lib.Map, rows: slice, name: str) -> None:
    weight_SxN = m.weight_SxT[rows][:, m.site.is_open]
    for channel in m.site.opened[np.any(weight_SxN != 0, 0)]:
      _note(self._writers, channel, i, name)

  @property
  def read_of_token(self) -> list[int]:
    """The channels that are read where the token alone has written."""
    return [
      channel
      for channel, found in sorted(self._readers.items())
      if channel < self._program.config.d_model
      and any("token_to" in self.at(channel, i) for i, _ in found)
    ]

  @property
  def written(self) -> list[int]:
    """The residual channels that a node writes, ascending."""
    return sorted(self._writers)

  def at(self, channel: int, sublayer: int | None) -> str:
    """Returns a channel's name where a sublayer reads it; None: the answer."""
    d_model = self._program.config.d_model
    if channel >= d_model:
      return f"position_r{channel}"
    writers, readers = self._writers, self._readers
    if sublayer is None:
      before, now = writers.get(channel, []), [(0, _OUTPUT)]
    else:
      # A parallel MLP reads what the attention beside it reads.
      is_beside = self._program.config.parallel and sublayer % 2
      first = sublayer - is_beside
      before = [w for w in writers.get(channel, []) if w[0] < first]
      now = [r for r in readers.get(channel, []) if r[0] == sublayer]
    return f"{_short(before, 'token')}_to_{_short(now, 'none')}_r{channel}"


def _note(table: _Found, channel: int, sublayer: int, name: str) -> None:
  found = table.setdefault(int(channel), [])
  if (sublayer, name) not in found:
    found.append((sublayer, name))


def _short(found: list[tuple[int, str]], none: str) -> str:
  if len(found) < 2:
    return found[0][1] if found else none
  layers = {sublayer for sublayer, _ in found}
  return f"heads{min(layers) // 2}" if len(layers) == 1 else "many"
