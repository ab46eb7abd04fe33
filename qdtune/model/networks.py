"""Builds networks of one replica from their sizes; `training/cohort.py` stacks replicas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from qdtune import plugins
from qdtune.model.layers.batch_norm import drop_shifts
from qdtune.spec.blocks import MEAN, POOL, CnnLayer


def build_mlp(
    inputs: int, hidden: Sequence[int], classes: int, *, batch_norm: bool = False, bias: str = "all", seed: int
) -> nn.Sequential:
    """The notebook's network at any widths: linear layers with ReLU between them, from (B, I) to (B, classes).

    Args:
        inputs: I, features per sample.
        hidden: the widths between input and output, each >= 1; the notebook's is [24].
        classes: O of the last layer.
        batch_norm: whether a batch normalisation follows each hidden layer, which then has no bias.
        bias: a name of `axes.BIAS`: with `none`, layers have no biases and normalisations no shifts.
        seed: of the initial weights.
    """
    # `nn.Linear` draws only from the global generator, so that one is seeded here and restored afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _drop_biases(nn.Sequential(*_list_linear(inputs, hidden, classes, batch_norm)), bias)


def _drop_biases(model: nn.Sequential, bias: str) -> nn.Sequential:
    if bias == "none":
        drop_shifts(model)
        for layer in model:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.bias = None
    return model


def _list_linear(inputs: int, hidden: Sequence[int], classes: int, batch_norm: bool) -> Iterator[nn.Module]:
    width = inputs
    for h in hidden:
        yield nn.Linear(width, h, bias=not batch_norm)
        if batch_norm:
            yield nn.BatchNorm1d(h)
        yield nn.ReLU()
        width = h
    yield nn.Linear(width, classes)


def build_cnn(
    layers: Sequence[CnnLayer],
    hidden: Sequence[int],
    classes: int,
    *,
    batch_norm: bool = False,
    bias: str = "all",
    seed: int,
) -> nn.Sequential:
    """Convolutions with ReLU, pooling, and then the layers of `build_mlp`, from rows (B, C H W) to (B, classes).

    Args:
        layers: at least one; the first says what images the rows are.
        hidden, classes, batch_norm, bias, seed: as of `build_mlp`; convolutions are normalised as hidden layers are.
    """
    modules: list[nn.Module] = [nn.Unflatten(1, layers[0].image)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            if layer.kind == POOL:
                modules.append(nn.MaxPool2d(layer.kernel, layer.stride))
            elif layer.kind == MEAN:
                modules.append(nn.AdaptiveAvgPool2d(1))
            else:
                settings = (layer.image[0], layer.channels, layer.kernel, layer.stride, layer.padding)
                modules.append(nn.Conv2d(*settings, groups=layer.groups, bias=not batch_norm))
                modules += [nn.BatchNorm2d(layer.channels)] if batch_norm else []
                modules.append(nn.ReLU())
        inputs = math.prod(layers[-1].output)
        head = _list_linear(inputs, hidden, classes, batch_norm)
        return _drop_biases(nn.Sequential(*modules, nn.Flatten(), *head), bias)


def build_own(factory: str, sha256: str, inputs: int, hidden: Sequence[int], classes: int, *, seed: int) -> nn.Module:
    """The module that a user's factory builds, with the first weights of `seed`; the sizes are those of `build_mlp`.

    Args:
        factory: `package.module:function`, with the signature of `build_mlp` without `batch_norm`.
        sha256: of its source.

    Raises:
        PluginError: it may not be imported, its source has changed, or it raises.
    """
    function = plugins.load_function(factory, sha256)
    # The fast path of attention reads the weights of its layers, which may be split, instead of calling the layers.
    # The fused kernels of attention do not support vmap and would run the replicas one by one.
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(False)  # this one also runs on a CPU
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    with torch.random.fork_rng(devices=[]), plugins.explain_errors(f"{factory} cannot build a model"):
        torch.manual_seed(seed)
        return function(inputs, hidden, classes, seed=seed)
