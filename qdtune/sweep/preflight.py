"""What has to hold before a launch makes anything: versions, an address that answers, a run folder with room.

Nothing is written here, Ray is not imported. What goes wrong later, while a sweep runs, is a `StorageError`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from qdtune.messages import SpecError, one_line, user_error
from qdtune.spec.choices import PLANNED
from qdtune.spec.plan import Plan, check_comparable
from qdtune.spec.sweep_file import Spec
from qdtune.sweep.cluster import NoClusterError, knock

LEAST = {
    "ray": (2, 56),
    "torch": (2, 6),
    "pyarrow": (18, 0),
}  # as in pyproject.toml; older ones may run code they read
# Bytes of a run folder (measured): Parquet files, study and table of a configuration; a row of its history; an epoch
# in the study; what the file of its weights says of each factor.
CONFIGURATION, ROW, EPOCH, FACTOR = 21_000, 30, 150, 400


def preflight(spec: Spec, planned: Plan | None, runs_dir: str, address: str | None, fresh: bool = False) -> None:
    """Returns where a sweep can start as far as can be known before; nothing is made.

    Args:
        spec: as loaded.
        planned: of the spec resolved on the first of its data sets; None where a factory has still to be called.
        runs_dir: where run folders are made; of a URL (`scheme://...`) nothing is looked at.
        address: of a running Ray cluster, None for one that is started here.
        fresh: whether what is in the run folder is going to be set aside.

    Raises:
        SpecError: what stands in the way, and what to do.
    """
    check_versions()
    if "://" not in runs_dir:
        folder = Path(runs_dir) / spec.name
        try:
            _check_kind(folder, Path(runs_dir))
            _check_place(folder)
            if planned is not None:
                _check_room(folder, room(spec, planned), fresh)
        except (OSError, ValueError) as error:
            if isinstance(error, SpecError):
                raise
            what = getattr(error, "strerror", None) or error
            raise user_error(f"cannot write to {_named(folder)}: {what} (choose another --runs-dir)") from None
        if not fresh and spec.data.dataset and not spec.model.factory:  # else it is known when that was asked
            _check_some_data_set(spec, spec.data.dataset, folder)
    if address is not None:
        try:
            knock(address)
        except NoClusterError as error:
            raise user_error(one_line(str(error))) from None


def check_versions() -> None:
    """Raises SpecError where a library is older than `LEAST`."""
    for name, least in LEAST.items():
        found = version(name)
        if tuple(int(n) for n in re.findall(r"\d+", found)[:2]) < least:
            wanted = ".".join(map(str, least))
            raise user_error(f"{name} must be {wanted} or newer, got {found} (pip install -U {name})")


def room(spec: Spec, planned: Plan) -> int:
    """About how many bytes a sweep writes that has nothing yet."""
    count = len(planned.trials) if spec.method in PLANNED else spec.run_cap or 0
    seeds = max(len(spec.seeds), spec.replicate.front if spec.replicate else 0)
    epochs = spec.train.warmup.epochs + spec.train.qat.epochs
    largest = max(trial.sizes.fp32_bytes for trial in planned.trials)
    weights = max(t.sizes.size_bytes + FACTOR * t.depth * len(t.structure.layers) for t in planned.trials)
    each = CONFIGURATION + epochs * (ROW * seeds + EPOCH) + seeds * weights
    return count * each + planned.warmups * seeds * largest


def _named(path: Path) -> str:
    return one_line(str(path))


def _check_place(folder: Path) -> None:
    """Raises where the folder cannot be made, or nothing can be made in it."""
    parts = [folder, *folder.parents]
    there = next(part for part in parts if os.path.lexists(part))  # the innermost one; at last . or / is
    if not os.path.isdir(there):
        what = "a link that leads nowhere" if os.path.islink(there) else "a file"
        raise user_error(f"{_named(there)} must be a folder, got {what} (choose another --runs-dir or name)")
    with suppress(FileNotFoundError):
        os.stat(folder)  # else a name that is too long would count as one that is not there
    tempfile.TemporaryFile(dir=there).close()  # has no name: nothing is left whatever happens


def _check_kind(folder: Path, runs_dir: Path) -> None:
    """Raises where the folder holds something else than a run, or links that lead out of `runs_dir`."""
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in (folder, *inside):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(runs_dir)):
            raise user_error(f"{_named(path)} must lie in {_named(runs_dir)}, got a link that leads outside")
    # A launch that was killed at its start leaves dot files and nothing else.
    if any(path.name[0] != "." for path in inside) and not (folder / "sweep.yaml").is_file():
        what = "a folder that holds something else and no sweep.yaml"
        raise user_error(f"{_named(folder)} must be a run folder or empty, got {what} (choose another name)")


def _check_room(folder: Path, whole: int, fresh: bool) -> None:
    """Raises where the disk has less room than what is still to be written takes."""
    there = next(part for part in (folder, *folder.parents) if part.is_dir())
    free = shutil.disk_usage(there).free
    held = sum(file.stat().st_size for file in folder.glob("**/*") if file.is_file())
    needed = whole - (0 if fresh else held)
    if needed > free:
        have, want = f"{free / 1e6:,.1f} MB free", f"about {needed / 1e6:,.1f} MB"
        raise user_error(
            f"{_named(there)} has {have}, the sweep needs {want} (make room, or choose another --runs-dir)"
        )


def _check_some_data_set(spec: Spec, names: Sequence[str], folder: Path) -> None:
    """Raises where the results in the folder could be compared on none of the data sets that may be taken."""
    first, file = None, folder / "sweep.yaml"
    sweep_yaml = file.read_bytes() if file.is_file() else None
    for name in names:
        try:
            return check_comparable(spec.resolve(name), sweep_yaml, str(folder))
        except SpecError as error:
            first = first or error
    assert first is not None, "a spec names a data set"
    raise first
