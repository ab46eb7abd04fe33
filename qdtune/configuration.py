"""One configuration with everything that changes its result, and the hashes by which its files are found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from qdtune.ledger import Ledger, Parts, mlp_parts
from qdtune.names import AXES, DATASETS, SINCE, DatasetInfo, label, text_of
from qdtune.schema import Phase

QUANTISED = frozenset({"weight_bits", "act_bits", "scale", "granularity", "levels", "inputs", "qat"})
INPUTS_VERSION = 2  # as the next one, for quantised inputs alone: since 2 those that are never negative waste no code
RESULTS_VERSION = 1  # raise it when the same configuration would give other numbers: old results then do not count


class OwnModel(NamedTuple):
    """A model of the user's: its factory, the sha256 of that one's source, what it builds (None: not asked)."""

    factory: str
    sha256: str
    parts: Parts | None = None


class OwnData(NamedTuple):
    """Data of the user's: the sha256 of the factory's source and of the arrays it gave, and their sizes."""

    sha256: str
    content: str
    info: DatasetInfo


@dataclass(frozen=True)
class Trial:
    """One configuration, with everything that changes its result.

    Attributes:
        depth: factors per layer.
        weight_bits, act_bits: bits of weights (32: float) and of layer inputs (None: float).
        activation: what stands between the factors of one layer.
        scale, factor_init: how step sizes and first weights are chosen.
        hidden: widths of the hidden layers before factorisation.
        batch_norm: whether hidden layers are normalised; a word of `names.NORMS`: what else is.
        dataset, val_size: what it is trained on, and how many training samples judge it; of data of the user's own
            the factory's name.
        batch_size: samples per step.
        warmup, qat: float training, then quantised training; `lr` is this configuration's own.
        seeds: one replica each, trained together.
        own_model, own_data: where these come from factories.
        granularity, levels: of weights: step sizes for each tensor or output channel, and which codes there are.
        decompose: which layers are split: all, or those before the head.
    """

    depth: int
    weight_bits: int
    activation: str
    act_bits: int | None
    scale: str
    factor_init: str
    hidden: tuple[int, ...]
    batch_norm: bool | str
    dataset: str
    val_size: int
    batch_size: int
    warmup: Phase
    qat: Phase
    seeds: tuple[int, ...]
    own_model: OwnModel | None = None
    own_data: OwnData | None = None
    granularity: str = "tensor"
    levels: str = "symmetric"
    decompose: str = "all"

    @cached_property
    def trial_id(self) -> str:
        """12 hexadecimal digits, the same for the same configuration on any machine."""
        return _digest(self.to_dict())

    @property
    def warmup_base(self) -> Trial:
        """What is warmed up: this network, or with `svd` the undivided one, for all depths, which is split then."""
        if self.factor_init != "svd":
            return self
        return replace(self, depth=1, activation="identity", factor_init="default", decompose="all")

    @property
    def warmup_id(self) -> str:
        """As `trial_id`, over what the float warm-up depends on: neither bits nor step sizes nor QAT."""
        data = self.warmup_base.to_dict()
        return _digest({key: data[key] for key in data.keys() - QUANTISED})

    @property
    def values(self) -> dict[str, Any]:
        """The axes, typed."""
        trained = {"warmup_lr": self.warmup.lr, "qat_lr": self.qat.lr, "augment": self.qat.augment}
        return {axis: trained[axis] if axis in trained else getattr(self, axis) for axis in AXES}

    @property
    def config(self) -> dict[str, Any]:
        """The axes as they stand in tables; hidden widths as text: '64-32'."""
        return self.values | {"hidden": text_of(self.hidden)}

    @property
    def ledger(self) -> Ledger:
        """The bytes of one replica."""
        bits = (self.weight_bits, self.act_bits, self.levels, self.granularity)
        return _ledger(self.parts, self.depth, *bits, self.decompose)

    @property
    def parts(self) -> Parts:
        """What the network consists of before it is split."""
        if self.own_model:
            assert self.own_model.parts is not None, "its factory has not been asked for these hidden widths"
            return self.own_model.parts
        info = self.own_data.info if self.own_data else DATASETS[self.dataset]
        return mlp_parts(info.inputs, self.hidden, info.classes, self.batch_norm)

    @property
    def label(self) -> str:
        """The configuration in a few words, see `names.label`."""
        return label(self.config)

    @property
    def columns(self) -> dict[str, Any]:
        """What a row of the tables says of a configuration before it is trained."""
        ledger = self.ledger
        return {
            "trial_id": self.trial_id,
            **self.config,
            "dataset": self.dataset,
            "model": self.own_model.factory if self.own_model else "mlp",
            "params": ledger.params,
            "size_bytes": ledger.size_bytes,
            "weight_bytes": ledger.weight_bytes,
            "scale_bytes": ledger.scale_bytes,
            "bias_bytes": ledger.bias_bytes,
            "other_bytes": ledger.other_bytes,
            "fp32_bytes": ledger.fp32_bytes,
            "inner_dims": self.parts.inner_dims(self.depth, self.decompose),
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what `trial_id` hashes."""
        data = {field.name: getattr(self, field.name) for field in fields(self) if not field.name.startswith("own_")}
        if self.own_model:  # what a factory gives is named by its source; where there is none, nothing is said of it
            data["own_model"] = {"factory": self.own_model.factory, "sha256": self.own_model.sha256}
        if self.own_data:
            data["own_data"] = {"sha256": self.own_data.sha256, "content": self.own_data.content}
        for axis, always in SINCE.items():
            if data.get(axis) == always:
                del data[axis]
        if self.act_bits is not None:
            data["inputs"] = INPUTS_VERSION
        phases = {"warmup": self.warmup.model_dump(), "qat": self.qat.model_dump()}
        for phase in phases.values():
            if phase["augment"] == SINCE["augment"]:
                del phase["augment"]
        return data | phases | {"hidden": list(self.hidden), "seeds": list(self.seeds)}


def _digest(data: Mapping[str, Any]) -> str:
    text = json.dumps({**data, "results_version": RESULTS_VERSION}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=100_000)  # as many as the largest grid has points
def _ledger(parts: Parts, *axes: Any) -> Ledger:
    # A grid names a size many times: once per activation, scale, init and learning rate.
    return parts.ledger(*axes)
