"""One step of node-mask training in eager PyTorch, to time beside ours.

Trains one mask at a time over a frozen model: gates at the eight sites with
mean ablation, the sigmoid's gradient for the step function's, the loss on two
tokens at the last position, AdamW, masks clamped to [-1, 1].

  torch/bin/python torch_prune_step.py --d_model=128 --batch_size=32 --length=24
"""

import shared
import torch
import torch.nn.functional as F

# A batch is of prompts: a pair is two.
args = shared.parse_flags(length=24, steps=40)
decoder = shared.Decoder(args, frozen=True)
d, device = args.d_model, decoder.device
masks = [
  {
    name: (0.1 + 0.01 * torch.randn(width * d, device=device)).requires_grad_()
    for name, width in shared.SITES.items()
  }
  for _ in range(args.n_layer)
]
means = [
  {name: decoder.normal(width * d) for name, width in shared.SITES.items()}
  for _ in range(args.n_layer)
]
params = [mask for layer in masks for mask in layer.values()]
optimizer = torch.optim.AdamW(
  params, lr=3e-3, betas=(0.9, 0.95), weight_decay=1e-3
)


class Step(torch.autograd.Function):
  """1 where a mask is not negative; its gradient is the sigmoid's."""

  @staticmethod
  def forward(ctx, mask):
    ctx.save_for_backward(mask)
    return (mask >= 0).float()

  @staticmethod
  def backward(ctx, grad):
    s = torch.sigmoid(ctx.saved_tensors[0])
    return grad * s * (1 - s)


def gate(name, layer, x):
  """Puts the mean in place of closed nodes."""
  g = Step.apply(masks[layer][name])
  return x * g + means[layer][name] * (1 - g)


tokens = lambda *shape: torch.randint(0, args.vocab_size, shape, device=device)
prompts = tokens(args.batch_size, args.length)
correct, incorrect = tokens(args.batch_size), tokens(args.batch_size)
rows = torch.arange(args.batch_size, device=device)


def step():
  """Gradient, AdamW, clamp; returns once the loss is there."""
  optimizer.zero_grad()
  last = decoder.residual(prompts, gate)[:, -1]
  logits = decoder.logits(last, prompts[:, -1])
  loss = F.softplus(logits[rows, incorrect] - logits[rows, correct]).mean()
  loss = loss + 1e-3 * sum(Step.apply(mask).sum() for mask in params)
  loss.backward()
  optimizer.step()
  with torch.no_grad():
    for mask in params:
      mask.clamp_(-1, 1)
  return loss.item()


shared.report(step, args.steps, args)
