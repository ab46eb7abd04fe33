"""Keys of a sweep file that are right by themselves but do not fit together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from qdtune.datasets.dataset import DatasetInfo
from qdtune.messages import KeyPath
from qdtune.spec.axes import (
    ACT_BITS,
    AXES,
    BIAS,
    BLOCKS,
    CHANNELS,
    LAYER_ACT_BITS,
    LAYER_BITS,
    RESOLUTION,
    WEIGHT_BITS,
    most_common_bits,
)
from qdtune.spec.axis import Axis
from qdtune.spec.blocks import PADDINGS, has_channels, list_cnn_layers
from qdtune.spec.choices import FLOAT_BITS, PLANNED
from qdtune.spec.objectives import CHOICE_OF_COSTS, COSTS, MOST_COSTS
from qdtune.spec.replicate import list_replicate_disagreements
from qdtune.spec.tasks import AUTOENCODER, CLASSIFICATION
from qdtune.spec.values import cell_text

if TYPE_CHECKING:
    from qdtune.spec.sweep_file import Spec

MAX_POINTS = 100_000  # of a grid


def list_disagreements(spec: Spec) -> Iterator[tuple[KeyPath, str]]:
    """The path of each key that does not fit the others, and what is wrong with it."""
    axes = spec.axes
    if spec.method == "grid":
        yield from _list_grid_disagreements(spec)
    elif spec.run_cap is None:
        yield ("run_cap",), f"no value (how many configurations method {spec.method} draws)"
    if spec.duplicates == "replicate" and spec.method in PLANNED:
        yield ("duplicates",), f"has no use with method {spec.method}, which never repeats itself (or leave it out)"
    for key, what in spec.early_terminate.pruner.misfits(len(spec.seeds)):
        yield ("early_terminate", key), what
    yield from list_replicate_disagreements(spec)
    yield from _list_objective_disagreements(spec)
    for axis in AXES:
        end = getattr(axes[axis.name], "max", None)
        if axis.range_end is not None and end is not None and end > axis.range_end:
            what = f"a range ends at {axis.range_end} ({end} is float; give it as a value)"
            yield ("parameters", axis.name, "max"), what
    yield from _list_bits_disagreements(spec)
    yield from _list_task_disagreements(spec)
    yield from _list_channel_disagreements(spec)
    if spec.model.factory and any(value != BIAS.before for _, value in _list_values(spec, BIAS)):
        what = f"is for mlp and cnn only (or {BIAS.before}): a factory builds its layers with or without biases"
        yield ("parameters", BIAS.name), what
    if spec.data.info is not None and not spec.is_changed_on(spec.data.names[0]):
        yield from _list_data_disagreements(spec, spec.data.names[0], spec.data.info)
    if spec.model.batch_norm and spec.train.batch_size == 1:
        yield ("train", "batch_size"), "1 is not allowed with batch_norm (at least 2, to have a variance)"
    for i, rule in enumerate(spec.exclude):
        if not rule:
            yield ("exclude", i), "names no axis (it would exclude everything)"
        for name, value in rule.items():
            if not axes[name].holds(value):
                yield ("exclude", i, name), f"{cell_text(value)} never occurs in parameters.{name}"


def _list_objective_disagreements(spec: Spec) -> Iterator[tuple[KeyPath, str]]:
    """Objectives that do not begin with the metric that judges, and go on with costs."""
    if spec.objectives is None:
        return
    metric, costs = spec.metric.val, [one.name for one in COSTS]
    first, *rest = spec.objectives
    if first in costs:
        yield ("objectives", 0), f"{first} is a cost: the metric comes first ({metric})"
    elif first != metric:
        yield ("objectives", 0), f"{first} does not judge this sweep ({metric}; data.metric can name another metric)"
    for i, name in enumerate(rest, 1):
        if name not in (*costs, metric):
            yield ("objectives", i), f"{name} is no cost ({', '.join(costs)})"
    if first not in costs and not 1 <= len(rest) <= MOST_COSTS:
        count = f"{len(rest)} costs" if rest else "no cost"
        yield ("objectives",), f"names {count} ({CHOICE_OF_COSTS})"


def _list_bits_disagreements(spec: Spec) -> Iterator[tuple[KeyPath, str]]:
    """Lists of bits that fit no network of the sweep, or that `weight_bits` or `act_bits` does not show in tables."""
    axes = spec.axes
    counts = {len(widths) + 1 for widths in axes["hidden"].choices or ()}
    pairs = ((LAYER_BITS, WEIGHT_BITS), (LAYER_ACT_BITS, ACT_BITS))
    for axis, replaced, listed in ((one, other, x) for one, other in pairs for x in axes[one.name].choices or ()):
        if listed is None:
            continue
        where = ("parameters", axis.name)
        text = f"[{', '.join(map(str, listed))}]"
        if spec.model.name == "mlp" and len(listed) not in counts:
            has = " or ".join(map(str, sorted(counts)))
            yield where, f"{text} has {len(listed)} entries, and the network {has} layers (one for each)"
        elif not any(axes[replaced.name].holds(_input_of(bits, replaced)) for bits in listed):
            most = cell_text(_input_of(most_common_bits(listed), replaced))
            what = f"{text} replaces {replaced.name}, which tables and labels show"
            yield where, f"{what}: set {replaced.name} to one of its entries, such as {{value: {most}}}"


def _input_of(bits: int, axis: Axis) -> int | None:
    """Bits of a layer as a value of the axis of all layers: float inputs are null there."""
    return None if axis is ACT_BITS and bits == FLOAT_BITS else bits


def _list_task_disagreements(spec: Spec) -> Iterator[tuple[KeyPath, str]]:
    data, task = spec.data, spec.task
    names = [metric.name for metric in task.metrics]
    if data.metric not in (None, *names):
        yield ("data", "metric"), f"{data.metric} does not judge the task {task.name} ({', '.join(names)})"
    if not data.factory and task not in (CLASSIFICATION, AUTOENCODER):
        what = f"{task.name} needs targets that {data.names[0]} does not have"
        yield ("data", "task"), f"{what} (name a factory that gives them, or {CLASSIFICATION.name})"
    resolutions = spec.axes[RESOLUTION.name].values
    if task is AUTOENCODER and (resolutions is None or len(resolutions) > 1):
        what = f"one value only with task {task.name}: errors on images of different sizes cannot be compared"
        yield ("parameters", RESOLUTION.name), what
    if data.normalize != "none":
        if not data.factory or (data.info and data.info.dtype == "uint8"):
            yield (
                ("data", "normalize"),
                "is for rows that are not uint8; pixels are always pixel / 127.5 - 1 (or none)",
            )
        elif spec.model.factory:
            what = "is for mlp only: a factory's model is shipped without it, so let the data factory normalise"
            yield ("data", "normalize"), f"{what} (or none)"


def _list_data_disagreements(spec: Spec, name: str, info: DatasetInfo) -> Iterator[tuple[KeyPath, str]]:
    for axis in AXES:
        for path, value in _list_values(spec, axis) if axis.misfit else ():
            if axis.misfit and (why := axis.misfit(value, info)):
                yield path, f"{why}; {name} has {info.inputs} numbers a sample (or {cell_text(axis.before)})"
    yield from _list_block_disagreements(spec, name, info)
    train = info.train
    left = train - spec.data.val_size
    if left < 1:
        what = f"{spec.data.val_size} leaves none of the {train} training samples of {name}"
        fallback = "" if spec.data.factory else f"; a fallback takes a fifth of the training samples, {train // 5}"
        yield ("data", "val_size"), f"{what}: set data.val_size, at most {train - 1}{fallback}"
    elif spec.train.batch_size > left:
        given = f"{spec.train.batch_size} is above the {left} training samples of {name}"
        yield ("train", "batch_size"), f"{given} ({train} less val_size {spec.data.val_size})"


def _list_block_disagreements(spec: Spec, name: str, info: DatasetInfo) -> Iterator[tuple[KeyPath, str]]:
    """What a `cnn` cannot be built for: data without images, and images too small for its blocks."""
    if spec.model.blocks is None:
        return
    if info.pixels is None:
        what = (
            f"cnn needs images, which a factory returns as (rows, channels, height, width); {name} has none (or mlp)"
        )
        yield ("model", "name"), what
        return
    sizes = [value for _, value in _list_values(spec, RESOLUTION)]
    fit = [size for size in sizes if RESOLUTION.misfit is None or RESOLUTION.misfit(size, info) is None]
    images = [info.pixels_at(size) or info.pixels for size in fit] or [info.pixels]
    seen: dict[Any, str] = {}
    for path, blocks in _list_values(spec, BLOCKS):
        # A list of the axis has to fit one image: where it does not fit, it is not run.
        image = max(images) if blocks else min(images)
        try:
            made = list_cnn_layers(blocks or spec.model.blocks, None, spec.model.padding or PADDINGS[0], image)
        except ValueError as error:
            told = f"{cell_text(blocks)}: {error} at any resolution" if blocks else str(error)
            yield path if blocks else ("model", "blocks"), told
            continue
        if blocks and made in seen:
            yield path, f"{seen[made]} and {cell_text(blocks)} make the same layers (one of them)"
        if blocks:
            seen[made] = cell_text(blocks)


def _list_channel_disagreements(spec: Spec) -> Iterator[tuple[KeyPath, str]]:
    listed = [value for _, value in _list_values(spec, BLOCKS)]
    has_more = any(value is not None for _, value in _list_values(spec, CHANNELS))
    if spec.model.blocks is None:
        named = {CHANNELS: has_more, BLOCKS: any(blocks is not None for blocks in listed)}
        yield from (
            (("parameters", axis.name), "is for model cnn only (or null)") for axis, is_set in named.items() if is_set
        )
        return
    if None in listed and len(listed) > 1:
        yield ("parameters", BLOCKS.name), f"null is none of several lists (write {', '.join(spec.model.blocks)})"
    for blocks in listed if has_more else ():
        if not has_channels(blocks or spec.model.blocks):
            what = f"{cell_text(blocks)} names no" if blocks else "no block names a"
            yield ("parameters", CHANNELS.name), f"has no effect: {what} number of channels (or null)"


def _list_values(spec: Spec, axis: Axis) -> Iterator[tuple[KeyPath, Any]]:
    """The values that an axis can have, each with the key that holds it; the other phase comes first.

    Of a range of numbers, these are its ends.
    """
    for phase in ("warmup", "qat") if axis.phase else ():
        if axis.phase != phase:
            yield ("train", phase, axis.home[-1]), spec.at(("train", phase, axis.home[-1]))
    path = axis.home if getattr(spec.parameters, axis.name) is None else ("parameters", axis.name)
    found = spec.axes[axis.name]
    if axis.names:
        yield from ((path, value) for value in axis.names if found.holds(value))
        return
    ends = (getattr(found, "min", None), getattr(found, "max", None))
    yield from ((path, value) for value in (ends if found.values is None else found.values))


def _list_grid_disagreements(spec: Spec) -> Iterator[tuple[KeyPath, str]]:
    if spec.run_cap is not None:
        yield ("run_cap",), "has no use with method grid, which runs every configuration (or write method: random)"
    ranges = [name for name, axis in spec.axes.items() if axis.values is None]
    for name in ranges:
        yield ("parameters", name), "a range is not possible with method grid (list values, or write method: random)"
    points = math.prod(len(axis.choices or ()) for axis in spec.axes.values())
    if not ranges and points > MAX_POINTS:
        limit = f"limit {MAX_POINTS:,}; write method: random with a run_cap"
        yield ("parameters",), f"the grid has {points:,} points ({limit})"
