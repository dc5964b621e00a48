"""The HTTP service of `experiments.serve`: explain, watch, verify, in bounds.

Every request gets one clear status: 200 or 202, 404 for what does not exist,
405 for another method, 408 for a body that does not arrive, 413 for one that is
too large, 422 for bad input, 503 where too many wait, 504 where time runs out.
What is no success has a body `{"error": LINE}`. Computations run one after
another on a thread of their own; verifications, which take minutes, in a
process that can be stopped.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import fastapi
import pydantic
import starlette.exceptions
from fastapi import exceptions, responses

from sparse_jax import checkpoint, explain, reference, watch
from sparse_jax import circuit as circuit_lib
from sparse_jax.utils import errors

_MOST_PROMPTS = 64  # That one request has watched.


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a request may take.

  Attributes:
    body_bytes: of its body.
    body_seconds: for the body to arrive.
    waiting: requests that wait for a computation, at most.
    seconds: for an answer, waiting included.
    verifications: that wait or run, at most.
    verify_seconds: for one verification to run.
    kept: finished verifications that can still be asked for.
  """

  body_bytes: int = 1 << 16
  body_seconds: float = 10.0
  waiting: int = 256
  seconds: float = 60.0
  verifications: int = 4
  verify_seconds: float = 3600.0
  kept: int = 64


class Refused(Exception):
  """A request that is answered with a status and a line."""

  def __init__(self, status: int, line: str):
    super().__init__(line)
    self.status = status


class Problem(pydantic.BaseModel):
  """Why a request was not answered."""

  error: str


class ExplainRequest(pydantic.BaseModel):
  """The text that is gone on with."""

  model_config = pydantic.ConfigDict(extra="forbid")
  prompt: str = pydantic.Field(min_length=1, examples=["print('hello world"])


class Explained(pydantic.BaseModel):
  """Which circuit decides the next token, and how; differences in nats."""

  prompt_tokens: list[str]
  next_tokens: list[tuple[str, float]]
  circuits: list[dict[str, Any]]
  nodes_of: str
  nodes: list[dict[str, Any]]


class WatchRequest(pydantic.BaseModel):
  """The texts that are watched; of long ones the last tokens are read."""

  model_config = pydantic.ConfigDict(extra="forbid")
  prompts: list[str] = pydantic.Field(
    min_length=1, max_length=_MOST_PROMPTS, examples=[["print('hello world"]]
  )


class Watched(pydantic.BaseModel):
  """What `Monitor` says of each prompt, in their order (docs/watch.md)."""

  records: list[dict[str, Any]]


class VerifyRequest(pydantic.BaseModel):
  """The circuit that is measured again in the served model."""

  model_config = pydantic.ConfigDict(extra="forbid")
  circuit: str = pydantic.Field(examples=["single_double_quote"])


class Verification(pydantic.BaseModel):
  """A verification: waiting, running, or how it ended.

  `holds`: all that is stored reproduces, or every claim that held before holds.
  `failed`: it could not be measured, or took too long; `lines` say why.
  """

  id: int
  circuit: str
  status: Literal["waiting", "running", "holds", "lost", "failed"] = "waiting"
  lines: list[str] = []


class Worker:
  """Runs computations one after another on a thread of its own."""

  def __init__(self, most: int):
    self._most, self._waiting = most, 0
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "compute")

  async def run(self, work: Callable[[], Any], seconds: float) -> Any:
    """Returns what `work` does; raises Refused if it has to wait too long.

    What has not begun by then never does; what has is finished and dropped.
    """
    if self._waiting >= self._most:
      raise Refused(503, f"{self._waiting} requests are waiting; try later")
    loop = asyncio.get_running_loop()
    self._waiting += 1
    future = self._pool.submit(work)

    def leave(future):
      del future
      with contextlib.suppress(RuntimeError):  # The service has ended.
        loop.call_soon_threadsafe(self._leave)

    future.add_done_callback(leave)
    try:
      return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
    except TimeoutError:
      raise Refused(504, f"no answer within {seconds:g} s") from None

  def _leave(self) -> None:
    self._waiting -= 1

  def close(self) -> None:
    """Drops what has not begun."""
    self._pool.shutdown(wait=False, cancel_futures=True)


class Verifier:
  """Runs `experiments.verify` on circuits, one at a time."""

  def __init__(
    self, model: str, circuits: Mapping[str, pathlib.Path], limits: Limits
  ):
    self._model, self._circuits, self._limits = model, circuits, limits
    self._one = asyncio.Semaphore(1)
    self._tasks: set[asyncio.Task] = set()
    self._ids = itertools.count(1)
    self.all: dict[int, Verification] = {}

  def start(self, name: str) -> Verification:
    """Returns a new verification; raises Refused if there are too many."""
    if len(self._tasks) >= self._limits.verifications:
      raise Refused(503, f"{len(self._tasks)} verifications run; try later")
    finished = len(self.all) - len(self._tasks)
    if finished >= self._limits.kept:
      ended = (i for i, v in self.all.items() if v.status not in _UNFINISHED)
      del self.all[next(ended)]
    job = Verification(id=next(self._ids), circuit=name)
    self.all[job.id] = job
    task = asyncio.create_task(self._run(job))
    self._tasks.add(task)
    task.add_done_callback(self._tasks.discard)
    return job

  async def _run(self, job: Verification) -> None:
    async with self._one:
      job.status = "running"
      process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "experiments.verify"),
        f"--circuit={self._circuits[job.circuit].absolute()}",
        f"--model={self._model}",
        *("--nonatural", "--nocontrols", "--nostore"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
      )
      try:
        seconds = self._limits.verify_seconds
        out, err = await asyncio.wait_for(process.communicate(), seconds)
      except TimeoutError:
        job.status, job.lines = "failed", [f"not done within {seconds:g} s"]
        return
      finally:
        with contextlib.suppress(ProcessLookupError):
          process.kill()
        await process.wait()
      ends = {0: "holds", 1: "lost"}
      job.status = ends.get(process.returncode, "failed")
      job.lines = out.decode().splitlines()
      if job.status == "failed":
        job.lines = err.decode().splitlines()[-1:]

  async def close(self) -> None:
    """Stops what runs."""
    for task in self._tasks:
      task.cancel()
    await asyncio.gather(*self._tasks, return_exceptions=True)


_UNFINISHED = ("waiting", "running")


class BoundedBody:
  """Reads a request's body before anything else does, up to a size and time."""

  def __init__(self, app, limits: Limits):
    self._app, self._limits = app, limits

  async def __call__(self, scope, receive, send) -> None:
    """Passes the request on, or answers it."""
    if scope["type"] != "http":
      return await self._app(scope, receive, send)
    limits, body, more = self._limits, b"", True
    refused = None
    try:
      async with asyncio.timeout(limits.body_seconds):
        while more and refused is None:
          message = await receive()
          if message["type"] == "http.disconnect":
            return None
          body += message.get("body", b"")
          more = message.get("more_body", False)
          if len(body) > limits.body_bytes:
            line = f"the body is over {limits.body_bytes} bytes"
            refused = Refused(413, line)
    except TimeoutError:
      line = f"the body did not arrive within {limits.body_seconds:g} s"
      refused = Refused(408, line)
    if refused is not None:
      return await _answer(refused)(scope, receive, send)
    whole = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay():
      return next(whole, None) or await receive()

    return await self._app(scope, replay, send)


def _answer(refused: Refused) -> responses.JSONResponse:
  # What is left of a body would be read as the next request.
  closes = {"connection": "close"} if refused.status in (408, 413) else None
  return responses.JSONResponse(
    {"error": str(refused)}, refused.status, headers=closes
  )


def make_app(
  model_directory: str,
  circuits: Sequence[pathlib.Path],
  limits: Limits | None = None,
) -> fastapi.FastAPI:
  """Returns the service of a model and at least one of its circuits.

  Raises InputError if one is not the model's.
  """
  limits = limits or Limits()
  model, params = checkpoint.load_model(model_directory)
  tokenizer = checkpoint.load_tokenizer(model_directory)
  # The monitor checks that they are the model's.
  monitor = watch.Monitor(
    model, params, reference.load_named(circuits), tokenizer
  )
  directories = {directory.name: directory for directory in circuits}
  loaded = {
    name: circuit_lib.Circuit.load(directory)
    for name, directory in directories.items()
  }
  worker = Worker(limits.waiting)
  most_tokens = model.config.context_length

  @contextlib.asynccontextmanager
  async def lifespan(app):
    app.state.verifier = Verifier(model_directory, directories, limits)
    yield
    await app.state.verifier.close()
    worker.close()

  app = fastapi.FastAPI(
    title="sparse_jax",
    description="Circuits of one model: which decides a prompt, what they say"
    " of it, and whether the model still has them.",
    lifespan=lifespan,
    docs_url=None,  # These pages load scripts from elsewhere.
    redoc_url=None,
    responses={
      s: {"model": Problem} for s in (404, 405, 408, 413, 422, 500, 503, 504)
    },
  )
  app.add_middleware(BoundedBody, limits=limits)

  @app.exception_handler(Refused)
  async def refuse(request, error):
    del request
    return _answer(error)

  @app.exception_handler(errors.InputError)
  async def refuse_input(request, error):
    del request
    return _answer(Refused(422, str(error)))

  @app.exception_handler(starlette.exceptions.HTTPException)
  async def refuse_path(request, error):
    line = f"{request.method} {request.url.path}: {error.detail}"
    return _answer(Refused(error.status_code, line))

  @app.exception_handler(exceptions.RequestValidationError)
  async def refuse_form(request, error):
    del request
    lines = (
      f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()
    )
    return _answer(Refused(422, "; ".join(lines)))

  @app.get("/circuits")
  async def list_circuits() -> dict[str, dict[str, int]]:
    """The served circuits, with their numbers of nodes and edges."""
    return {
      name: {"num_nodes": c.num_nodes, "num_edges": c.num_edges}
      for name, c in loaded.items()
    }

  @app.post("/explain")
  async def explain_prompt(request: ExplainRequest) -> Explained:
    """Which circuit decides the prompt's next token, and how."""
    count = len(tokenizer.encode(request.prompt))
    if most_tokens and count > most_tokens:
      line = f"prompt has {count} tokens; need at most {most_tokens}"
      raise Refused(413, line)

    def work():
      found = explain.explain_prompt(
        model, params, list(loaded.values()), tokenizer, request.prompt
      )
      of = found.influences, found.chosen, found.parts
      return Explained(
        prompt_tokens=list(found.tokens),
        next_tokens=list(found.next_tokens),
        **explain.to_dict(*of),
      )

    return await worker.run(work, limits.seconds)

  @app.post("/watch")
  async def watch_prompts(request: WatchRequest) -> Watched:
    """Which circuits apply to prompts, what each says, and alarms."""
    work = lambda: Watched(records=monitor(request.prompts))
    return await worker.run(work, limits.seconds)

  @app.post("/verify", status_code=202)
  async def start_verification(request: VerifyRequest) -> Verification:
    """Begins to measure a circuit again; ask for its `id`."""
    if request.circuit not in loaded:
      raise Refused(
        404, str(errors.unknown_name("circuit", request.circuit[:80], loaded))
      )
    return app.state.verifier.start(request.circuit)

  @app.get("/verify/{number}")
  async def see_verification(number: int) -> Verification:
    """How a verification stands."""
    job = app.state.verifier.all.get(number)
    if job is None:
      raise Refused(404, f"there is no verification {number}")
    return job

  return app
