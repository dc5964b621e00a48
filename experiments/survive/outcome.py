"""What a scenario found."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Outcome:
  """One line of the table.

  Attributes:
    name: what was done to the run.
    tried: how often.
    survived: how often it came through.
    detail: what came of it, in words.
  """

  name: str
  tried: int
  survived: int
  detail: str

  @property
  def is_good(self) -> bool:
    return self.tried == self.survived
