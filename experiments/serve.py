"""Serves explain, watch and verify over HTTP, with an OpenAPI schema.

  python -m experiments.serve --port=8000
  curl localhost:8000/explain -H 'content-type: application/json' \\
    -d '{"prompt": "print(\\u0027hello world"}'

Without --model and --circuits, the shipped model and its circuits. The schema
is at /openapi.json. Needs pip install 'sparse_jax[serve]'.
"""

from absl import flags

from experiments import cli
from sparse_jax import reference
from sparse_jax.utils import errors

_MODEL = flags.DEFINE_string("model", reference.NAME, "Model directory.")
_CIRCUITS = flags.DEFINE_list(
  "circuits", [reference.NAME], "Circuit directories, or directories of them."
)
_HOST = flags.DEFINE_string(
  "host", "127.0.0.1", "The address to listen at; nobody is authenticated."
)
_PORT = flags.DEFINE_integer(
  "port", 8000, "The port to listen at.", lower_bound=0, upper_bound=65535
)
_SECONDS = flags.DEFINE_float(
  "seconds", 60.0, "For an answer, waiting included.", lower_bound=0.1
)
_WAITING = flags.DEFINE_integer(
  "waiting", 256, "Requests that may wait.", lower_bound=1
)


def main(overrides: list[str]) -> None:
  """Serves until it is interrupted."""
  del overrides
  try:
    import uvicorn  # noqa: PLC0415 (an extra)

    from experiments import service  # noqa: PLC0415 (likewise)
  except ImportError as e:
    raise errors.InputError(
      f"{e.name} is not installed; need pip install 'sparse_jax[serve]'"
    ) from None
  app = service.make_app(
    _MODEL.value,
    reference.find_circuits(_CIRCUITS.value),
    service.Limits(seconds=_SECONDS.value, waiting=_WAITING.value),
  )
  uvicorn.run(app, host=_HOST.value, port=_PORT.value, log_level="info")


if __name__ == "__main__":
  cli.run(main, __doc__)
