"""The notebook's way, for comparison: DataLoader, torchvision transforms, one network, a Python loop over batches.

Layers and loop of the notebook this project grew out of: min-max step size (mean |w| at one bit), a straight-through
estimator as a `torch.autograd.Function`, SGD, the loss read by `.item()` in every step.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from qdtune.spec.sizes import factor_dims


class RoundSTE(torch.autograd.Function):
    """Rounds to few levels; the gradient passes where nothing was clipped."""

    @staticmethod
    def forward(ctx, x, step, bits):
        top = 1 if bits == 1 else 2 ** (bits - 1) - 1
        ctx.save_for_backward(x, step * top)
        return step * torch.sgn(x) if bits == 1 else torch.clamp(torch.round(x / step), -top, top) * step

    @staticmethod
    def backward(ctx, upstream):
        x, edge = ctx.saved_tensors
        return upstream * (x.abs() <= edge), None, None


class QuantLinear(nn.Linear):
    """A linear layer whose weights are quantised once `bits` is set."""

    bits: int | None = None
    absmean = False  # the step size of qdtune's grid.yaml instead of the notebook's

    def forward(self, x: Tensor) -> Tensor:
        if self.bits is None:
            return F.linear(x, self.weight, self.bias)
        w = self.weight
        top = 1 if self.bits == 1 else 2 ** (self.bits - 1) - 1
        by_mean = self.absmean or self.bits == 1
        step = w.abs().mean() / math.sqrt(top) if by_mean else (w.max() - w.min()) / (2 * top)
        return F.linear(x, RoundSTE.apply(w, step.clamp_min(1e-8), self.bits), self.bias)


def chain(inputs: int, outputs: int, depth: int, activation: str) -> nn.Sequential:
    """One layer as `depth` factors, only the last one with a bias."""
    dims = factor_dims(inputs, outputs, depth)
    layers: list[nn.Module] = []
    for k in range(depth):
        layers.append(QuantLinear(dims[k], dims[k + 1], bias=k == depth - 1))
        if activation == "relu" and k < depth - 1:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def network(depth: int, activation: str = "identity") -> nn.Sequential:
    """784-24-10, factorised."""
    return nn.Sequential(nn.Flatten(), chain(784, 24, depth, activation), nn.ReLU(), chain(24, 10, depth, activation))


def set_bits(model: nn.Module, bits: int | None) -> None:
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.bits = bits


def loaders(root: Path, batch_size: int = 64) -> tuple[DataLoader, DataLoader]:
    """MNIST through DataLoaders, for training and for the test."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    sets = (datasets.MNIST(str(root), train=train, transform=transform) for train in (True, False))
    train, test = sets
    return DataLoader(train, batch_size=batch_size, shuffle=True), DataLoader(test, batch_size=batch_size)


def epoch(model: nn.Module, loader: DataLoader, lr: float, batches: int | None = None) -> float:
    """Trains one epoch, or so many batches of it; the mean loss."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=lr)
    total, n = 0.0, 0
    for images, labels in loader:
        loss = F.cross_entropy(model(images), labels)
        total += loss.item()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        n += 1
        if n == batches:
            break
    return total / n


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader) -> float:
    """The share of right answers, 0..1."""
    model.eval()
    hits = sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
    return hits / len(loader.dataset)  # type: ignore[arg-type]


def train(root: Path, depth: int, bits: int, activation: str, seed: int, warmup: int, qat: int) -> dict[str, float]:
    """The whole of one configuration and seed: its accuracies, and seconds per epoch of each phase."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    batches, test = loaders(root)
    model = network(depth, activation)
    seconds = []
    for phase, (epochs, lr) in enumerate(((warmup, 0.1), (qat, 0.01))):
        set_bits(model, bits if phase else None)
        began = time.process_time()
        for _ in range(epochs):
            epoch(model, batches, lr)
        seconds.append((time.process_time() - began) / max(1, epochs))
    return {"test_accuracy": accuracy(model, test), "warmup_s": seconds[0], "qat_s": seconds[1]}
