"""Networks for ONE replica: plain functions from sizes to a module. Stacking is `cohort.py`'s business."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from qdtune import plugins


def mlp(inputs: int, hidden: Sequence[int], classes: int, *, batch_norm: bool = False, seed: int) -> nn.Sequential:
    """The notebook's network, of any widths: linear layers with ReLU between them, from (B, I) to (B, classes).

    Args:
        inputs: I, numbers per sample.
        hidden: the widths between input and output, each >= 1; the notebook's is [24].
        classes: O of the last layer.
        batch_norm: a normalisation after each hidden layer, which then has no bias of its own.
        seed: of the initial weights.
    """
    layers: list[nn.Module] = []
    # `nn.Linear` draws from the global generator and takes no other: lend it one, and put the old one back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = inputs
        for h in hidden:
            layers.append(nn.Linear(width, h, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(h))
            layers.append(nn.ReLU())
            width = h
        layers.append(nn.Linear(width, classes))
    return nn.Sequential(*layers)


def own(factory: str, sha256: str, inputs: int, hidden: Sequence[int], classes: int, *, seed: int) -> nn.Module:
    """What a factory of the user's builds, with first weights that come from `seed`; sizes as of `mlp`.

    Args:
        factory: `package.module:function`, of the signature of `mlp` without `batch_norm`.
        sha256: of its source.

    Raises:
        PluginError: it may not be imported, its source is another one by now, or it raises.
    """
    function = plugins.load_function(factory, sha256)
    # The fast path reads weights out of layers that are split by now instead of calling them; the fused kernels of
    # attention do not know vmap and would take the replicas one by one.
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.cuda.enable_flash_sdp(False)  # on a CPU, too
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    with torch.random.fork_rng(devices=[]), plugins.explain_errors(f"{factory} cannot build a model"):
        torch.manual_seed(seed)
        return function(inputs, hidden, classes, seed=seed)
