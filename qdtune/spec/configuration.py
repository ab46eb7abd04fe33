"""One configuration with everything that changes its result, and the hashes that name its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from qdtune.datasets.dataset import Averaging, DatasetInfo
from qdtune.datasets.known import dataset_of
from qdtune.messages import format_count
from qdtune.spec.axes import AXES, LAYER_ACT_BITS, LAYER_BITS, axis_fields, label
from qdtune.spec.axis import LATER_STAGES, Axis
from qdtune.spec.blocks import PADDINGS, CnnLayer, cnn_structure, list_cnn_layers
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.groups import Phase
from qdtune.spec.objectives import known_before
from qdtune.spec.sizes import Sizes
from qdtune.spec.structure import Structure, mlp_structure
from qdtune.spec.tasks import ACCURACY, CLASSIFICATION, task_of
from qdtune.spec.values import cell_text

# As RESULTS_VERSION, for quantised inputs only. In version 2 inputs that are never negative use all their codes.
INPUTS_VERSION = 2
RESULTS_VERSION = 1  # raise it when the same configuration gives other numbers: old results then no longer count
# The float warm-up does not depend on these: quantisation and QAT.
_NOT_WARMED_UP = frozenset({axis.name for axis in AXES if axis.stage in LATER_STAGES} | {"inputs", "qat"})
_LATER_FIELDS: dict[str, Any] = {
    "task": CLASSIFICATION.name,
    "metric": ACCURACY.name,
    "normalize": "none",
    "padding": None,
}
# The axes that belong to a training phase are fields of that phase.
_AxisFields: Any = axis_fields("_AxisFields", [axis.name for axis in AXES if axis.phase is None], frozen=True)


class OwnModel(NamedTuple):
    """A model of the user's: its factory, the sha256 of its source, what it builds (None: not called yet)."""

    factory: str
    sha256: str
    structure: Structure | None = None


class OwnData(NamedTuple):
    """Data of the user's: the sha256 of the factory's source and of its arrays, and the sizes of the arrays."""

    sha256: str
    content: str
    info: DatasetInfo


@dataclass(frozen=True, kw_only=True)
class Configuration(_AxisFields):
    """One configuration, with everything that changes its result: a field for each axis, and those below.

    Its views: `values` (the axes, typed), `cells` (the axes, as in tables), `key` (the cells as one value, the same
    for all seeds), `columns` (its part of a row before training), `identity` (the content that its id hashes).

    Attributes:
        batch_norm: whether hidden layers are normalised; or a word of `choices.NORMS`, which adds more.
        dataset: the data set, or the name of the user's factory.
        val_size: training samples held out for validation.
        batch_size: samples per step.
        warmup, qat: float training, then quantised training, with the values that axes give them.
        seeds: one replica each, trained together.
        own_model, own_data: the user's model and data, if these come from factories.
        task, metric: what it is trained for, and by what it is judged.
        normalize: of rows that are not uint8, see `choices.NORMALIZATIONS`.
        model_blocks, padding: of a `cnn`, see `spec/blocks.py`; None: it is an `mlp` or the user's own model.
            The axis `blocks` replaces `model_blocks`.
    """

    batch_norm: bool | str
    dataset: str
    val_size: int
    batch_size: int
    warmup: Phase
    qat: Phase
    seeds: tuple[int, ...]
    own_model: OwnModel | None = None
    own_data: OwnData | None = None
    task: str = CLASSIFICATION.name
    metric: str = ACCURACY.name
    normalize: str = "none"
    model_blocks: tuple[str, ...] | None = None
    padding: str | None = None

    @cached_property
    def trial_id(self) -> str:
        """12 hexadecimal digits, the same for the same configuration on any machine."""
        return _digest(self.identity)

    @property
    def warmup_base(self) -> Configuration:
        """The network that is warmed up: this one, or with `svd` the undivided one, which is split after training."""
        if self.factor_init != "svd":
            return self
        whole = {axis.name: axis.default for axis in AXES if axis.is_split} | {"factor_init": "default"}
        return replace(self, **whole)

    @property
    def warmup_id(self) -> str:
        """As `trial_id`, over all that the float warm-up depends on, so without bits, step sizes and QAT."""
        data = self.warmup_base.identity
        return _digest({key: data[key] for key in data.keys() - _NOT_WARMED_UP})

    @property
    def warmup_key(self) -> tuple[Any, ...]:
        """As `warmup_id` within one sweep, but without hashing, which takes seconds for a large grid."""
        values = self.warmup_base.values if self.factor_init == "svd" else self.values
        return tuple(values[axis.name] for axis in AXES if axis.stage not in LATER_STAGES)

    @property
    def values(self) -> dict[str, Any]:
        """The axes, typed."""
        return {axis.name: self._value(axis) for axis in AXES}

    def _value(self, axis: Axis) -> Any:
        return getattr(getattr(self, axis.phase), axis.home[-1]) if axis.phase else getattr(self, axis.name)

    @property
    def cells(self) -> dict[str, Any]:
        """The axes with values as in tables; hidden widths are text: '64-32'."""
        return {name: cell_text(v) if isinstance(v, tuple) else v for name, v in self.values.items()}

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """The axes as one value: the same for all seeds."""
        return tuple(self.cells.values())

    @property
    def bits(self) -> int | tuple[int, ...]:
        """The bits per weight of all layers before the split; a tuple of those of each if they differ."""
        if self.first_bits is self.last_bits is self.layer_bits is None:
            return self.weight_bits
        structure = self.structure
        each = [self.weight_bits] * len(structure.layers)
        if self.first_bits is not None:
            each[0] = self.first_bits
        if self.last_bits is not None:
            each[structure.last] = self.last_bits
        found = tuple(each) if self.layer_bits is None else self.layer_bits
        return found[0] if len(set(found)) == 1 else found

    @property
    def input_bits(self) -> int | tuple[int | None, ...] | None:
        """The bits of the inputs of all layers before the split, None for float; a tuple if they differ."""
        if self.layer_act_bits is None:
            return self.act_bits
        found = tuple(None if bits == FLOAT_BITS else bits for bits in self.layer_act_bits)
        return found[0] if len(set(found)) == 1 else found

    @property
    def unbuildable(self) -> str | None:
        """Why this network cannot be built, in a few words; None if it can."""
        if self.blocks is not None:
            try:
                self.cnn_layers  # noqa: B018
            except ValueError:
                return "blocks larger than their image"
        for axis, bits in ((LAYER_BITS, self.layer_bits), (LAYER_ACT_BITS, self.layer_act_bits)):
            layers = len(self.structure.layers)
            if bits is not None and len(bits) != layers:
                entries = format_count(len(bits), "number")
                return f"{axis.name} with {entries} for {format_count(layers, 'layer')}"
        return None

    @property
    def sizes(self) -> Sizes:
        """The bytes of one replica."""
        bits = (self.bits, self.input_bits, self.levels, self.granularity)
        return _sizes(self.structure, self.depth, *bits, self.decompose, self.overhead)

    @property
    def structure(self) -> Structure:
        """The layers of the network before it is split."""
        if self.own_model:
            assert self.own_model.structure is not None, "its factory has not been asked for these hidden widths"
            return self.own_model.structure
        info = self.info
        outputs = task_of(self.task).outputs(info)
        normalised = {"none": 0, "dataset": 1, "feature": info.inputs}[self.normalize]
        if self.cnn_layers is not None:
            return cnn_structure(self.cnn_layers, self.hidden, outputs, self.batch_norm, normalised, self.bias)
        return mlp_structure(info.inputs, self.hidden, outputs, self.batch_norm, normalised, self.bias)

    @property
    def cnn_blocks(self) -> tuple[str, ...] | None:
        """The blocks of a `cnn`, by the axis `blocks` or the model; None if it is none."""
        return self.model_blocks if self.blocks is None else self.blocks

    @property
    def cnn_layers(self) -> tuple[CnnLayer, ...] | None:
        """The layers before the hidden ones, if it is a `cnn`."""
        if (blocks := self.cnn_blocks) is None:
            return None
        image = self._whole_info.pixels_at(self.resolution)
        assert image is not None, "a sweep file with other data is refused"
        return list_cnn_layers(blocks, self.channels, self.padding or PADDINGS[0], image)

    @property
    def info(self) -> DatasetInfo:
        """The sizes of its data, as the network sees them: with images averaged down."""
        return self._whole_info.averaged(self.resolution)

    @property
    def averaging(self) -> Averaging | None:
        """How its images are averaged down; None if they stay as they are."""
        return self._whole_info.averaging(self.resolution)

    @property
    def _whole_info(self) -> DatasetInfo:
        return self.own_data.info if self.own_data else dataset_of(self.dataset).info

    @property
    def label(self) -> str:
        """The configuration in a few words (see `axes.label`)."""
        return label(self.cells)

    @property
    def columns(self) -> dict[str, Any]:
        """The columns of a row that are known before training."""
        return {
            "trial_id": self.trial_id,
            **self.cells,
            "dataset": self.dataset,
            "model": self.own_model.factory if self.own_model else "mlp" if self.cnn_blocks is None else "cnn",
            **known_before(self),
            "inner_dims": self.structure.inner_dims(self.depth, self.decompose),
        }

    @property
    def identity(self) -> dict[str, Any]:
        """The content that `trial_id` hashes; JSON-able."""
        data = {field.name: getattr(self, field.name) for field in fields(self) if not field.name.startswith("own_")}
        if self.own_model:  # the source of a factory names what it builds; without a factory the key is absent
            data["own_model"] = {"factory": self.own_model.factory, "sha256": self.own_model.sha256}
            if self.own_model.structure and self.own_model.structure.loaded:
                data["own_model"]["loaded"] = self.own_model.structure.loaded
            if self.own_model.structure and self.own_model.structure.later_kinds:
                data["own_model"]["kinds"] = self.own_model.structure.later_kinds
        if self.own_data:
            data["own_data"] = {"sha256": self.own_data.sha256, "content": self.own_data.content}
        for name, default in _LATER_FIELDS.items():  # results that are older than these fields keep their id
            if data[name] == default:
                del data[name]
        if self.act_bits is not None or self.layer_act_bits is not None:
            data["inputs"] = INPUTS_VERSION
        phases = {"warmup": self.warmup.recipe, "qat": self.qat.recipe}
        for axis in AXES:  # results that are older than an axis keep their id
            for group in (phases.values() if axis.phase else [data]) if axis.is_new else ():
                key = axis.home[-1] if axis.phase else axis.name
                if group[key] == axis.before:
                    del group[key]
        del data["model_blocks"]
        blocks = {} if self.cnn_blocks is None else {"blocks": list(self.cnn_blocks)}
        return data | blocks | phases | {"hidden": list(self.hidden), "seeds": list(self.seeds)}


def _digest(data: Mapping[str, Any]) -> str:
    text = json.dumps({**data, "results_version": RESULTS_VERSION}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=100_000)  # the points of the largest grid
def _sizes(structure: Structure, *axes: Any) -> Sizes:
    # A grid repeats a size for each activation, scale, init and learning rate.
    return structure.sizes(*axes)
