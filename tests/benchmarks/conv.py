"""One 3x3 convolution of K stacked replicas, forward and backward, compiled, in one thread: which way is the fastest.

    python tests/benchmarks/conv.py

Images of 16x16, B = 128, K = 5. The ways: `vmap` over PyTorch's convolution, which becomes one of K groups; `unfold`
and a product of matrices; `shifts`, nine shifted images times a weight, summed (depthwise only); `stacked`, nine
shifted images side by side and a product of matrices; `stacked_last`, the same with the channels as the last axis.
Beside them the products of matrices alone (`floor`) and K plain PyTorch convolutions, uncompiled. Milliseconds of a
step, the best of n rounds that are interleaved.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import common
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from qdtune.training import compiled
from qdtune.training.step_compiler import build_library

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


def compile_way(way: Way, x: Tensor, w: Tensor, groups: int) -> Callable[[], None]:
    """The gradients by x and w of a loss, written into the tensors given."""

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return way(x.sin(), w, groups).square().mean()  # a factor around each side, as layers have

    dx, dw = torch.zeros_like(x), torch.zeros_like(w)

    def run(x: Tensor, w: Tensor, dx: Tensor, dw: Tensor) -> tuple[()]:
        of_x, of_w = vmap(grad(loss, argnums=(0, 1)))(x, w)
        dx.copy_(of_x)
        dw.copy_(of_w)
        return ()

    tensors = [x, w, dx, dw]
    library = compiled.load_code(build_library(run, tensors))
    return lambda: library.run(tensors)


def plain_eager(x: Tensor, w: Tensor, groups: int) -> Callable[[], None]:
    leaves = [(a.clone().requires_grad_(), b.clone().requires_grad_()) for a, b in zip(x, w, strict=True)]

    def run() -> None:
        for a, b in leaves:
            a.grad = b.grad = None
            plain(a.sin(), b, groups).square().mean().backward()

    return run


def floor(x: Tensor, w: Tensor, groups: int) -> Callable[[], None]:
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
    torch.set_num_threads(1)
    about = common.machine()
    rows, found = [], {}
    for channels in (8, 16):
        for kind, ways in (("full", FULL), ("depthwise", DEPTHWISE)):
            groups = channels if kind == "depthwise" else 1
            x = torch.randn(REPLICAS, BATCH, channels, SIDE, SIDE)
            w = torch.randn(REPLICAS, channels, channels // groups, KERNEL, KERNEL)
            calls = {name: compile_way(way, x, w, groups) for name, way in ways.items()}
            calls |= {"plain PyTorch": plain_eager(x, w, groups), "floor": floor(x, w, groups)}
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
