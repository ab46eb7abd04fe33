"""Random networks of all kinds of layers, quantised at random, as packed models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qdtune.model.chain import ACTIVATIONS
from qdtune.model.factored import decompose
from qdtune.model.formats.packed import one_seed
from qdtune.model.packed import PIXEL_ROWS, RowFormat, pack_replicas
from qdtune.model.quantize import calibrate, quantize
from qdtune.reader import Model, load
from qdtune.spec.configuration import Configuration
from qdtune.spec.tasks import task_of
from qdtune.training.step import StepShape

ROWS = 300
BITS = (1, 2, 2, 3, 4, 5, 8, 12, 32)
ACT_BITS = (None, 1, 2, 3, 4, 8, 8, 10)
KINDS = ("mlp", "signal", "image")


def draw_model(seed: int, kind: str, **settings: Any) -> tuple[Model, NDArray[np.uint8]]:
    """A packed model and rows of pixels (N, I), the first two of them black and white.

    Args:
        seed: of everything that is drawn.
        kind: one of `KINDS`.
        settings: of `quantize`, instead of those that are drawn; `split`: a depth, instead of 1 or 2.
    """
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    inputs, layers = {"mlp": _draw_mlp, "signal": _draw_signal, "image": _draw_image}[kind](generator)
    width = nn.Sequential(*layers).eval()(torch.zeros(2, inputs)).shape[1]
    outputs = int(generator.integers(2, 8))
    network: nn.Module = nn.Sequential(*layers, nn.Linear(width, outputs))
    rows = generator.integers(0, 256, (ROWS, inputs)).astype(np.uint8)
    rows[0], rows[1] = 0, 255
    x = torch.from_numpy(rows).float() / 127.5 - 1
    if settings.pop("split", 1 + generator.integers(2)) == 2:
        network = decompose(network, 2, str(generator.choice(list(ACTIVATIONS))))
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.5)
    network.train()(x)  # the statistics of its normalisations
    bits = int(generator.choice(BITS))
    drawn: dict[str, Any] = {
        "weight_bits": bits,
        "act_bits": ACT_BITS[generator.integers(len(ACT_BITS))],
        "scale": str(generator.choice(["absmean", "lsq", "minmax"])),
        "levels": str(generator.choice(["symmetric", "full", "ternary"] if bits == 2 else ["symmetric", "full"])),
        "granularity": str(generator.choice(["tensor", "channel"])),
        "overhead": str(generator.choice(["float32", "float16", "int8", "pow2"])),
    }
    return pack(quantize(network, **drawn | settings), x, inputs, outputs), rows


def pack(
    network: nn.Module, x: Tensor, inputs: int, outputs: int, rows: RowFormat = PIXEL_ROWS, model: str = "mine:net"
) -> Model:
    """A quantised network as a packed model, its inputs calibrated with x."""
    network.eval()
    calibrate(network, x)
    network.eval()
    return load(one_seed(pack_replicas({0: network}, "a" * 12, inputs, outputs, model, rows), 0))


def build(trial: Configuration) -> Model:
    """The packed model of a configuration on `digits`, untrained, with the normalisations of a trained one."""
    task = task_of(trial.task)
    outputs = task.outputs(trial.info)
    generator = torch.Generator().manual_seed(1)
    settings: dict[str, Any] = {"decomposed": trial.decompose, "norm": trial.batch_norm == "factors"}
    undivided = StepShape.of(trial, trial.info.inputs, outputs, "qat").build_undivided(0)
    network = decompose(undivided, trial.depth, trial.activation, generator=generator, bias=trial.bias, **settings)
    rows = np.random.default_rng(0).integers(0, 256, (100, trial.info.inputs)).astype(np.uint8)
    x = torch.from_numpy(rows).float() / 127.5 - 1
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.3, generator=generator)
        network.train()(x)  # the statistics of its normalisations
    quantised = {"scale": trial.scale, "levels": trial.levels, "granularity": trial.granularity}
    network = quantize(network, trial.bits, trial.input_bits, **quantised, overhead=trial.overhead)
    return pack(network, x, trial.info.inputs, outputs, model=trial.columns["model"])


def _activation(generator: np.random.Generator) -> nn.Module:
    return ACTIVATIONS[str(generator.choice(list(ACTIVATIONS)))]()


def _draw_mlp(generator: np.random.Generator) -> tuple[int, list[nn.Module]]:
    inputs = width = int(generator.integers(4, 80))
    layers: list[nn.Module] = []
    for _ in range(generator.integers(1, 3)):
        hidden = int(generator.integers(2, 20))
        layers.append(nn.Linear(width, hidden, bias=bool(generator.random() < 0.7)))
        layers += [nn.BatchNorm1d(hidden)] if generator.random() < 0.5 else []
        layers.append(_activation(generator))
        width = hidden
    return inputs, layers


def _draw_signal(generator: np.random.Generator) -> tuple[int, list[nn.Module]]:
    channels, length, outputs = (int(generator.integers(*ends)) for ends in ((1, 4), (12, 30), (2, 6)))
    window = {key: int(generator.integers(*ends)) for key, ends in (("stride", (1, 3)), ("padding", (0, 2)))}
    layers: list[nn.Module] = [nn.Unflatten(1, (channels, length))]
    layers.append(nn.Conv1d(channels, outputs, 3, dilation=int(generator.integers(1, 3)), **window))
    layers += [nn.BatchNorm1d(outputs)] if generator.random() < 0.5 else []
    layers.append(_activation(generator))
    layers += [nn.MaxPool1d(2), nn.Tanh()] if generator.random() < 0.5 else [nn.AvgPool1d(2)]
    return channels * length, [*layers, nn.Flatten()]


def _draw_image(generator: np.random.Generator) -> tuple[int, list[nn.Module]]:
    channels, height, width = int(generator.integers(1, 4)), *(int(n) for n in generator.integers(9, 13, 2))
    outputs = 2 * int(generator.integers(1, 4))
    layers: list[nn.Module] = [nn.Unflatten(1, (channels, height, width))]
    layers.append(nn.Conv2d(channels, outputs, int(generator.integers(1, 4)), padding=int(generator.integers(0, 2))))
    layers += [nn.BatchNorm2d(outputs)] if generator.random() < 0.6 else []
    layers.append(_activation(generator))
    layers += [nn.MaxPool2d(2)] if generator.random() < 0.5 else []
    if generator.random() < 0.5:
        layers += [nn.Conv2d(outputs, outputs, 3, padding=1, groups=outputs), nn.BatchNorm2d(outputs)]
        layers.append(_activation(generator))
    layers += [nn.AvgPool2d(2)] if generator.random() < 0.3 else []
    layers += [nn.AdaptiveAvgPool2d(1)] if generator.random() < 0.3 else []
    layers.append(nn.Flatten())
    layers += [nn.BatchNorm1d(_width(channels * height * width, layers))] if generator.random() < 0.3 else []
    return channels * height * width, layers


def _width(inputs: int, layers: list[nn.Module]) -> int:
    return int(nn.Sequential(*layers).eval()(torch.zeros(2, inputs)).shape[1])
