"""Checks a user's model once, in the driver: describes what it consists of, and tests that it can be trained.

Only layers of known kinds are split and quantised (`model/layers`). Other modules are not changed, and their bytes
count. A model that would train wrongly is refused before a trial starts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qdtune import plugins
from qdtune.datasets.dataset import DatasetInfo
from qdtune.model import networks
from qdtune.model.layers.known import LAYERS, kind_of
from qdtune.model.layers.matrix import MatrixKind
from qdtune.model.quantize import count_sizes
from qdtune.plugins import PluginError
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.configuration import Configuration, OwnModel
from qdtune.spec.groups import Qat, Warmup
from qdtune.spec.sizes import FLOAT_BYTES, LayerShape, Structure
from qdtune.spec.sweep_file import Spec
from qdtune.spec.values import cell_text
from qdtune.training.cohort import Tensors
from qdtune.training.train import NoWarmups, train_configuration

TRIED_ROWS = 8


def describe_own_model(spec: Spec) -> Spec:
    """The spec with the structures that its model's factory builds, one for each choice of hidden widths.

    Args:
        spec: its `model` has a factory; the sizes of its data set are known.

    Raises:
        SpecError: the factory or its model cannot be used.
    """
    factory, info = spec.model.factory or "", spec.data.info
    assert info is not None, "the data comes first"
    with plugins.blame_group("model"):
        plugins.load_function(factory, spec.model.sha256)
        own = OwnModel(factory, plugins.source_of(factory).sha256)
        built = {hidden: _check_and_describe(own, info, hidden) for hidden in spec.axes["hidden"].choices or ()}
    return spec.changed(
        "model", sha256=own.sha256, built={cell_text(hidden): parts for hidden, parts in built.items()}
    )


def try_own_model(spec: Spec) -> None:
    """Trains the model of the first hidden widths for a moment, split in two and quantised, as a trial does.

    Args:
        spec: returned by `describe_own_model`.

    Raises:
        SpecError: the model cannot be split, quantised and trained.
    """
    factory, info, built = spec.model.factory or "", spec.data.info, spec.model.built
    assert info is not None, "the model is described first"
    assert built, "the model is described first"
    assert spec.model.sha256, "the model is described first"
    first = (spec.axes["hidden"].choices or ())[0]
    own = OwnModel(factory, spec.model.sha256, built[cell_text(first)])
    with (
        plugins.blame_group("model"),
        plugins.explain_errors(f"{factory} builds a model that cannot be split, quantised and trained"),
    ):
        _train_for_a_moment(own, info, first)


def _check_and_describe(own: OwnModel, info: DatasetInfo, hidden: tuple[int, ...]) -> Structure:
    """The structure of the model of these hidden widths.

    Raises:
        PluginError: the factory or its model cannot be used.
    """
    model, twin = (networks.build_own(*own[:2], info.inputs, hidden, info.classes, seed=1) for _ in range(2))
    for built in (model, twin):
        if not isinstance(built, nn.Module):
            raise PluginError(f"{own.factory} must return an nn.Module, got {type(built).__name__}")
    if not _are_equal(model.state_dict(), twin.state_dict()):
        raise PluginError(f"{own.factory} must build the same model for the same seed, got two different ones")
    for fault in _find_faults(model):
        raise PluginError(f"{own.factory} builds a model {fault}")
    with plugins.explain_errors(f"{own.factory} builds a model that cannot be called"), torch.no_grad():
        answer = model.eval()(torch.zeros(2, info.inputs))
    wanted = (2, info.classes)
    if not isinstance(answer, Tensor) or answer.shape != wanted or answer.dtype != torch.float32:
        got = (
            f"{answer.dtype} of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        )
        raise PluginError(f"{own.factory}: 2 samples must give float32 logits of shape {wanted}, got {got}")
    return describe_structure(model)


def describe_structure(model: nn.Module) -> Structure:
    """The structure of a network that is not split yet.

    Raises:
        AssertionError: a layer kind counts other bytes than follow from its shapes.
    """
    whole = count_sizes(model)
    layers = Structure(tuple(shape for _, shape in _find_quantisable(model)))
    alone = layers.sizes(1, FLOAT_BITS, None)
    norms = (whole.bias_bytes - alone.bias_bytes) // (2 * FLOAT_BYTES)  # a scale and a shift per feature
    structure = layers._replace(
        norms=norms, other=whole.params - alone.params - 2 * norms, other_bytes=whole.other_bytes
    )
    assert structure.sizes(1, FLOAT_BITS, None) == whole, "the sizes by arithmetic and those by tensors disagree"
    return structure


def _are_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _find_quantisable(model: nn.Module) -> Iterator[tuple[nn.Module, LayerShape]]:
    """Each layer that `quantize` changes, with its shape."""
    for module in model.modules():
        kind = kind_of(module)
        if kind is not None and (shape := kind.shape(module)) is not None:
            yield module, shape


def _find_faults(model: nn.Module) -> Iterator[str]:
    """The faults of a model that would otherwise give wrong results silently, or fail only in a worker."""
    layers = [layer for layer, _ in _find_quantisable(model)]
    if not layers:
        known = " or ".join(_class_name(kind.plain) for kind in LAYERS if isinstance(kind, MatrixKind))
        yield f"without any {known}: there is nothing to split and quantise"
    for layer in layers:
        if layer._forward_hooks or layer._forward_pre_hooks:
            name = _class_name(type(layer))
            yield f"with hooks on an {name} (weight_norm sets one), which a layer that is split would lose"
    names: dict[int, str] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        if p.dtype != torch.float32 or not p.requires_grad:
            yield f"whose parameter {name} is {p.dtype}, or frozen: all must be float32 and trained (or a buffer)"
        if id(p) in names:
            yield f"whose {name} is also its {names[id(p)]}: shared weights cannot be split in two places"
        names[id(p)] = name
    for name, m in model.named_modules():
        if any(isinstance(value, Tensor) for value in vars(m).values()):
            yield f"with a tensor in an attribute of {name or 'it'} that is no parameter: use register_buffer"
        drop = m.p if isinstance(m, nn.modules.dropout._DropoutNd) else 0.0
        if isinstance(m, nn.MultiheadAttention | nn.RNNBase):
            drop = m.dropout
        if drop > 0:
            yield f"with dropout {drop:g} in {name}: replicas that are trained together cannot draw, set it to 0"


def _class_name(layer: type[nn.Module]) -> str:
    """The name of a layer class as users write it."""
    is_from_torch = layer.__module__.startswith("torch.nn.")
    return f"nn.{layer.__name__}" if is_from_torch else layer.__name__


def _train_for_a_moment(own: OwnModel, info: DatasetInfo, hidden: tuple[int, ...]) -> None:
    """Trains two replicas for an epoch on random rows, split in two and quantised, as a trial does."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(256, (TRIED_ROWS, info.inputs), generator=draw, dtype=torch.uint8)
    y = torch.arange(TRIED_ROWS) % info.classes
    trial = Configuration(
        depth=2,
        weight_bits=4,
        activation="relu",
        act_bits=8,
        scale="lsq",
        factor_init="orthogonal",
        hidden=hidden,
        batch_norm=False,
        dataset="",
        val_size=TRIED_ROWS,
        batch_size=TRIED_ROWS // 2,
        warmup=Warmup(epochs=1, lr=0.01),
        qat=Qat(epochs=1),
        seeds=(0, 1),
        own_model=own,
    )
    for _ in train_configuration(
        trial, Tensors(x, y, x, y, x, y, info.inputs, info.classes, chance=0), NoWarmups(), "never"
    ):
        pass
