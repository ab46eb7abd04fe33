"""The axes of a sweep, each declared once.

The rest of the package derives from `AXES` all that it knows of the axes: the keys of `parameters` and `exclude`,
defaults, table columns, labels, ids, shared warm-ups, comparisons, figures and the docs. Add a new axis at the end,
because the order of `AXES` is the order of the points of a grid, and so of its trials.

This file is long because it is a list: each axis is one declaration of ten to twenty lines, side by side with the
others, and the few functions below only read the list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, create_model
from typing_extensions import TypedDict  # pydantic requires it below Python 3.12

from qdtune.datasets.dataset import DTYPES, DatasetInfo
from qdtune.spec.axis import Axis
from qdtune.spec.blocks import Block, outline_block
from qdtune.spec.checks import choice, whole
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.values import NO_WIDTHS, Frozen, NumberValues, Rate, Some, Values, Widths, as_list, cell_text


def _named(*names: str) -> Any:
    return Annotated[str, choice(names)]


def bits(n: int) -> str:
    """`1 bit`, `2 bits`, `float weights`."""
    return "float weights" if n == FLOAT_BITS else f"{n} bit{'s' if n > 1 else ''}"


# Where these hold, every layer has `weight_bits`.
UNIFORM = {"first_bits": None, "last_bits": None, "layer_bits": None}
WeightBits = Annotated[int, whole(1, 16, FLOAT_BITS)]


def most_common_bits(listed: Any) -> int:
    """The bits that most layers have, the smallest of several; of a list of bits, or of the same as in tables."""
    counts = Counter(_of_cell(listed) if isinstance(listed, str) else listed)
    return min(counts, key=lambda n: (-counts[n], n))


def _act_bits_of_most_layers(axes: Mapping[str, Any]) -> Any:
    listed = axes["layer_act_bits"]
    if listed is None:
        return axes["act_bits"]
    most = most_common_bits(listed)
    return None if most == FLOAT_BITS else most


def most_input_bits(cells: Mapping[str, Any]) -> int:
    """The most bits that the inputs of a layer have, `FLOAT_BITS` if one has float inputs; `cells` as in `label`."""
    listed = _of_cell(cells["layer_act_bits"])
    return max(listed) if listed else cells["act_bits"] or FLOAT_BITS


def _bits_of_each_layer(axes: Mapping[str, Any]) -> Any:
    """`layer_bits`; None if all layers have the same, which are then those of `_bits_of_most_layers`."""
    listed = axes["layer_bits"]
    if listed is None:
        return None
    each = listed.split("-") if isinstance(listed, str) else listed
    return listed if len(set(each)) > 1 else None


def _own_bits(axes: Mapping[str, Any], name: str) -> Any:
    """The bits of one layer; None if `layer_bits` replaces them or they are those of all layers."""
    return None if axes["layer_bits"] or axes[name] == axes["weight_bits"] else axes[name]


def _of_cell(cell: Any) -> tuple[int, ...] | None:
    return None if cell is None else tuple(int(part) for part in str(cell).split("-"))


def _needs_images(kind: str, data: DatasetInfo) -> str | None:
    if kind == "none" or (data.square and data.dtype == DTYPES[0]):
        return None
    if data.dtype != DTYPES[0]:
        return f"{kind} needs uint8 images, and the rows are {data.dtype}"
    return f"{kind} needs square images, which a factory returns as (rows, channels, height, width)"


def _needs_larger_images(resolution: int | None, data: DatasetInfo) -> str | None:
    image = data.pixels
    if resolution is None:
        return None
    if data.dtype != DTYPES[0]:
        return f"resolution needs uint8 images, and the rows are {data.dtype}"
    if image is None or min(image[1:]) == 1:
        return "resolution needs images, which a factory returns as (rows, channels, height, width)"
    if resolution > min(image[1:]):
        return f"{resolution} is more than the {min(image[1:])} pixels of the shorter side"
    return None


DEPTH = Axis(
    "depth",
    Annotated[int, whole(1, 64)],
    1,
    "structure",
    "int32",
    "factors per layer, at equal parameter count",
    place=0,
    has_range=True,
    is_bounded=True,
    is_split=True,
    tag="d{}",
    words=lambda n: f"depth {n}",
)
WEIGHT_BITS = Axis(
    "weight_bits",
    WeightBits,
    FLOAT_BITS,
    "quantisation",
    "int32",
    "bits per weight; 32 = float, not quantised",
    place=1,
    has_range=True,
    is_bounded=True,
    range_end=16,
    alias=lambda axes: most_common_bits(axes["layer_bits"]) if axes["layer_bits"] else axes["weight_bits"],
    head="bits",
    title="weight bits",
    tag="w{}",
    words=bits,
)
ACTIVATION = Axis(
    "activation",
    _named("identity", "relu", "leaky_relu", "gelu", "tanh", "hardtanh"),
    "identity",
    "structure",
    "string",
    "activation between the factors of one layer",
    place=3,
    is_split=True,
    idle=({"depth": 1},),  # a single layer has no activation inside
    head="between",
    title="activation",
    tag="{}",
    words=str,
)
ACT_BITS = Axis(
    "act_bits",
    Annotated[int, whole(1, 16)] | None,
    None,
    "quantisation",
    "int32",
    "bits of each layer's input; null = float",
    place=2,
    has_range=True,
    alias=_act_bits_of_most_layers,
    head="act",
    title="input bits",
    tag="a{}",
    words=lambda n: "float inputs" if n is None else f"inputs of {bits(n)}",
)
SCALE = Axis(
    "scale",
    _named("minmax", "absmean", "lsq"),
    "absmean",
    "quantisation",
    "string",
    "rule for the step sizes",
    place=4,
    idle=(
        {"weight_bits": FLOAT_BITS, "act_bits": None, "layer_act_bits": None, **UNIFORM},
    ),  # floats have no step size
    asked="{}",
)
FACTOR_INIT = Axis(
    "factor_init",
    _named("default", "orthogonal", "isometry", "svd"),
    "orthogonal",
    "warmup",
    "string",
    "initial weights of the factors",
    place=5,
    is_split=True,
    head="init",
    asked="{}",
)
GRANULARITY = Axis(
    "granularity",
    _named("tensor", "channel"),
    "tensor",
    "quantisation",
    "string",
    "one step size per factor, or one per output channel",
    place=6,
    since=5,
    before="tensor",
    idle=({"weight_bits": FLOAT_BITS, **UNIFORM},),
    tag="{}",
    asked="a step per {}",
)
LEVELS = Axis(
    "levels",
    _named("symmetric", "ternary", "full"),
    "symmetric",
    "quantisation",
    "string",
    "symmetric: codes -Q to Q; ternary: three codes at 2 bits, five to a byte; full: all 2^b codes",
    place=7,
    since=5,
    before="symmetric",
    idle=({"weight_bits": FLOAT_BITS, **UNIFORM}, {"weight_bits": 1, **UNIFORM}),  # one bit always has two levels
    alias=lambda axes: (
        "symmetric"
        if axes["levels"] == "ternary" and axes["weight_bits"] != 2 and all(axes[name] is None for name in UNIFORM)
        else axes["levels"]
    ),
    tag="{}",
    asked="{} levels",
)
DECOMPOSE = Axis(
    "decompose",
    _named("all", "hidden"),
    "all",
    "structure",
    "string",
    "layers to split; hidden leaves the last one whole",
    place=8,
    since=5,
    before="all",
    is_split=True,
    idle=({"depth": 1},),  # a single factor splits no layer
    head="split",
    tag="{}",
    asked="{} layers split",
)
HIDDEN = Axis(
    "hidden",
    Widths,
    (24,),  # the notebook's
    "structure",
    "string",
    "widths of the hidden layers before the split; `[]` for no hidden layer",
    place=9,
    home=("model", "hidden"),
    tag="h{}",
    outline=lambda cell: 0 if cell == NO_WIDTHS else len(str(cell).split("-")),
    of_cell=lambda cell: () if cell == NO_WIDTHS else tuple(int(width) for width in cell.split("-")),
)
WARMUP_LR = Axis(
    "warmup_lr",
    Rate,
    0.1,
    "warmup",
    "float64",
    "learning rate of the float warm-up",
    place=10,
    has_range=True,
    home=("train", "warmup", "lr"),
    head="warmup lr",
)
QAT_LR = Axis(
    "qat_lr",
    Rate,
    0.01,
    "training",
    "float64",
    "learning rate of QAT",
    place=11,
    has_range=True,
    home=("train", "qat", "lr"),
    head="qat lr",
)
AUGMENT = Axis(
    "augment",
    _named("none", "shift", "elastic", "affine", "affine_elastic", "flip", "shift_flip", "affine_flip"),
    "none",
    "training",
    "string",
    "distortion of training images: none, a shift of up to one pixel, elastic, affine or both, or half of them "
    "mirrored; new in every epoch",
    place=12,
    home=("train", "qat", "augment"),
    since=5,
    before="none",
    misfit=_needs_images,
    tag="{}",
)
RESOLUTION = Axis(
    "resolution",
    Annotated[int, whole(1, 8192)] | None,
    None,
    "structure",
    "int32",
    "pixels of the shorter side, to which images are averaged down before training; null: as they are",
    place=13,
    has_range=True,
    since=7,
    before=None,
    misfit=_needs_larger_images,
    head="pixels",
    tag="r{}",
    words=lambda n: "whole images" if n is None else f"{n} pixels a side",
    asked="{} pixels a side",
)
CHANNELS = Axis(
    "channels",
    Annotated[int, whole(1, 4096)] | None,
    None,
    "structure",
    "int32",
    "channels of the first block of a `cnn` that names a number; the others scale with it; null: as they are written",
    place=14,
    has_range=True,
    since=7,
    before=None,
    tag="c{}",
    outline=lambda n: "",
    words=lambda n: "channels as written" if n is None else f"{n} channels",
)
FIRST_BITS = Axis(
    "first_bits",
    WeightBits | None,
    None,
    "quantisation",
    "int32",
    "bits per weight of the first layer; null = weight_bits",
    place=15,
    has_range=True,
    since=7,
    before=None,
    alias=lambda axes: _own_bits(axes, "first_bits"),
    head="first",
    tag="first{}",
    words=lambda n: "" if n is None else f"first layer {bits(n)}",
    asked="first layer {} bits",
)
LAST_BITS = Axis(
    "last_bits",
    WeightBits | None,
    None,
    "quantisation",
    "int32",
    "bits per weight of the last layer; null = weight_bits",
    place=16,
    has_range=True,
    since=7,
    before=None,
    alias=lambda axes: _own_bits(axes, "last_bits"),
    head="last",
    tag="last{}",
    words=lambda n: "" if n is None else f"last layer {bits(n)}",
    asked="last layer {} bits",
)
LAYER_BITS = Axis(
    "layer_bits",
    Annotated[Some[WeightBits], BeforeValidator(as_list)] | None,
    None,
    "quantisation",
    "string",
    "bits per weight of each layer before the split, first to last; replaces weight_bits, first_bits and last_bits",
    place=17,
    since=7,
    before=None,
    alias=_bits_of_each_layer,
    head="by layer",
    tag="b{}",
    words=lambda cell: "" if cell is None else f"layers of {cell} bits",
    asked="layers of {} bits",
    of_cell=_of_cell,
)
LAYER_ACT_BITS = Axis(
    "layer_act_bits",
    Annotated[Some[WeightBits], BeforeValidator(as_list)] | None,
    None,
    "quantisation",
    "string",
    "bits of the input of each layer before the split, first to last, 32 = float; replaces act_bits",
    place=18,
    since=7,
    before=None,
    head="act by layer",
    tag="i{}",
    words=lambda cell: "" if cell is None else f"layers with inputs of {cell} bits",
    asked="inputs of {} bits",
    of_cell=_of_cell,
)
OVERHEAD = Axis(
    "overhead",
    _named("float32", "float16", "int8", "pow2"),
    "float32",
    "quantisation",
    "string",
    "how numbers that are no weights are stored: step sizes, biases, normalisations",
    place=19,
    since=8,
    before="float32",
    tag="{}",
    words=lambda name: f"{name} overhead",
    asked="{} overhead",
)
BIAS = Axis(
    "bias",
    _named("all", "none"),
    "all",
    "structure",
    "string",
    "all: layers have biases, or the shifts of normalisations; none: neither",
    place=20,
    since=8,
    before="all",
    tag="bias_{}",
    words=lambda name: "" if name == "all" else "no biases",
    asked="bias {}",
)
BLOCKS = Axis(
    "blocks",
    Annotated[Some[Block], BeforeValidator(as_list)] | None,
    None,
    "structure",
    "string",
    "blocks of a `cnn` in turn; null: those of `model.blocks`",
    place=21,
    since=11,
    before=None,
    tag="{}",
    words=lambda cell: "" if cell is None else f"blocks {cell}",
    outline=lambda cell: cell and tuple(map(outline_block, cell.split("-"))),
    of_cell=lambda cell: None if cell is None else tuple(cell.split("-")),
)
AXES = (
    DEPTH,
    WEIGHT_BITS,
    ACTIVATION,
    ACT_BITS,
    SCALE,
    FACTOR_INIT,
    GRANULARITY,
    LEVELS,
    DECOMPOSE,
    HIDDEN,
    WARMUP_LR,
    QAT_LR,
    AUGMENT,
    RESOLUTION,
    CHANNELS,
    FIRST_BITS,
    LAST_BITS,
    LAYER_BITS,
    LAYER_ACT_BITS,
    OVERHEAD,
    BIAS,
    BLOCKS,
)

AXIS_NAMES = tuple(axis.name for axis in AXES)
SHOWN = tuple(sorted(AXES, key=lambda axis: axis.place))  # as text tables have them
OUTLINED = tuple(axis for axis in AXES if axis.outline)
ASKED_AT = tuple(axis.name for axis in AXES if axis.asked)
# The axes that decide about the network that is shipped, and not only about how well it is trained.
SHIPPED = tuple(axis.name for axis in AXES if axis.stage in ("structure", "quantisation"))
# Labels begin with the axes of the first version.
_TAGGED = tuple(axis for axis in sorted(SHOWN, key=lambda axis: axis.is_new) if axis.tag)


def axis_of(name: str) -> Axis:
    """The axis of this name."""
    return AXES[AXIS_NAMES.index(name)]


def head_of(name: str) -> str:
    """The column head of an axis in text tables."""
    return axis_of(name).head or name


def title_of(name: str) -> str:
    """The title of an axis in figures."""
    return axis_of(name).title or head_of(name)


def idle_axes(axes: Mapping[str, Any]) -> list[str]:
    """The axes that have no effect at these values of the other axes."""
    return [
        axis.name
        for axis in AXES
        if any(all(axes[name] == value for name, value in where.items()) for where in axis.idle)
    ]


def idle_at_depth(depth: Any) -> list[str]:
    """The axes that have no effect at a depth, at any values of the other axes."""
    return idle_axes({**dict.fromkeys(AXIS_NAMES), "depth": depth})


def decisive_axes(axes: Mapping[str, Any]) -> dict[str, Any]:
    """The axes of one configuration, None for axes without effect; equal results mean the same network.

    Args:
        axes: a value per axis, by name; other keys are kept.
    """
    aliases = {axis.name: axis.alias(axes) for axis in AXES if axis.alias}
    return {**axes, **aliases, **dict.fromkeys(idle_axes(axes))}


def label(cells: Mapping[str, Any], names: Collection[str] = AXIS_NAMES) -> str:
    """A configuration in a few words: `d2 w1 relu`; newer axes only if not at their old value: `d2 w2 relu ternary`.

    Args:
        cells: a value per axis, by name, with hidden widths as text.
        names: of the axes that it may name.
    """
    words = []
    for axis in _TAGGED:
        if axis.name not in names:
            continue
        value = cells[axis.name]
        usual = axis.before if axis.is_new else cell_text(axis.default) if axis.home else None
        if value is not None and value != usual:
            words.append(str(axis.tag).format(value))
    return " ".join(words)


def find_varying(points: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """The names of the axes that have several values among configurations, each given as in `label`."""
    seen = list(points)
    return frozenset(name for name in AXIS_NAMES if len({cells[name] for cells in seen}) > 1)


def short_label(cells: Mapping[str, Any], varying: Collection[str]) -> str:
    """A configuration in a list of several: what all have in common is left out, all else is named.

    Args:
        cells: as in `label`.
        varying: of `find_varying`; the whole label if nothing varies.
    """
    untagged = [axis for axis in SHOWN if axis.name in varying and not axis.tag]
    words = [label(cells, varying), *(axis.said(cells[axis.name]) for axis in untagged)]
    return ", ".join(filter(None, words)) or label(cells)


# --- Types made from the axes, once.


def _always(value: object) -> Any:
    return Field({"values": [value]}, validate_default=True)


def _parameter(axis: Axis) -> Any:
    values: Any = (NumberValues if axis.has_range else Values)[axis.rule]
    return (values | None, None) if axis.home else (values, _always(axis.default))


if TYPE_CHECKING:
    Parameters: TypeAlias = Any
    Excluded: TypeAlias = dict[str, Any]
else:
    # The values of each axis. None: take the value from the axis's home in the file.
    Parameters = create_model("Parameters", __base__=Frozen, **{axis.name: _parameter(axis) for axis in AXES})
    # A partial assignment of axes; matching configurations are not run.
    Excluded = TypedDict("Excluded", {axis.name: axis.rule for axis in AXES}, total=False)
    Excluded.__pydantic_config__ = {"extra": "forbid"}


def axis_fields(name: str, axes: Iterable[str], **settings: Any) -> Any:
    """A dataclass with a field for each of these axes, as a base class.

    Args:
        name: of the class.
        axes: by name. Axes of later versions default to their old value; the others are required.
        settings: of `dataclasses.make_dataclass`.
    """
    fields: list[Any] = [
        (axis.name, Any, field(default=axis.before)) if axis.is_new else (axis.name, Any)
        for axis in map(axis_of, axes)
    ]
    return make_dataclass(name, fields, kw_only=True, **settings)
