"""Checks a user's model once, in the driver: describes what it consists of, and tests that it can be trained.

A model that would train or ship wrongly is refused before a trial starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from qdtune import plugins, reader
from qdtune.datasets.dataset import DatasetInfo
from qdtune.model import networks
from qdtune.model.dropout import replace_dropout
from qdtune.model.formats.packed import one_seed
from qdtune.model.rounding import match_rows
from qdtune.plugins import PluginError
from qdtune.spec.configuration import Configuration, OwnData, OwnModel
from qdtune.spec.groups import Qat, Warmup, name_built
from qdtune.spec.structure import Structure
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import CLASSIFICATION
from qdtune.training.averaging import average_images
from qdtune.training.own_answers import check_answers, check_draws, check_input_is_kept
from qdtune.training.own_faults import class_name, find_faults
from qdtune.training.own_structure import hash_loaded, trace_structure
from qdtune.training.shipped import load_shipped
from qdtune.training.step import StepShape, normalise
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration
from qdtune.training.warmups import NoWarmups

if TYPE_CHECKING:
    from qdtune.datasets.load import Samples

TRIED_ROWS = 8


def describe_own_model(spec: Spec, data: Samples | None = None) -> Spec:
    """The spec with the structures that its model's factory builds, one for each hidden widths and resolution.

    Args:
        spec: its `model` has a factory; the sizes of its data set are known.
        data: from which the rows come that are tried; None if it is not read yet.

    Raises:
        SpecError: the factory or its model cannot be used.
    """
    factory, info = spec.model.factory or "", spec.data.info
    assert info is not None, "the data comes first"
    rows = _choose_rows(data, info)
    with plugins.blame_group("model"):
        plugins.load_function(factory, spec.model.sha256)
        own = OwnModel(factory, plugins.source_of(factory).sha256)
        built = {}
        for resolution in spec.axes["resolution"].choices or ():
            seen, smaller = info.averaged(resolution), _average_rows(rows, info, resolution)
            for hidden in spec.axes["hidden"].choices or ():
                parts = _check_and_describe(own, seen.inputs, spec.task.outputs(seen), hidden, smaller)
                built[name_built(hidden, resolution)] = parts
    return spec.changed("model", sha256=own.sha256, built=built)


def try_own_model(spec: Spec, data: Samples | None = None) -> None:
    """Trains the model of the first hidden widths and resolution for a moment, split and quantised, as a trial does.

    Args:
        spec: returned by `describe_own_model`.
        data: as there.

    Raises:
        SpecError: the model cannot be split, quantised and trained.
    """
    factory, info, built = spec.model.factory or "", spec.data.info, spec.model.built
    assert info is not None, "the model is described first"
    assert built, "the model is described first"
    assert spec.model.sha256, "the model is described first"
    hidden, resolution = ((spec.axes[name].choices or ())[0] for name in ("hidden", "resolution"))
    own = OwnModel(factory, spec.model.sha256, built[name_built(hidden, resolution)])
    with (
        plugins.blame_group("model"),
        _name_failing_module(),
        plugins.explain_errors(f"{factory} builds a model that cannot be split, quantised and trained"),
    ):
        _train_for_a_moment(own, spec, hidden, resolution, _choose_rows(data, info))


@contextmanager
def _name_failing_module() -> Iterator[None]:
    """Adds to a PluginError of its block the module whose forward pass failed, if one did."""
    running: list[nn.Module] = []

    def leave(*_: object) -> None:
        running.pop()

    hooks = [
        register_module_forward_pre_hook(lambda module, _: running.append(module)),
        register_module_forward_hook(leave),
    ]
    try:
        yield
    except PluginError as error:
        path = [
            next((name for name, child in outer.named_modules() if child is inner), "?")
            for outer, inner in pairwise(running)
        ]
        where = f"; it failed in {'.'.join(path)}, an {class_name(type(running[-1]))}" if path else ""
        raise PluginError(f"{error}{where}") from error
    finally:
        for hook in hooks:
            hook.remove()


def _choose_rows(data: Samples | None, info: DatasetInfo) -> Tensor:
    """Rows (N, I) to try a model with, as the data has them: those that hold its extremes, and some between.

    A table that is looked up by the pixels, for example, may have no place for any byte but those of the data.
    """
    if data is None:
        draw = torch.Generator().manual_seed(0)
        if info.dtype != "uint8":
            return torch.randn(TRIED_ROWS, info.inputs, generator=draw)
        return torch.randint(256, (TRIED_ROWS, info.inputs), generator=draw, dtype=torch.uint8)
    spread = np.linspace(0, len(data.train_x) - 1, TRIED_ROWS).astype(int)
    picked = [data.train_x[sorted({*spread})]]
    for x in (data.train_x, data.val_x, data.test_x):
        ends = {int(x.argmin()) // x.shape[1], int(x.argmax()) // x.shape[1]}
        picked.append(x[sorted(ends)])
    return torch.from_numpy(np.concatenate(picked))


def _average_rows(rows: Tensor, info: DatasetInfo, resolution: int | None) -> Tensor:
    """The rows with their images averaged down."""
    how = info.averaging(resolution)
    return rows if how is None else average_images(rows, how)


def _check_and_describe(own: OwnModel, inputs: int, outputs: int, hidden: tuple[int, ...], rows: Tensor) -> Structure:
    """The structure of the model of these hidden widths.

    Raises:
        PluginError: the factory or its model cannot be used.
    """

    def build(seed: int) -> nn.Module:
        return networks.build_own(*own[:2], inputs, hidden, outputs, seed=seed)

    model, twin = build(1), build(1)
    for built in (model, twin):
        if not isinstance(built, nn.Module):
            raise PluginError(f"{own.factory} must return an nn.Module, got {type(built).__name__}")
    with plugins.explain_errors(f"{own.factory} builds a model that cannot be examined"):
        faults = [f"{own.factory} builds a model {fault}" for fault in find_faults(model)]
        if faults:
            raise PluginError(*faults)
        is_repeatable = _are_equal(model.state_dict(), twin.state_dict())
    if not is_repeatable:
        raise PluginError(f"{own.factory} must build the same model for the same seed, got two different ones")
    check_answers(own.factory, model, normalise(rows), outputs)
    check_input_is_kept(own.factory, twin.train(), normalise(rows))
    check_draws(own.factory, replace_dropout(twin), normalise(rows))
    structure = trace_structure(own.factory, model, normalise(rows))
    return structure._replace(loaded=hash_loaded(model, build(2)))


def _are_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _train_for_a_moment(
    own: OwnModel, spec: Spec, hidden: tuple[int, ...], resolution: int | None, rows: Tensor
) -> None:
    """Trains two replicas for an epoch on rows (N, I), split in two and quantised, as a trial does."""
    info = spec.data.info
    assert info is not None, "the model is described first"
    seen = info.averaged(resolution)
    outputs, y = spec.task.outputs(seen), torch.arange(len(rows)) % info.classes
    if spec.task is not CLASSIFICATION:
        y = torch.eye(2).repeat(len(rows), outputs)[: len(rows), :outputs].contiguous()
    x = normalise(_average_rows(rows, info, resolution))
    trial = Configuration(
        depth=2,
        weight_bits=4,
        activation="relu",
        act_bits=8,
        scale="lsq",
        factor_init="orthogonal",
        hidden=hidden,
        resolution=resolution,
        batch_norm=False,
        dataset="",
        val_size=len(x),
        batch_size=min(spec.train.batch_size, len(x) // 2),
        warmup=Warmup(epochs=1, lr=0.01),
        qat=Qat(epochs=1),
        seeds=(0, 1),
        own_model=own,
        own_data=OwnData("", "", info),
        task=spec.task.name,
        metric=spec.metric.name,
    )
    given = rows if rows.dtype == torch.uint8 else x
    data = Tensors(given, y, given, y, rows, y, info.inputs, info.classes)
    shape = StepShape.of(trial, seen.inputs, outputs, "qat")

    def check(replicas: Mapping[int, nn.Module], weights: bytes) -> None:
        for seed, replica in replicas.items():
            alone = one_seed(weights, seed)
            shipped, model = load_shipped(shape, alone), reader.load(alone)
            _check_shipped(own.factory, replica.eval()(x), shipped, x)
            if model.is_complete:
                _check_shipped(own.factory, torch.from_numpy(model.logits(rows.numpy())), shipped, x)

    for _ in train_configuration(trial, data, NoWarmups(), "never", check):
        pass


@torch.no_grad()
def _check_shipped(factory: str, answers: Tensor, shipped: nn.Module, x: Tensor) -> None:
    """Checks that what is shipped of a trained network answers all rows x (N, I) as the network, or the reader, does.

    Raises:
        PluginError: the network has state that is not shipped.
    """
    if not match_rows(answers, shipped, x).all():
        raise PluginError(
            f"{factory} builds a model that answers otherwise once it is shipped: it depends on more than parameters "
            "and saved buffers, such as an attribute or a buffer that is not persistent, which training or the seed "
            "changes"
        )
