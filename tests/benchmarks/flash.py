"""How near is `flash_bytes` to the constants of C programs? Random configurations, trained briefly and exported.

    python tests/benchmarks/flash.py --data-dir DIR [--count 120]

`mnist` are networks as in `sweeps/mlp_16x16.yaml` and `sweeps/cnn_mnist.yaml` with other bits, levels and overheads;
`digits` are smaller ones, of all depths and activations. A network has exceptions if float32 bends its lines (see
`model/c/requantise.py`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from common import arguments, machine, publish, table

from qdtune.datasets.load import load
from qdtune.model.c.program import to_c
from qdtune.model.formats.packed import one_seed
from qdtune.reader import load as read
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.training.cohort import Tensors
from qdtune.training.train import train_configuration
from qdtune.training.warmups import NoWarmups

TRAINED_ON = 4000  # images of a large data set
SWEEP = """
version: 1
name: flash
parameters: {{{axes}}}
seeds: [0]
data: {{dataset: {dataset}, val_size: {held}}}
model: {{{model}}}
train: {{batch_size: 100, warmup: {{epochs: {epochs}, optimizer: adam, lr: 0.005}}, qat: {{epochs: {epochs}}}}}
"""
MLP_HIDDEN = ([16], [32], [32, 32], [48], [48, 48], [64], [64, 64], [96, 64])
CURVED = ("tanh", "gelu", "leaky_relu")


def draw_mnist(draw: random.Random) -> tuple[dict[str, Any], str]:
    """The axes and the model of a configuration on images of 16 x 16."""
    axes: dict[str, Any] = {"resolution": 16, "act_bits": draw.choice([8, 8, 8, 8, 4, 6]), "scale": "lsq"}
    axes |= {"granularity": draw.choice(["tensor", "tensor", "channel"]), "overhead": draw_overhead(draw)}
    if draw.random() < 0.25:
        axes |= {"channels": draw.choice([8, 16]), "weight_bits": 8, "layer_bits": [8, 8, 8, draw.choice([2, 4]), 4]}
        return axes, "name: cnn, blocks: [conv 16, dw, pool, dw, pool], hidden: [48], batch_norm: true"
    axes |= draw_bits(draw, [1, 2, 2, 4, 4, 8])
    axes |= {"last_bits": draw.choice([4, 8]), "depth": draw.choice([1, 1, 1, 2])}
    return axes, f"name: mlp, hidden: {draw.choice(MLP_HIDDEN)}, batch_norm: {draw_norm(draw)}"


def draw_digits(draw: random.Random) -> tuple[dict[str, Any], str]:
    """The axes and the model of a smaller configuration, of any kind."""
    axes = draw_bits(draw, [1, 2, 2, 3, 4, 5, 6, 8, 8, 16])
    axes |= {"depth": draw.choice([1, 1, 2, 3]), "act_bits": draw.choice([None, 1, 2, 4, 4, 6, 8, 8, 8, 8, 10])}
    axes |= {"granularity": draw.choice(["tensor", "channel"]), "overhead": draw_overhead(draw)}
    axes |= {"activation": draw.choice(["relu", "relu", "identity", "hardtanh", *CURVED])}
    axes |= {"scale": draw.choice(["absmean", "lsq"]), "bias": draw.choice(["all", "all", "all", "none"])}
    if draw.random() < 1 / 3:
        return axes, f"name: cnn, blocks: [conv 6, dw, pool, pw 8], hidden: [12], batch_norm: {draw_norm(draw)}"
    hidden = [draw.choice([8, 16, 32]), draw.choice([6, 12])]
    return axes, f"name: mlp, hidden: {hidden}, batch_norm: {draw_norm(draw)}"


def draw_bits(draw: random.Random, choices: list[int]) -> dict[str, Any]:
    """Bits of weights, and their levels."""
    bits = draw.choice(choices)
    return {"weight_bits": bits, "levels": draw.choice(["symmetric", "full", *(["ternary"] if bits == 2 else [])])}


def draw_overhead(draw: random.Random) -> str:
    return draw.choice(["float32", "float16", "int8", "pow2"])


def draw_norm(draw: random.Random) -> str:
    return draw.choice(["true", "true", "false"])


def draw_trials(dataset: str, count: int) -> Iterator[Configuration]:
    """Configurations on a data set."""
    draw, (one, held, epochs) = (
        random.Random(0),
        {"mnist": (draw_mnist, 1000, 1), "digits": (draw_digits, 200, 3)}[dataset],
    )
    for _ in range(count):
        axes, model = one(draw)
        listed = ", ".join(f"{name}: {{value: {'null' if v is None else v}}}" for name, v in axes.items())
        text = SWEEP.format(axes=listed, dataset=dataset, held=held, model=model, epochs=epochs)
        yield plan(loads(text.encode(), "flash.yaml").resolve(dataset)).trials[0]


def measure(dataset: str, arguments: Any) -> list[dict[str, Any]]:
    """A row for each network: what its configuration says, what its program has."""
    held = {"mnist": 1000, "digits": 200}[dataset]
    samples, _ = load([dataset], arguments.data_dir, held)
    data = Tensors.of(
        replace(samples, train_x=samples.train_x[:TRAINED_ON].copy(), train_y=samples.train_y[:TRAINED_ON].copy()),
        torch.device("cpu"),
    )
    found = []
    for trial in draw_trials(dataset, arguments.count):
        *_, last = train_configuration(trial, data, NoWarmups(), "never")
        if not last["weights"]:
            continue  # it diverged
        made = to_c(read(one_seed(last["weights"], 0)), "m")
        is_curved = trial.depth > 1 and trial.activation in CURVED and (trial.act_bits or 0) > 2
        kind = "with exceptions" if "odd_sums" in made.source else "curved activations" if is_curved else "others"
        row = {"label": trial.label, "said": trial.columns["flash_bytes"], "constants": made.flash_bytes}
        found.append({"data": dataset, "networks": kind, "size_bytes": trial.columns["size_bytes"], **row})
    return found


def summarise(rows: list[dict[str, Any]]) -> list[str]:
    """A row of the table: how far off, in per cent."""
    off = np.array([100 * (row["said"] / row["constants"] - 1) for row in rows])
    sizes = sorted(row["constants"] for row in rows)
    low, middle, high = np.percentile(off, [5, 50, 95])
    spread = f"{low:+.1f} to {high:+.1f} %"
    exact = f"{int((off == 0).sum())} of {len(rows)}"
    return [f"{sizes[0]:,} to {sizes[-1]:,}", exact, f"{abs(off).mean():.1f} %", f"{middle:+.1f} %", spread]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], repeats=1)
    parser.add_argument("--count", type=int, default=120, help="networks of each data set")
    given = parser.parse_args()
    torch.set_num_threads(1)
    about = machine()
    found = [row for dataset in ("mnist", "digits") for row in measure(dataset, given)]
    lines = []
    for dataset in ("mnist", "digits"):
        for kind in ("others", "curved activations", "with exceptions"):
            if rows := [row for row in found if (row["data"], row["networks"]) == (dataset, kind)]:
                lines.append([dataset, kind, *summarise(rows)])
    heads = ["data", "networks", "bytes", "exact", "off, mean", "median", "5 % to 95 %"]
    publish("flash", given.out, {"rows": found}, table(heads, lines), about)


if __name__ == "__main__":
    main()
