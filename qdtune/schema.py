"""The groups of a sweep file, key by key, and what may be named in them.

Each type of a value carries its rule (`rules.py`), which also writes the message when it is broken; pydantic does the
structure. All groups are frozen and know no keys but their own.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import TypedDict  # pydantic wants this one below Python 3.12

from qdtune.ledger import Parts
from qdtune.names import (
    ACTIVATIONS,
    AUGMENTS,
    BUDGETS,
    COMPILES,
    DATASETS,
    DECOMPOSED,
    FACTOR_INITS,
    GRANULARITIES,
    HIDDEN,
    LEVELS,
    NORMS,
    ORDERS,
    PRUNERS,
    SCALES,
    SIGNALS,
    DatasetInfo,
    text_of,
)
from qdtune.rules import choice, flag, matching, number, share, shown, whole

T = TypeVar("T")


def _as_list(value: Any) -> Any:
    return value if value is None or isinstance(value, list | tuple) else [value]


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{text_of(value)} appears twice")
        seen.add(value)
    return values


def _some(values: tuple[T, ...]) -> tuple[T, ...]:
    # Not pydantic's min_length: that counts only the items without a mistake, and then adds one of its own.
    if not values:
        raise ValueError("empty list (give at least one value)")
    return values


def _name(text: str) -> str | None:
    device = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", text)
    fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text) and not text.endswith(".")
    return text if fits and not device else None


_CONSTRAINT = re.compile(rf"\s*({'|'.join(BUDGETS)})\s*(<=|>=|==|<|>)\s*([-+]?\d{{1,30}}(?:\.\d*)?(?:[eE]\d\d?)?)\s*")


def _constraint(text: str) -> str | None:
    found = _CONSTRAINT.fullmatch(text)
    return " ".join(found.groups()) if found else None


def _factory(text: str) -> str | None:
    return text if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", text, re.ASCII) else None


def _digest(text: str) -> str | None:
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else None


Distinct = Annotated[tuple[T, ...], AfterValidator(_distinct)]
Several = Annotated[tuple[T, ...], AfterValidator(_some), AfterValidator(_distinct)]

Depth = Annotated[int, whole(1, 64)]
WeightBits = Annotated[int, whole(1, 16, 32)]
Activation = Annotated[str, choice(ACTIVATIONS)]
ActBits = Annotated[int, whole(1, 16)]
Scale = Annotated[str, choice(SCALES)]
FactorInit = Annotated[str, choice(FACTOR_INITS)]
Augment = Annotated[str, choice(AUGMENTS)]
Granularity = Annotated[str, choice(GRANULARITIES)]
Levels = Annotated[str, choice(LEVELS)]
Decomposed = Annotated[str, choice(DECOMPOSED)]
Width = Annotated[int, whole(1, 65_536)]
Widths = Annotated[tuple[Width, ...], AfterValidator(_some), BeforeValidator(_as_list)]
Rate = Annotated[float, number("a finite number above 0", lambda x: x > 0)]
Seconds = Annotated[float, number("seconds, above 0", lambda x: x > 0)]
Momentum = Annotated[float, number("0 or more, below 1", lambda x: 0 <= x < 1)]
Seed = Annotated[int, whole(0, 2**32 - 1)]
Flag = Annotated[bool, flag()]
Norm = Annotated[bool | str, flag(NORMS)]
RunName = Annotated[
    str, matching("letters, digits, . _ - ; starts with a letter or digit; at most 64; no device name", _name)
]
Constraint = Annotated[
    str,
    matching(f"like 'size_bytes <= 8192': one of {', '.join(BUDGETS)}; <= < >= > ==; a number", _constraint),
]

Factory = Annotated[str, matching("package.module:function", _factory)]
Digest = Annotated[str, matching("64 hexadecimal digits", _digest)]
Count = Annotated[int, whole(1, 2**40)]


# --- The shape of a sweep file.


class Frozen(BaseModel):
    """A group of keys; others than its own are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Axis(Frozen, Generic[T]):
    """The values of one axis: written {value: x} or {values: [x, y]}."""

    values: Several[T]

    @model_validator(mode="before")
    @classmethod
    def _one_value(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            raise ValueError(f"{shown(data)} is not an axis (write {{value: x}} or {{values: [x, y]}})")
        if "value" not in data:
            return data
        if "values" in data:
            raise ValueError("has both 'value' and 'values' (one of them)")
        return {key: value for key, value in data.items() if key != "value"} | {"values": [data["value"]]}

    @property
    def choices(self) -> tuple[T, ...] | None:
        """Every value that can occur; None where they cannot be listed."""
        return self.values

    def holds(self, value: T) -> bool:
        """Whether `value` can occur."""
        return value in self.values


class NumberAxis(Axis[T], Generic[T]):
    """An axis that may also be a range: {min: a, max: b, distribution: uniform | log_uniform | int_uniform}.

    A range of a whole-number axis holds whole numbers, both ends included.
    """

    values: Several[T] | None = None  # type: ignore[assignment]  # a range has none
    min: T | None = None
    max: T | None = None
    distribution: Annotated[str, choice(("uniform", "log_uniform", "int_uniform"))] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> NumberAxis[T]:
        ends = (self.min, self.max)
        if self.values is not None:
            if ends != (None, None) or self.distribution:
                raise ValueError("has both values and a range (one of them)")
        elif self.min is None or self.max is None:
            raise ValueError("has no values (write {value: x}, {values: [x, y]} or {min: a, max: b})")
        elif not self.min < self.max:  # type: ignore[operator]
            raise ValueError(f"min {self.min} is not below max {self.max}")
        elif self.distribution == ("log_uniform" if isinstance(self.min, int) else "int_uniform"):
            kind = "whole" if isinstance(self.min, int) else "real"
            raise ValueError(f"{self.distribution} is not possible on an axis of {kind} numbers")
        return self

    @property
    def choices(self) -> tuple[T, ...] | None:
        if self.values is None and isinstance(self.min, int):
            return tuple(range(self.min, self.max + 1))  # type: ignore[arg-type, operator]
        return self.values

    def holds(self, value: T) -> bool:
        if self.values is not None:
            return value in self.values
        return value is not None and self.min <= value <= self.max  # type: ignore[operator]


def _always(value: object) -> Any:
    return Field({"values": [value]}, validate_default=True)


class Parameters(Frozen):
    """The axes; the last four come from `model` and `train` where they are not given."""

    depth: NumberAxis[Depth] = _always(1)
    weight_bits: NumberAxis[WeightBits] = _always(32)
    activation: Axis[Activation] = _always("identity")
    act_bits: NumberAxis[ActBits | None] = _always(None)
    scale: Axis[Scale] = _always("absmean")
    factor_init: Axis[FactorInit] = _always("orthogonal")
    granularity: Axis[Granularity] = _always("tensor")
    levels: Axis[Levels] = _always("symmetric")
    decompose: Axis[Decomposed] = _always("all")
    hidden: Axis[Widths] | None = None
    warmup_lr: NumberAxis[Rate] | None = None
    qat_lr: NumberAxis[Rate] | None = None
    augment: Axis[Augment] | None = None


class Excluded(TypedDict, total=False):
    """A partial assignment of axes: what it names is not run."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    depth: Depth
    weight_bits: WeightBits
    activation: Activation
    act_bits: ActBits | None
    scale: Scale
    factor_init: FactorInit
    granularity: Granularity
    levels: Levels
    decompose: Decomposed
    hidden: Widths
    warmup_lr: Rate
    qat_lr: Rate
    augment: Augment


class Plugged(Frozen):
    """A group whose content has a name of ours or comes from a factory, a function of the user's.

    `sha256` is that of the factory's source: found when it is imported, or given, to be held against it.
    """

    factory: Factory | None = None
    sha256: Digest | None = None

    _found: ClassVar[tuple[str, ...]]  # what else is known once the factory has been called
    _name: ClassVar[str]

    @model_validator(mode="after")
    def _one_origin(self) -> Plugged:
        named = getattr(self, self._name) is not None
        if named == (self.factory is not None):
            what = f"both {self._name!r} and" if named else f"neither {self._name!r} nor"
            raise ValueError(f"has {what} 'factory' (one of them)")
        for key in ("sha256", *self._found):
            if named and getattr(self, key) is not None:
                raise ValueError(f"{key} is for a factory only")
        return self


class Data(Plugged):
    """What is trained on, and how many training samples (>= 1) judge instead of train.

    Either data sets in order of preference, or a factory; of that `content` is the hash of its arrays, `shape` the
    number of training samples, inputs and classes.
    """

    dataset: Annotated[Several[Annotated[str, choice(DATASETS)]], BeforeValidator(_as_list)] | None = None
    val_size: Annotated[int, whole(1, 10_000_000)] = 5000
    content: Digest | None = None
    shape: tuple[Count, Count, Count] | None = None

    _found: ClassVar = ("content", "shape")
    _name: ClassVar = "dataset"

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets in order of preference, or the factory."""
        return self.dataset or (self.factory or "",)

    @property
    def info(self) -> DatasetInfo | None:
        """Sizes of the first data set; None where its factory has not been called."""
        if self.dataset:
            return DATASETS[self.dataset[0]]
        return self.shape and DatasetInfo(*self.shape)


class Model(Plugged):
    """The network before it is factorised: its hidden widths, and what is normalised (see `names.NORMS`).

    Of a factory's, `built` says what it consists of, by hidden widths as they stand in tables.
    """

    name: Annotated[str, choice(("mlp",))] | None = None
    hidden: Widths = HIDDEN
    batch_norm: Norm = False
    built: dict[str, Parts] | None = None

    _found: ClassVar = ("built",)
    _name: ClassVar = "name"

    @model_validator(mode="before")
    @classmethod
    def _default(cls, data: Any) -> Any:
        return {"name": "mlp", **data} if isinstance(data, dict) and data.get("factory") is None else data

    @model_validator(mode="after")
    def _norm_is_ours(self) -> Model:
        if self.factory and self.batch_norm:
            raise ValueError("batch_norm is for mlp only (a factory has the layers that it builds)")
        return self


class Phase(Frozen):
    """One part of a training: `epochs` at learning rate `lr`.

    With `augment` each image is distorted, every epoch anew: moved by up to one pixel (`shift`) or bent (`elastic`).
    """

    epochs: Annotated[int, whole(0, 100_000)]
    optimizer: Annotated[str, choice(("sgd", "adam"))] = "sgd"
    lr: Rate
    momentum: Momentum = 0.0
    schedule: Annotated[str, choice(("constant", "cosine"))] = "constant"
    augment: Augment = "none"

    @model_validator(mode="after")
    def _momentum_has_a_use(self) -> Phase:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum is for sgd only (optimizer is {self.optimizer})")
        return self


class Warmup(Phase):
    """Float training before anything is quantised."""

    epochs: Annotated[int, whole(0, 100_000)] = 5
    lr: Rate = 0.1


class Qat(Phase):
    """Quantisation-aware training."""

    epochs: Annotated[int, whole(1, 100_000)] = 10
    lr: Rate = 0.01


class Train(Frozen):
    """How every configuration is trained; `batch_size` in samples."""

    batch_size: Annotated[int, whole(1, 10_000_000)] = 64
    warmup: Warmup = Warmup()
    qat: Qat = Qat()


class EarlyTerminate(Frozen):
    """Which rule stops weak trials during QAT; every key that belongs to `type` has a value, the others are None.

    Accuracies are fractions, epochs are QAT epochs from 1: warm-up epochs never count.
    """

    type: Annotated[str, choice(PRUNERS)] = "none"
    scope: Annotated[str, choice(("size", "all"))] | None = None
    margin: Annotated[float, number("an accuracy, 0 to 1", lambda x: 0 <= x <= 1)] | None = None
    signal: Annotated[str, choice(SIGNALS)] | None = None
    min_epochs: Annotated[int, whole(1, 100_000)] | None = None
    patience: Annotated[int, whole(1, 100_000)] | None = None
    min_delta: Annotated[float, number("an accuracy, 0 to 1", lambda x: 0 <= x <= 1)] | None = None
    n_startup_trials: Annotated[int, whole(0, 1_000_000)] | None = None
    n_warmup_steps: Annotated[int, whole(0, 100_000)] | None = None
    interval_steps: Annotated[int, whole(1, 100_000)] | None = None
    percentile: Annotated[float, number("0 to 100", lambda x: 0 <= x <= 100)] | None = None
    min_resource: Annotated[int, whole(1, 100_000)] | None = None
    reduction_factor: Annotated[int, whole(2, 1000)] | None = None
    lower: Annotated[float, number("an accuracy, 0 to 1", lambda x: 0 <= x <= 1)] | None = None
    p_threshold: Annotated[float, number("above 0, up to 1", lambda x: 0 < x <= 1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        kind = data.get("type", "none")
        return {**PRUNERS.get(kind, {}), **data} if isinstance(kind, str) else data

    @model_validator(mode="after")
    def _keys_of_type(self) -> EarlyTerminate:
        own = PRUNERS[self.type]
        for key in type(self).model_fields:
            if key != "type" and key not in own and getattr(self, key) is not None:
                own_keys = ", ".join(own) or "it has none: name a type, such as pareto"
                raise ValueError(f"{key} is no key of type {self.type} ({own_keys})")
            if key in own and getattr(self, key) is None:
                raise ValueError(f"{key} must have a value (default: {own[key]})")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The keys of this type with their values."""
        return {key: getattr(self, key) for key in PRUNERS[self.type]}

    @property
    def keeps_front(self) -> bool:
        """Whether a trial is compared only with trials that are not larger, so that no front member is in the way."""
        return self.type == "pareto" or self.scope == "size"


class Replicate(Frozen):
    """After the search: how many seeds the front, and what is less than `within` (accuracy) behind it, shall have."""

    front: Annotated[int, whole(2, 10_000)]
    within: Annotated[float, number("an accuracy, 0 to 1", lambda x: 0 <= x <= 1)] = 0.005


class Resources(Frozen):
    """What one trial holds, in GPUs (auto: measured when the sweep starts) and CPU cores, in whole 1/10000ths."""

    gpu: Annotated[
        float | Literal["auto"],
        share("0, a fraction of 0.0001 to 1 such as 1/3, a whole number, or auto", 0, ["auto"]),
    ] = 0.125
    cpu: Annotated[float, share("a fraction of 0.0001 to 1, or a whole number", 1)] = 1.0


class Run(Frozen):
    """The order in which what is planned starts, limits (None: none; times in seconds), and what is compiled."""

    order: Annotated[str, choice(ORDERS)] = "small_first"
    max_concurrent_trials: Annotated[int, whole(1, 100_000)] | None = None
    time_budget_s: Seconds | None = None
    max_failures: Annotated[int, whole(0, 1000)] = 2
    trial_timeout_s: Seconds | None = None
    stall_timeout_s: Seconds | None = None
    compile: Annotated[str, choice(COMPILES)] = "auto"
