"""The service under load on loopback: each request gets its own, clear end."""

import concurrent.futures
import contextlib
import http.client
import json
import threading
import time

import pytest
import verified_circuit

import sparse_jax as sj
from experiments import service

uvicorn = pytest.importorskip("uvicorn")

LIMITS = service.Limits(
  body_bytes=2000,
  body_seconds=2.0,
  waiting=128,
  seconds=900.0,
  verify_seconds=0.2,
  kept=2,
)
PROMPTS = [f"x = ['{word}" for word in ("alpha", "beta", "gamma", "delta")]


@contextlib.contextmanager
def served(app):
  """Yields the port at which an app listens, on a thread."""
  config = uvicorn.Config(app, port=0, log_level="warning", backlog=256)
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run)
  thread.start()
  try:
    while not server.started:
      assert thread.is_alive()
      time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
  finally:
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("serve")
  verified_circuit.write(root)
  return root


def make_app(root, limits):
  circuits = [root / "circuits" / verified_circuit.TASK]
  return service.make_app(str(root / "model"), circuits, limits)


@pytest.fixture(scope="module")
def port(root):
  with served(make_app(root, LIMITS)) as port:
    yield port


def ask(port, method, path, body=None):
  """Returns (status, JSON) of one request on a connection of its own."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=900)
  with contextlib.closing(connection):
    headers = {"content-type": "application/json"}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def explain(port, prompt):
  return ask(port, "POST", "/explain", json.dumps({"prompt": prompt}))


def test_a_hundred_clients_at_once_each_get_their_own_answer(root, port):
  bad = [
    ("/explain", b"{not json", 422, "JSON"),
    ("/explain", b"\xff\xfe", 422, ""),
    ("/explain", b'{"prompt": 3}', 422, "body.prompt"),
    ("/explain", b'{"prompt": ""}', 422, "at least 1 character"),
    ("/explain", b'{"prompt": "x", "other": 1}', 422, "body.other"),
    ("/explain", b'{"prompt": "\\ud800"}', 422, ""),
    ("/explain", json.dumps({"prompt": "x " * 200}), 413, "need at most 64"),
    ("/explain", json.dumps({"prompt": "x" * 3000}), 413, "over 2000 bytes"),
    ("/watch", b'{"prompts": []}', 422, "at least 1 item"),
    ("/watch", json.dumps({"prompts": ["x"] * 65}), 422, "at most 64 items"),
    ("/watch", b'{"prompts": ["x", ""]}', 422, "at least one token"),
    ("/watch", b'{"prompts": ["x", "\\ud800"]}', 422, ""),
    ("/nowhere", b"{}", 404, "POST /nowhere"),
  ]
  model, params = sj.load_model(root / "model")
  tokenizer = sj.load_tokenizer(root / "model")
  circuits = list(sj.load_circuits(root / "circuits").values())
  want = {
    prompt: sj.explain_prompt(model, params, circuits, tokenizer, prompt)
    for prompt in PROMPTS
  }
  monitor = sj.Monitor(
    model, params, sj.load_circuits(root / "circuits"), tokenizer
  )
  watched = {prompt: monitor([prompt, "y = 1"]) for prompt in PROMPTS}
  gate = threading.Barrier(100)

  def client(number):
    gate.wait()
    if number % 4 == 0:
      return explain(port, PROMPTS[number // 4 % 4])
    if number % 8 == 1:
      prompts = [PROMPTS[number // 8 % 4], "y = 1"]
      return ask(port, "POST", "/watch", json.dumps({"prompts": prompts}))
    return ask(port, "POST", *bad[number % len(bad)][:2])

  with concurrent.futures.ThreadPoolExecutor(100) as pool:
    answers = list(pool.map(client, range(100)))
  for number, (status, answer) in enumerate(answers):
    if number % 4 == 0:
      found = want[PROMPTS[number // 4 % 4]]
      assert status == 200, answer
      assert answer["prompt_tokens"] == list(found.tokens)
      difference = answer["circuits"][0]["circuit_difference"]
      assert difference == pytest.approx(found.chosen.circuit_difference)
      assert len(answer["nodes"]) == len(found.parts)
    elif number % 8 == 1:
      assert status == 200, answer
      assert answer == {"records": watched[PROMPTS[number // 8 % 4]]}
    else:
      _, _, want_status, line = bad[number % len(bad)]
      assert status == want_status, answer
      assert list(answer) == ["error"] and line in answer["error"]
  assert ask(port, "GET", "/circuits")[0] == 200


def test_a_body_that_does_not_come_is_given_up(port):
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  with contextlib.closing(connection):
    connection.putrequest("POST", "/explain")
    connection.putheader("content-length", "100")
    connection.endheaders()
    connection.send(b"{")
    assert connection.getresponse().status == 408


def test_what_waits_too_long_or_in_too_long_a_row_is_told(root):
  app = make_app(root, service.Limits(seconds=0.0, waiting=1))
  with served(app) as port:
    assert explain(port, PROMPTS[0])[0] == 504
  worker = service.Worker(most=0)
  with pytest.raises(service.Refused) as refused:
    service.asyncio.run(worker.run(int, 1.0))
  assert refused.value.status == 503


def test_a_verification_is_started_seen_and_stopped_in_time(port):
  name = json.dumps({"circuit": verified_circuit.TASK})
  status, job = ask(port, "POST", "/verify", name)
  assert (status, job["status"]) == (202, "waiting")
  while job["status"] in ("waiting", "running"):
    time.sleep(0.05)
    status, job = ask(port, "GET", f"/verify/{job['id']}")
    assert status == 200
  # No process has measured anything after a fifth of a second.
  assert job["status"] == "failed" and job["lines"] == ["not done within 0.2 s"]
  assert ask(port, "GET", "/verify/99")[0] == 404
  status, answer = ask(port, "POST", "/verify", '{"circuit": "quote"}')
  assert status == 404 and verified_circuit.TASK in answer["error"]


def test_the_schema_names_every_path_and_status(port):
  status, schema = ask(port, "GET", "/openapi.json")
  assert status == 200
  assert set(schema["paths"]) == {
    *("/circuits", "/explain", "/watch", "/verify", "/verify/{number}")
  }
  for path in ("/explain", "/watch"):
    statuses = set(schema["paths"][path]["post"]["responses"])
    assert statuses >= {"200", "413", "422", "503", "504"}
  status, answer = ask(port, "GET", "/watch")
  assert status == 405 and "GET /watch" in answer["error"]
