"""One convolution of K stacked replicas with what surrounds it, forward and backward: which way is the fastest.

    python tests/benchmarks/conv.py

A 3x3 convolution, a batch normalisation, ReLU and pooling by two, on images of 16x16, B = 128, K = 5, in one thread.
The ways: `qdtune`, all replicas as channels of one image, last in memory; `vmap` over PyTorch's convolution, which
becomes one of K groups; `unfold` and a product of matrices; `shifts`, nine shifted images times a weight, summed
(depthwise only); `stacked`, nine shifted images side by side and a product of matrices; `stacked_last`, the same with
the channels as the last axis. All of them are played from a tape. Beside them the products of matrices alone
(`products`) and K plain PyTorch networks. Milliseconds of a step, the best of n rounds that are interleaved.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import common
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from qdtune.training.device import set_up_process
from qdtune.training.fast_forms import FastForms
from qdtune.training.tape import record

SIDE, KERNEL, BATCH, REPLICAS = 16, 3, 128, 5
Way = Callable[[Tensor, Tensor, int], Tensor]  # of x (B, C, H, W), w (O, C/groups, 3, 3), groups


def plain(x: Tensor, w: Tensor, groups: int) -> Tensor:
    return F.conv2d(x, w, padding=1, groups=groups)


def unfold(x: Tensor, w: Tensor, groups: int) -> Tensor:
    b, _, h, width = x.shape
    columns = F.unfold(x, KERNEL, padding=1).view(b, groups, -1, h * width)  # (B, G, C/G*9, H*W)
    return (w.view(groups, len(w) // groups, -1) @ columns).reshape(b, len(w), h, width)


def _shifted(x: Tensor) -> list[Tensor]:
    h, width = x.shape[-2:]
    padded = F.pad(x, (1, 1, 1, 1))
    return [padded[..., i : i + h, j : j + width] for i in range(KERNEL) for j in range(KERNEL)]


def shifts(x: Tensor, w: Tensor, groups: int) -> Tensor:
    return sum(part * w[:, 0, k // KERNEL, k % KERNEL, None, None] for k, part in enumerate(_shifted(x)))


def stacked(x: Tensor, w: Tensor, groups: int) -> Tensor:
    b, _, h, width = x.shape
    columns = torch.stack(_shifted(x), 2).view(b, groups, -1, h * width)
    return (w.view(groups, len(w) // groups, -1) @ columns).reshape(b, len(w), h, width)


def stacked_last(x: Tensor, w: Tensor, groups: int) -> Tensor:
    """One tall product for each replica, (B*H*W, C*9) by (C*9, O)."""
    b, _, h, width = x.shape
    columns = torch.stack(_shifted(x), 2).view(b, -1, h, width).permute(0, 2, 3, 1).reshape(b * h * width, -1)
    return (columns @ w.flatten(1).T).view(b, h, width, -1).permute(0, 3, 1, 2)


FULL: dict[str, Way] = {"vmap": plain, "unfold": unfold, "stacked": stacked, "stacked_last": stacked_last}
DEPTHWISE: dict[str, Way] = {"vmap": plain, "unfold": unfold, "stacked": stacked, "shifts": shifts}


def surrounded(way: Way, x: Tensor, w: Tensor, groups: int) -> Tensor:
    """The loss of a network of one block."""
    scale = w[:, 0, 0, 0]
    fixed = scale.detach()
    normal = F.batch_norm(way(x, w, groups), 0 * fixed, 0 * fixed + 1, scale, None, True)
    return F.max_pool2d(normal.relu(), 2).square().mean()


def taped(way: Way, x: Tensor, w: Tensor, groups: int, fast: bool) -> Callable[[], None]:
    """The gradients of K replicas by x and w."""

    def run(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        with FastForms() if fast else nullcontext():
            return vmap(grad(lambda x, w: surrounded(way, x, w, groups), argnums=(0, 1)))(x, w)

    play = record(run, [x, w])
    return lambda: play(x, w)


def plain_eager(x: Tensor, w: Tensor, groups: int) -> Callable[[], None]:
    leaves = [(a.clone().requires_grad_(), b.clone().requires_grad_()) for a, b in zip(x, w, strict=True)]

    def run() -> None:
        for a, b in leaves:
            a.grad = b.grad = None
            surrounded(plain, a, b, groups).backward()

    return run


def products(x: Tensor, w: Tensor, groups: int) -> Callable[[], None]:
    """The three products of matrices, as one batch of K (and groups)."""
    k, b, _, h, width = x.shape
    inner = w[0, 0].numel()
    columns = torch.randn(k * groups, b * h * width, inner)
    weights = torch.randn(k * groups, inner, w.shape[1] // groups)
    out = torch.randn(k * groups, b * h * width, w.shape[1] // groups)
    y, dc, dw = torch.empty_like(out), torch.empty_like(columns), torch.empty_like(weights)

    def run() -> None:
        torch.bmm(columns, weights, out=y)
        torch.bmm(out, weights.transpose(1, 2), out=dc)
        torch.bmm(columns.transpose(1, 2), out, out=dw)

    return run


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0], 9)
    args = parser.parse_args()
    set_up_process(1)
    about = common.machine()
    rows, found = [], {}
    for channels in (8, 16):
        for kind, ways in (("full", FULL), ("depthwise", DEPTHWISE)):
            groups = channels if kind == "depthwise" else 1
            x = torch.randn(REPLICAS, BATCH, channels, SIDE, SIDE)
            w = torch.randn(REPLICAS, channels, channels // groups, KERNEL, KERNEL)
            calls = {"qdtune": taped(plain, x, w, groups, fast=True)}
            calls |= {name: taped(way, x, w, groups, fast=False) for name, way in ways.items()}
            calls |= {"plain PyTorch": plain_eager(x, w, groups), "products": products(x, w, groups)}
            best = dict.fromkeys(calls, float("inf"))
            for _ in range(args.repeats):
                for name, call in calls.items():
                    began = time.process_time()
                    call()
                    best[name] = min(best[name], time.process_time() - began)
            found[f"{kind} {channels}"] = best
            rows += [[kind, channels, name, f"{1000 * seconds:.1f}"] for name, seconds in best.items()]
            print(rows[-len(best) :], flush=True)
    common.publish("conv", args.out, {"seconds": found}, common.table(["kind", "channels", "way", "ms"], rows), about)


if __name__ == "__main__":
    main()
