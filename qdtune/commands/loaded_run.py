"""The run that `qdtune.load` and `qdtune.run` return."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qdtune.report.drawn_run import DrawnRun


@dataclass(frozen=True, repr=False)
class LoadedRun(DrawnRun):
    """A run in Python: read, drawn and exported."""

    def export(
        self,
        trial: str | None = None,
        *,
        out: str | os.PathLike[str],
        front: bool = False,
        format: str = "packed",
        seed: int | None = None,
        **options: str,
    ) -> list[Path]:
        """Writes trained models as `qdtune export` does; returns the path of each model.

        Args:
            trial: the configuration of this trial: its id, or how that begins.
            out: the folder for the files, on this machine.
            front: every configuration on the front of this run, instead of one trial.
            format: the format of the files, as of `--format`.
            seed: this seed, and not the one of best validation accuracy.
            options: options of the format, such as `target="..."` for `--target ...`.

        Raises:
            SpecError: a wrong argument, or a model that cannot be exported.
            StorageError: the run folder cannot be read, or the files cannot be written.
        """
        from qdtune.commands.export import export_models, read_arguments  # all formats
        from qdtune.messages import user_error
        from qdtune.model.formats.known import format_of

        if front == (trial is not None):
            raise user_error("export takes a trial or front=True, one of them")
        more = [] if seed is None else ["--seed", str(seed)]
        more += [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        which = [["--trial", str(trial)]]
        if front and self.budget is None:
            which = [["--front"]]
        elif front:
            which = [["--trial", trial_id] for trial_id in self.front()["trial_id"].to_pylist()]
        paths = []
        for one in which:
            given = [os.fspath(self.where), *one, "--out", os.fspath(out), "--format", format, *more]
            arguments = read_arguments(given)
            models, _, _ = export_models(arguments)
            paths += [Path(arguments.out) / f"{model.name}{format_of(format).suffix}" for model in models]
        return paths
