"""The interface of an export format: `qdtune export` knows formats by this alone.

A format is one file beside this one, with one frozen object of a class of its own, named in `known.FORMATS`. The
modules of formats are imported for `qdtune export --help`, so each imports torch and its own library only inside the
functions that need them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdtune.reader import AVERAGE, INPUT, Model
from qdtune.spec.configuration import Configuration


@dataclass(frozen=True)
class TrainedModel:
    """One seed of a configuration, chosen to be exported.

    Attributes:
        entry: the row of the configuration in the Pareto table.
        row: the row of this seed in the table `trials`.
        trial: the configuration, as it was trained.
        blob: the packed file of this seed, see `model/packed.py`.
        model: the same, read.
        metadata: of the result file that holds the row.
    """

    entry: Mapping[str, Any]
    row: Mapping[str, Any]
    trial: Configuration
    blob: bytes
    model: Model
    metadata: Mapping[str, str]

    @property
    def name(self) -> str:
        """The trial_id, after which its files are named."""
        return str(self.entry["trial_id"])


def is_pixels(program: Mapping[str, Any]) -> bool:
    """Whether the rows that a packed program takes are uint8, and are normalised as pixels."""
    return INPUT not in program


def averaging_of(program: Mapping[str, Any]) -> dict[str, Any] | None:
    """The operation of a packed program that averages its images down; None if it takes them as they are."""
    ops: list[dict[str, Any]] = program["ops"]
    return ops[0] if ops and ops[0]["op"] == AVERAGE else None


def input_words(program: Mapping[str, Any]) -> dict[str, str]:
    """What is said of the rows that a packed program takes.

    The keys are `input`, `dtype`, `values`, `inside` (what the program does first), `floats` and `outputs`.
    """
    if is_pixels(program):
        inside, floats, averaging = "normalised", "pixels / 127.5 - 1", averaging_of(program)
        if averaging is not None:
            size = " x ".join(map(str, averaging["size"]))
            inside = f"averaged down to {size} and normalised"
            floats = f"pixels, averaged down to {size}, / 127.5 - 1"
        words = {"input": "pixels", "dtype": "uint8", "values": "0 to 255", "outputs": "classes"}
        return words | {"inside": inside, "floats": floats}
    dtype = str(program[INPUT])
    words = {"input": "rows", "dtype": dtype, "values": "as the training data had them", "inside": "normalised"}
    return words | {"floats": "the rows as the training data had them", "outputs": "outputs"}


@dataclass(frozen=True)
class OptionalPackage:
    """A package that one format needs and nothing else does: its name, and the command that installs it."""

    name: str
    install: str


GIVEN = "yes"  # the value of a switch


@dataclass(frozen=True)
class FormatOption:
    """An option of `qdtune export` that goes with some formats only. Two formats may share one.

    Attributes:
        flag: such as `--target`.
        default: the value when the option is not given.
        help: one line for `--help`.
        choices: the values that it may have; empty if it may have any.
        is_switch: whether it has no value: it is GIVEN if it is there, and else has its default.
    """

    flag: str
    default: str
    help: str
    choices: tuple[str, ...] = ()
    is_switch: bool = False


@dataclass(frozen=True)
class Checked:
    """What a check of a written file has found.

    Attributes:
        fault: as `must ..., got ...`; None if nothing is wrong.
        note: what the command says of a good file; may be empty, or several lines.
        measured: where it was measured -> figures, for the model card.
    """

    fault: str | None = None
    note: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format(ABC):
    """One export format.

    Attributes:
        name: the value of `--format`.
        suffix: of its files, after the trial_id.
        card_suffix: of the model cards; no other format has the same, because formats may lie side by side.
        usage: what the model card says on how to use the file; it may name the `input_words`, as in `{dtype}`.
        own_usage: the same for a model of the user's own; empty if nothing is different.
        package: the optional package that it needs, if any.
        options: the options of `qdtune export` that it takes.
        closing: what the command says at its end of the shared files.
    """

    name: str
    suffix: str
    card_suffix: str
    usage: str
    package: OptionalPackage | None = None
    options: tuple[FormatOption, ...] = ()
    closing: str = ""
    own_usage: str = ""

    def usage_of(self, model: TrainedModel) -> str:
        """What the model card of one model says on how to use its file."""
        return self.usage if model.model.is_complete else self.own_usage or self.usage

    @abstractmethod
    def write(self, model: TrainedModel, options: Mapping[str, str]) -> bytes:
        """The content of the file of one model.

        Args:
            model: a packed one, of any layers.
            options: flag -> value, for each of the format's `options`.

        Raises:
            SpecError: the format cannot hold this model.
            ImportError: its optional package is missing.
        """

    @abstractmethod
    def check(self, path: Path, model: TrainedModel, options: Mapping[str, str]) -> Checked:
        """What is wrong with a file that was written, or what there is to say of a good one.

        Args:
            path: of the file.
            model, options: those that it was written from.

        Raises:
            OSError: the file cannot be read.
        """

    def files(self, model: TrainedModel, options: Mapping[str, str]) -> dict[str, bytes]:
        """Suffix -> content of the files of one model: that of `write`, and others if the format has several."""
        return {self.suffix: self.write(model, options)}

    def shared_files(self) -> dict[str, bytes]:
        """Name -> content of the files that all models of a folder share."""
        return {}
