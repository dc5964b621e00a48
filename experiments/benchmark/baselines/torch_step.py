"""One training step of the recipe in eager PyTorch, to time beside ours.

The same work: AbsTopK at the eight sites, attention sink, bigram table,
RMS-normalised gradients, Adam (eps 0.1), the largest magnitudes of each matrix
with four protected weights per unit, decoupled decay.

  python -m venv torch && torch/bin/pip install torch numpy
  torch/bin/python torch_step.py --d_model=128 --n_layer=2 --batch_size=32
"""

import contextlib

import shared
import torch
import torch.nn.functional as F

args = shared.parse_flags()
decoder = shared.Decoder(args)
params = decoder.parameters()
# Matrix, and the axis along which a unit's weights lie.
matrices = [(decoder.embed, None), (decoder.unembed, None)] + [
  (layer[name], axis)
  for layer in decoder.layers
  for name, axis in (("qkv", 1), ("out", 0), ("up", 1), ("down", 0))
]
optimizer = torch.optim.Adam(
  params, lr=1e-3, betas=(0.9, 0.95), eps=0.1, fused=True
)
autocast = contextlib.nullcontext()
if decoder.device.type == "cuda":
  autocast = torch.autocast("cuda", torch.bfloat16)


def loss_fn(tokens):
  """Next-token cross-entropy."""
  logits = decoder.logits(decoder.residual(tokens), tokens)
  return F.cross_entropy(
    logits[:, :-1].reshape(-1, args.vocab_size).float(),
    tokens[:, 1:].reshape(-1),
  )


def keep_largest(p, unit_axis):
  """Zeroes all but the largest weights; four of each unit are protected."""
  score = p.abs()
  if unit_axis is not None:
    protected = torch.topk(score, 4, dim=unit_axis)[1]
    score.scatter_(unit_axis, protected, 1e10)
  k = int(args.density * p.numel())
  kept = torch.topk(score.flatten(), k, sorted=False)[1]
  mask = torch.zeros(p.numel(), dtype=torch.bool, device=p.device)
  mask[kept] = True
  p.mul_(mask.view_as(p))


forward = torch.compile(loss_fn) if args.compile else loss_fn
tokens = torch.randint(
  0, args.vocab_size, (args.batch_size, args.length), device=decoder.device
)


def step():
  """Gradient, Adam, projection, decay; returns once the loss is there."""
  optimizer.zero_grad()
  with autocast:
    loss = forward(tokens)
  loss.backward()
  with torch.no_grad():
    total = sum((p.grad**2).sum() for p in params)
    rms = torch.sqrt(total / sum(p.numel() for p in params))
    for p in params:
      p.grad /= rms + 1e-5
    optimizer.step()
    if args.density < 1:
      for p, unit_axis in matrices:
        keep_largest(p, unit_axis)
    for p, _ in matrices:
      p.mul_(1 - 0.1 * 1e-3)
  return loss.item()


shared.report(step, args.steps, args)
