"""What the two PyTorch baselines share: shapes, parameters, layers, the clock.

Each script runs in an interpreter of its own that has PyTorch, takes its shape
as flags and prints one JSON line. Axes as in sparse_jax/model/transformer.py.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

D_HEAD = 16
SITES = {  # AbsTopK acts here; widths in units of d_model.
  "attn.act_in": 1,
  "attn.q": 1,
  "attn.k": 1,
  "attn.v": 1,
  "attn.resid_delta": 1,
  "mlp.act_in": 1,
  "mlp.post_act": 4,
  "mlp.resid_delta": 1,
}


def parse_flags(**defaults):
  """Returns the flags: the shape of a step, how many, and where."""
  shape = {"d_model": 128, "n_layer": 2, "batch_size": 32, "length": 128}
  shape |= {"vocab_size": 2048, "density": 0.1, "activation_fraction": 0.25}
  parser = argparse.ArgumentParser()
  for name, value in {**shape, "steps": 7, "device": "cpu", **defaults}.items():
    parser.add_argument(f"--{name}", type=type(value), default=value)
  parser.add_argument("--compile", action="store_true")
  return parser.parse_args()


class Decoder:
  """The decoder's parameters and its forward pass up to the last norm.

  A frozen model's norms have no gain.
  """

  def __init__(self, args, frozen=False):
    self.device = torch.device(args.device)
    self.fraction = args.activation_fraction
    self.width = d = args.d_model
    gain = lambda: None if frozen else torch.ones(d, device=self.device)
    self.embed = self.normal(args.vocab_size, d)
    self.unembed = self.normal(args.vocab_size, d)
    self.bigram = self.normal(args.vocab_size, args.vocab_size)
    self.gain = gain()
    self.layers = [
      {
        "qkv": self.normal(3 * d, d),
        "qkv_bias": self.normal(3 * d),
        "out": self.normal(d, d),
        "out_bias": self.normal(d),
        "up": self.normal(4 * d, d),
        "up_bias": self.normal(4 * d),
        "down": self.normal(d, 4 * d),
        "down_bias": self.normal(d),
        "gain_1": gain(),
        "gain_2": gain(),
        "sink": self.normal(d // D_HEAD),
      }
      for _ in range(args.n_layer)
    ]
    length = args.length
    self.causal = torch.ones(
      length, length, dtype=torch.bool, device=self.device
    ).tril()

  def normal(self, *shape):
    return 0.02 * torch.randn(*shape, device=self.device)

  def norm(self, x, gain):
    return F.rms_norm(x, (self.width,), gain)

  def logits(self, x, tokens):
    """Returns the logits that follow residuals at these tokens."""
    h = self.norm(x, self.gain)
    return F.linear(h, self.unembed) + self.bigram[tokens]

  def parameters(self):
    """Returns every parameter, each made to collect a gradient."""
    single = [self.embed, self.unembed, self.bigram, self.gain]
    stacked = [p for layer in self.layers for p in layer.values()]
    return [p.requires_grad_() for p in single + stacked]

  def residual(self, tokens, hook=lambda name, layer, x: x):
    """Returns the residual stream, `[batch, length, d_model]`."""

    def site(name, i, x):
      if self.fraction < 1:
        k = int(self.fraction * x.shape[-1])
        index = torch.topk(x.abs(), k, dim=-1, sorted=False)[1]
        x = torch.zeros_like(x).scatter_(-1, index, x.gather(-1, index))
      return hook(name, i, x)

    x = self.embed[tokens]
    for i, p in enumerate(self.layers):
      h = site("attn.act_in", i, self.norm(x, p["gain_1"]))
      qkv = F.linear(h, p["qkv"], p["qkv_bias"]).split(self.width, dim=-1)
      q, k, v = (
        site(f"attn.{name}", i, a) for name, a in zip("qkv", qkv, strict=True)
      )
      y = self._attend(q, k, v, p["sink"])
      y = F.linear(y, p["out"], p["out_bias"])
      x = x + site("attn.resid_delta", i, y)
      h = site("mlp.act_in", i, self.norm(x, p["gain_2"]))
      h = F.gelu(F.linear(h, p["up"], p["up_bias"]))
      h = site("mlp.post_act", i, h)
      h = F.linear(h, p["down"], p["down_bias"])
      x = x + site("mlp.resid_delta", i, h)
    return x

  def _attend(self, q, k, v, sink):
    """Causal attention; the sink is a key of zeros before the first."""
    batch, length, width = q.shape
    heads = lambda x: x.view(batch, length, -1, D_HEAD).transpose(1, 2)
    q, k, v = map(heads, (q, k, v))
    first = torch.zeros_like(k[:, :, :1])
    visible = F.pad(self.causal, (1, 0), value=True)
    bias = torch.zeros(
      1, q.shape[1], *visible.shape, device=self.device, dtype=q.dtype
    ).masked_fill(~visible, torch.finfo(q.dtype).min)
    bias[..., 0] += sink.view(1, -1, 1).to(q.dtype)
    y = F.scaled_dot_product_attention(
      q, torch.cat([first, k], 2), torch.cat([first, v], 2), attn_mask=bias
    )
    return y.transpose(1, 2).reshape(batch, length, width)


def report(step, steps, args):
  """Times `step()` after two warm-up calls; prints the median as JSON."""
  times = []
  for i in range(steps + 2):
    start = time.perf_counter()
    step()
    if i >= 2:
      times.append(time.perf_counter() - start)
  seconds = statistics.median(times)
  print(json.dumps({"step_seconds": seconds, **vars(args)}))
