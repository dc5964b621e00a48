"""Writes docs/tasks.md: every task's rule, an example and its sizes.

  python -m experiments.task_docs --model=runs/quickstart/model

The same tokenizer gives the same page.
"""

from absl import flags

from experiments import cli
from sparse_jax import checkpoint, tasks
from sparse_jax.tasks import docs
from sparse_jax.utils import files

_MODEL = flags.DEFINE_string(
  "model", None, "A model directory; its tokenizer states the tasks."
)
_OUT = flags.DEFINE_string("out", "docs/tasks.md", "Markdown file to write.")
cli.require("model")


def main(overrides: list[str]) -> None:
  """Writes the page."""
  del overrides  # The command has no config.
  tokenizer = checkpoint.load_tokenizer(_MODEL.value)
  make_task = lambda name: tasks.make_task(name, tokenizer)
  page = docs.page(tasks.TASK_NAMES, make_task, tokenizer, progress=True)
  files.write_bytes(_OUT.value, page.encode())
  print(_OUT.value)


if __name__ == "__main__":
  cli.run(main, __doc__)
