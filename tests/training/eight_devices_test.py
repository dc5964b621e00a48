"""Eight devices: what they send each other, and a run that changes its mesh.

The rest of the suite has four, so this file measures in a process of its own.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
from absl.testing import absltest

from sparse_jax import config as config_lib
from sparse_jax.model import sharding, transformer
from sparse_jax.training import checkpoints, collectives, loop
from sparse_jax.training import plan as plan_lib

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 20
VALUES = {
  "data": {"context_length": 8, "vocab_size": 264},
  "model": {
    "n_layer": 1,
    "d_model": 16,
    "d_head": 4,
    "d_mlp": 32,
    "bigram": "none",
  },
  "sparsity": {
    "density": 0.3,
    "min_alive": 2,
    "activation_sites": ["mlp.post_act"],
  },
  "train": {"steps": STEPS, "batch_size": 16},
}
CONFIG = config_lib.resolve(config_lib.from_config_dict(VALUES), 264)


def compile_on(num_devices, model_parallel):
  devices = jax.devices()[:num_devices]
  mesh = sharding.make_mesh(model_parallel, devices)
  model = transformer.Model(CONFIG.model, CONFIG.sparsity)
  return mesh, loop.compile_step(
    CONFIG, loop.next_token_objective(CONFIG, model), mesh
  )


def train(compiled, mesh, state, first, last):
  """Returns the state after the step before `last`, and every step's loss."""
  losses = []
  for number in range(first, last):
    rows = np.random.default_rng(number).integers(0, 264, (16, 9), np.int32)
    state, metrics = compiled.step(state, sharding.global_batch(mesh, rows), ())
    losses.append(float(metrics["train_loss"]))
  return state, losses


def measure():
  """Returns what the tests below look at."""
  meshes = {name: compile_on(*name) for name in ((8, 1), (4, 2), (1, 1))}
  sent = collectives.of_program(meshes[8, 1][1].step)
  mesh, alone = meshes[1, 1]
  want, want_losses = train(alone, mesh, alone.init(), 0, STEPS)
  losses, state = [], None
  with tempfile.TemporaryDirectory() as directory:
    kept = checkpoints.TrainingCheckpoints(directory)
    stops = {(8, 1): 7, (4, 2): 14, (1, 1): STEPS}
    for name, stop in stops.items():
      mesh, compiled = meshes[name]
      start = len(losses)
      state = kept.restore(compiled.state, start) if start else compiled.init()
      state, more = train(compiled, mesh, state, start, stop)
      losses += more
      kept.save(stop, state)
    kept.close()
  zeros, want_zeros = (
    np.concatenate([np.ravel(x) == 0 for x in jax.tree.leaves(found.params)])
    for found in (state, want)
  )
  return {
    "collectives": [one._asdict() for one in sent],
    "of_params": jax.tree.map(lambda x: 4 * x.size, alone.state.params),
    "losses": [want_losses, losses],
    "zeros": int(want_zeros.sum()),
    "zeros_that_differ": int((zeros != want_zeros).sum()),
    "plan": plan_lib.dry_run(config_lib.from_config_dict(VALUES)).text,
  }


@functools.cache
def measured():
  flags = os.environ["XLA_FLAGS"].replace("count=4", "count=8")
  done = subprocess.run(
    [sys.executable, __file__],
    env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    check=True,
    timeout=600,
  )
  return json.loads(done.stdout.splitlines()[-1])


class EightDevicesTest(absltest.TestCase):
  def test_data_parallel_sends_each_gradient_once(self):
    # The least: every device must learn of every trained gradient. The logit
    # bias is not trained; a step's loss is the rest.
    sizes = measured()["of_params"]
    least = sum(jax.tree.leaves(sizes)) - sizes["logit_bias"]
    found = [collectives.Collective(**c) for c in measured()["collectives"]]
    self.assertFalse([one for one in found if one.is_in_search])
    totals = collectives.total(found)
    self.assertEqual(set(totals), {"all-reduce"})
    _, sent = totals["all-reduce"]
    self.assertBetween(sent, least, 1.1 * least)

  def test_a_run_moves_from_mesh_to_mesh(self):
    want, losses = measured()["losses"]
    self.assertLen(losses, STEPS)
    np.testing.assert_allclose(losses, want, atol=1e-5, rtol=0)
    self.assertGreater(measured()["zeros"], 1000)
    self.assertEqual(measured()["zeros_that_differ"], 0)

  def test_a_plan_says_what_eight_devices_take(self):
    self.assertIn("mesh data 8 x model 1", measured()["plan"])
    self.assertRegex(measured()["plan"], r"\| step \| all-reduce \| 1 \| \d+")


if __name__ == "__main__":
  print(json.dumps(measure()))
