"""The run that `qdtune.load` and `qdtune.run` return."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdtune.commands.arguments import check_arguments, read_path
from qdtune.messages import Problem, SpecError, describe_unknown, format_value, python_names, user_error
from qdtune.report.drawn_run import DrawnRun

if TYPE_CHECKING:
    from qdtune.model.formats.format import Format


@dataclass(frozen=True, repr=False)
class LoadedRun(DrawnRun):
    """A run in Python: read, drawn and exported."""

    @python_names()
    def export(
        self,
        trial: str | None = None,
        *,
        out: str | os.PathLike[str],
        front: bool = False,
        format: str = "packed",
        seed: int | None = None,
        **options: str | bool,
    ) -> list[Path]:
        """Writes trained models as `qdtune export` does; returns the path of each model.

        Args:
            trial: the configuration of this trial: its id, or how that begins.
            out: the folder for the files, on this machine.
            front: every configuration on the front of this run, instead of one trial.
            format: the format of the files, as of `--format`.
            seed: this seed, and not the best one on the validation split.
            options: options of the format, such as `target="..."` for `--target ...`, and `measure=True` for
                `--measure`.

        Raises:
            SpecError: a wrong argument, or a model that cannot be exported; the others are written.
            StorageError: the run folder cannot be read, or the files cannot be written.
        """
        from qdtune.commands.export import export_models  # all formats
        from qdtune.model.formats.known import FORMAT_NAMES, format_of

        check_arguments({"trial": trial, "out": out, "front": front, "format": format, "seed": seed})
        if front == (trial is not None):
            raise user_error("export takes a trial or front=True, one of them")
        if format not in FORMAT_NAMES:
            raise user_error(describe_unknown("format ", format, FORMAT_NAMES))
        form, folder = format_of(format), read_path("out", out)
        trials = None if trial is None else [trial]
        if front and self.budget is not None:
            trials = self.front()["trial_id"].to_pylist()
        exported = export_models(self.where, trials, folder, form, _read_options(form, options), seed)
        if exported.without_weights:
            raise SpecError([Problem(None, (), line) for line in exported.without_weights])
        return [Path(folder) / f"{model.name}{form.suffix}" for model in exported.models]


def _read_options(form: Format, given: Mapping[str, Any]) -> dict[str, str]:
    """Flag -> value for each option of a format, by name: `target` for `--target`."""
    known = {one.flag.removeprefix("--").replace("-", "_"): one for one in form.options}
    arguments = [name for name in inspect.signature(LoadedRun.export).parameters if name not in ("self", "options")]
    from qdtune.model.formats.format import GIVEN

    values = {one.flag: one.default for one in known.values()}
    for name, value in given.items():
        if name not in known:
            raise user_error(describe_unknown("argument ", name, [*arguments, *known]))
        if known[name].is_switch:
            if not isinstance(value, bool):
                raise user_error(f"{name} must be True or False, got {format_value(value)}")
            values[known[name].flag] = GIVEN if value else known[name].default
            continue
        check_arguments({name: value})
        if known[name].choices and value not in known[name].choices:
            raise user_error(describe_unknown(f"{name} ", value, known[name].choices))
        values[known[name].flag] = value
    return values
