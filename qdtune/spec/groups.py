"""The groups of a sweep file, key by key.

The type of each value carries its check (`checks.py`), which also writes the message about a wrong value. pydantic
checks the structure. All groups are frozen, and an unknown key is a mistake. The file is long because it is a list.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, model_validator

from qdtune.datasets.dataset import DTYPES, DatasetInfo
from qdtune.datasets.known import DATASET_NAMES, dataset_of
from qdtune.spec.axes import AUGMENT, HIDDEN
from qdtune.spec.blocks import BLOCK_WORDS, DEFAULT_BLOCKS, PADDINGS, Block
from qdtune.spec.checks import choice, flag, matching, number, share, whole
from qdtune.spec.choices import COMPILES, NORMALIZATIONS, NORMS, ORDERS
from qdtune.spec.loggers import LOGGER_NAMES
from qdtune.spec.objectives import BOUNDED
from qdtune.spec.structure import Structure
from qdtune.spec.tasks import METRIC_NAMES, TASK_NAMES
from qdtune.spec.values import Frozen, Rate, Several, Widths, as_list, cell_text


def _name(text: str) -> str | None:
    device = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", text)
    fits = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text) and not text.endswith(".")
    return text if fits and not device else None


_CONSTRAINT = re.compile(rf"\s*({'|'.join(BOUNDED)})\s*(<=|>=|==|<|>)\s*([-+]?\d{{1,30}}(?:\.\d*)?(?:[eE]\d\d?)?)\s*")


def _constraint(text: str) -> str | None:
    found = _CONSTRAINT.fullmatch(text)
    return " ".join(found.groups()) if found else None


def _factory(text: str) -> str | None:
    return text if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", text, re.ASCII) else None


def _digest(text: str) -> str | None:
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else None


Seconds = Annotated[float, number("seconds, above 0", lambda x: x > 0)]
Momentum = Annotated[float, number("0 or more, below 1", lambda x: 0 <= x < 1)]
PlainShare = Annotated[float, number("0 to 1", lambda x: 0 <= x <= 1)]
Seed = Annotated[int, whole(0, 2**32 - 1)]
Norm = Annotated[bool | str, flag(NORMS)]
RunName = Annotated[
    str, matching("letters, digits, . _ - ; starts with a letter or digit; at most 64; no device name", _name)
]
Constraint = Annotated[
    str,
    matching(f"like 'size_bytes <= 8192': one of {', '.join(BOUNDED)}; <= < >= > ==; a number", _constraint),
]
Factory = Annotated[str, matching("package.module:function", _factory)]
Digest = Annotated[str, matching("64 hexadecimal digits", _digest)]
Count = Annotated[int, whole(1, 2**40)]
MODEL_NAMES = ("mlp", "cnn")


if TYPE_CHECKING:
    Augment: TypeAlias = str
else:
    Augment = AUGMENT.rule


class Plugged(Frozen):
    """A group whose content is named, or built by a factory, which is a function of the user's.

    Attributes:
        factory: your own function, `package.module:function`, instead of a name
        sha256: SHA-256 of the factory's file; filled in at import, or set by you to pin the file
    """

    factory: Factory | None = None
    sha256: Digest | None = None

    _found: ClassVar[tuple[str, ...]]  # further keys that are known once the factory has been called
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


class DataGroup(Plugged):
    """The data: data sets in order of preference, or a factory.

    For a factory, `content` is the hash of its arrays, `shape` holds the training samples, inputs and classes (or
    targets per sample), `image` the channels, height and width of a sample, and `dtype` the type of its rows.

    Attributes:
        dataset: a data set, or a list; the first available one is used
        val_size: training samples held out for validation
        task: what the network is trained for
        metric: by what configurations are judged; null: the first metric of the task
        normalize: rows that are not uint8: taken as they are, or to mean 0 and standard deviation 1, over all
            numbers of the training samples (`dataset`) or each feature by itself (`feature`)
    """

    dataset: Annotated[Several[Annotated[str, choice(DATASET_NAMES)]], BeforeValidator(as_list)] | None = None
    val_size: Annotated[int, whole(1, 10_000_000)] = 5000
    task: Annotated[str, choice(TASK_NAMES)] = "classification"
    metric: Annotated[str, choice(METRIC_NAMES)] | None = None
    normalize: Annotated[str, choice(NORMALIZATIONS)] = "none"
    content: Digest | None = None
    shape: tuple[Count, Count, Count] | None = None
    image: tuple[Count, Count, Count] | None = None
    dtype: Annotated[str, choice(DTYPES)] | None = None

    _found: ClassVar = ("content", "shape", "image", "dtype")
    _name: ClassVar = "dataset"

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets in order of preference, or the factory."""
        return self.dataset or (self.factory or "",)

    @property
    def info(self) -> DatasetInfo | None:
        """The sizes of the first data set; None until its factory has been called."""
        if self.dataset:
            return dataset_of(self.dataset[0]).info
        return self.shape and DatasetInfo(*self.shape, self.image, self.dtype or "uint8")


class ModelGroup(Plugged):
    """The network before it is split: its hidden widths, and which layers are normalised (see `choices.NORMS`).

    For a factory, `built` holds the structures, under the keys that `name_built` makes.

    Attributes:
        name: linear layers with ReLU between them; `cnn`: convolutions with ReLU before them
        hidden: widths of the hidden layers before the split
        batch_norm: batch normalisation after each hidden layer and convolution; `factors`: also between factors
        blocks: of a `cnn`, in turn, if the axis `blocks` has none; null: `[conv 8, dw, pool, dw, pool]`
        padding: of the convolutions of a `cnn`, with zeros: none, or so that images keep their size; null: none
    """

    name: Annotated[str, choice(MODEL_NAMES)] | None = None
    hidden: Widths = HIDDEN.default
    batch_norm: Norm = False
    blocks: Annotated[tuple[Block, ...], BeforeValidator(as_list)] | None = None
    padding: Annotated[str, choice(PADDINGS)] | None = None
    built: dict[str, Structure] | None = None

    _found: ClassVar = ("built",)
    _name: ClassVar = "name"

    @model_validator(mode="before")
    @classmethod
    def _default(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("factory") is not None:
            return data
        named = {"name": "mlp", **data}
        if named["name"] == "cnn":  # the canonical text says what is built
            usual = {"blocks": list(DEFAULT_BLOCKS), "padding": PADDINGS[0]}
            named |= {key: value for key, value in usual.items() if named.get(key) is None}
        return named

    @model_validator(mode="after")
    def _norm_is_ours(self) -> ModelGroup:
        if self.factory and self.batch_norm:
            raise ValueError("batch_norm is for mlp and cnn only (a factory has the layers that it builds)")
        return self

    @model_validator(mode="after")
    def _blocks_are_of_a_cnn(self) -> ModelGroup:
        for key in ("blocks", "padding"):
            if self.name != "cnn" and getattr(self, key) is not None:
                raise ValueError(f"{key} is for name: cnn only")
        if self.blocks == ():
            raise ValueError(f"blocks is an empty list ({BLOCK_WORDS})")
        return self


def name_built(hidden: tuple[int, ...], resolution: int | None) -> str:
    """The key in `ModelGroup.built`: the hidden widths as in tables, such as `64-32`, or `64-32 of 8 pixels`."""
    widths = cell_text(hidden)
    return widths if resolution is None else f"{widths} of {resolution} pixels"


class Phase(Frozen):
    """One part of a training: `epochs` at learning rate `lr`.

    With `augment` each image is distorted, every epoch anew: moved by up to one pixel (`shift`), bent (`elastic`),
    turned, moved and scaled (`affine`), or all of the last four (`affine_elastic`). With `flip`, which may follow
    `shift` and `affine`, half of the images that are not to stay plain are mirrored.

    Attributes:
        epochs: passes over the training set
        optimizer: optimizer
        lr: learning rate
        momentum: momentum of `sgd`
        schedule: learning rate over the epochs
        augment: distortion of each image, drawn anew in every epoch
        plain_share: share of the images that `augment` leaves as they are, drawn anew in every epoch; null: 0
        min_steps: minimum number of steps; on a small data set the phase gets more epochs to reach it
    """

    epochs: Annotated[int, whole(0, 100_000)]
    optimizer: Annotated[str, choice(("sgd", "adam"))] = "sgd"
    lr: Rate
    momentum: Momentum = 0.0
    schedule: Annotated[str, choice(("constant", "cosine"))] = "constant"
    augment: Augment = AUGMENT.default
    plain_share: PlainShare | None = None
    min_steps: Annotated[int, whole(1, 10_000_000)] | None = None

    def epochs_of(self, steps: int) -> int:
        """The epochs of this phase, `min_steps` or more in all, where an epoch has so many steps (>= 1)."""
        return max(self.epochs, -(-(self.min_steps or 0) // steps))

    @property
    def recipe(self) -> dict[str, Any]:
        """JSON-able: what decides the numbers of a training; `min_steps` has been turned into epochs by then."""
        is_idle = not self.plain_share or self.augment == "none"
        return self.model_dump(exclude={"min_steps", "plain_share"} if is_idle else {"min_steps"})

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
    """How every configuration is trained.

    Attributes:
        batch_size: samples per step
    """

    batch_size: Annotated[int, whole(1, 10_000_000)] = 64
    warmup: Warmup = Warmup()
    qat: Qat = Qat()


class Resources(Frozen):
    """What one trial holds, in GPUs (auto: measured when the sweep starts) and CPU cores, in whole 1/10000ths.

    Attributes:
        gpu: GPU share or number of GPUs per trial; `auto` measures it at the start
        cpu: CPU cores per trial
    """

    gpu: Annotated[
        float | Literal["auto"],
        share("0, a fraction of 0.0001 to 1 such as 1/3, a whole number, or auto", 0, ["auto"]),
    ] = 0.125
    cpu: Annotated[float, share("a fraction of 0.0001 to 1, or a whole number", 1)] = 1.0


class RunGroup(Frozen):
    """The order in which what is planned starts, limits (None: none; times in seconds), what is compiled, and who is
    told of it.

    Attributes:
        order: start order of a grid: by bytes, at random or as listed
        max_concurrent_trials: trials at a time; null: as many as the resources allow
        time_budget_s: seconds for one launch; the same command finishes the rest
        max_failures: restarts of a trial after its worker was lost
        trial_timeout_s: seconds for one trial
        stall_timeout_s: seconds without a report from a trial, compiling included
        compile: which training steps to compile; `auto`: QAT of 2,500 steps or more, warm-ups of 20,000; on a CPU no
            convolutions
        loggers: trackers that the sweep reports to
    """

    order: Annotated[str, choice(ORDERS)] = "small_first"
    max_concurrent_trials: Annotated[int, whole(1, 100_000)] | None = None
    time_budget_s: Seconds | None = None
    max_failures: Annotated[int, whole(0, 1000)] = 2
    trial_timeout_s: Seconds | None = None
    stall_timeout_s: Seconds | None = None
    compile: Annotated[str, choice(COMPILES)] = "auto"
    loggers: Annotated[Several[Annotated[str, choice(LOGGER_NAMES)]], BeforeValidator(as_list)] | None = None
