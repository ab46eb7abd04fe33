"""Checks before a launch makes anything: versions, an address that answers, a run folder with room.

These checks write nothing and do not import Ray. A failure later, while a sweep runs, is a `StorageError`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from qdtune.messages import name_option, one_line, user_error
from qdtune.shadows import find_shadow
from qdtune.spec.choices import PLANNED
from qdtune.spec.loggers import find_loggers
from qdtune.spec.plan import Plan
from qdtune.spec.sweep_file import Spec
from qdtune.store.folder import LocationError
from qdtune.store.paused import MAX_PAUSED_BYTES
from qdtune.sweep.cluster import NoClusterError, knock
from qdtune.sweep.ray_start import check_start

LEAST_VERSIONS = {
    "ray": (2, 56),
    "torch": (2, 6),
    "pyarrow": (18, 0),
}  # as in pyproject.toml; older versions may run code from files that they read
# Bytes in a run folder (measured): per configuration, for its Parquet files, study and table rows; per row of its
# history; per epoch in the study; per factor, for the header of its weights.
CONFIGURATION_BYTES, ROW_BYTES, EPOCH_BYTES, FACTOR_BYTES = 21_000, 30, 150, 400
CHECKPOINT_COPIES = 3  # of the float parameters in a checkpoint: themselves, and the two moments of Adam
RUNNING_TRIALS = 8  # at a time; each has one checkpoint


def check_surroundings(runs_dir: str, name: str, address: str | None) -> None:
    """Checks libraries, what Ray needs, the place of the run folder and the address, before a launch costs anything.

    Args:
        runs_dir: where run folders are made; a URL (`scheme://...`) is left to `store.folder`.
        name: of the sweep.
        address: of a running Ray cluster; None to start one here.

    Raises:
        SpecError: a library or the current folder; the message says what to do.
        LocationError: the run folder cannot be made or used.
        NoClusterError: nothing answers at the address.
    """
    check_current_folder()
    check_versions()
    check_start(address)
    check_run_place(runs_dir, name)
    if address is not None:
        try:
            knock(address)
        except NoClusterError as error:
            raise NoClusterError(one_line(str(error))) from None


def check_run_place(runs_dir: str, name: str) -> None:
    """Checks that the run folder of a sweep can be made, or holds a run to finish; it asks no object store.

    Args:
        runs_dir: where run folders are made, a path or a URL.
        name: of the sweep.

    Raises:
        LocationError: it cannot; the message says what to do.
    """
    if not runs_dir:
        raise LocationError(f"{name_option('--runs-dir')} must name a folder, got an empty name")
    try:
        runs_dir.encode()
    except UnicodeEncodeError:
        what = f"{name_option('--runs-dir')} must have a name in UTF-8, which Ray needs, got {one_line(runs_dir)}"
        raise LocationError(f"{what} ({_choose_another()})") from None
    if "://" not in runs_dir:
        folder = Path(runs_dir) / name
        with _write_errors(folder):
            _check_kind(folder, Path(runs_dir))
            _check_place(folder)


def check_data_dir(data_dir: Path | None) -> None:
    """Raises SpecError if the folder of the data sets is a file, or below one; None is taken as it is."""
    if data_dir is None:
        return
    there = next(part for part in (data_dir, *data_dir.absolute().parents) if os.path.lexists(part))
    if not os.path.isdir(there):
        what = f"{name_option('--data-dir')} must be a folder, or one that can be made, got {_named(data_dir)}"
        raise user_error(what if there == data_dir else f"{what}: {_named(there)} is a file")


def check_room(spec: Spec, planned: Plan, runs_dir: str, is_fresh: bool) -> None:
    """Checks that the disk has room for the files of a sweep; an object store always has room.

    Args:
        spec: resolved.
        planned: its configurations.
        runs_dir: where run folders are made.
        is_fresh: whether the launch sets an earlier run aside.

    Raises:
        LocationError: it has too little; the message has both numbers.
    """
    if "://" not in runs_dir:
        folder = Path(runs_dir) / spec.name
        with _write_errors(folder):
            _check_free(folder, needed_bytes(spec, planned), is_fresh)


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    """Turns the system's errors about a folder into a LocationError of one line."""
    try:
        yield
    except LocationError:
        raise
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise LocationError(f"cannot write to {_named(folder)}: {what} ({_choose_another()})") from None


def check_current_folder() -> None:
    """Raises SpecError if Ray's workers, which search the current folder first, could not start in it."""
    try:
        folder = os.getcwd()
    except OSError as error:
        raise user_error(f"the current folder must exist, got {error.strerror} (go to another folder)") from None
    try:
        folder.encode()
    except UnicodeEncodeError:
        what = f"the current folder must have a name in UTF-8, which Ray needs, got {one_line(folder)}"
        raise user_error(f"{what} (start the command in another folder)") from None
    if shadow := find_shadow(folder):
        raise user_error(shadow)


def check_versions() -> None:
    """Raises SpecError if a library is older than `LEAST_VERSIONS`."""
    for name, least in LEAST_VERSIONS.items():
        found = version(name)
        if tuple(int(n) for n in re.findall(r"\d+", found)[:2]) < least:
            wanted = ".".join(map(str, least))
            raise user_error(f"{name} must be {wanted} or newer, got {found} (pip install -U {name})")


def check_loggers(names: tuple[str, ...] | None, runs_dir: str) -> None:
    """Checks that every logger of a sweep is installed and has a place to write to; none is imported.

    Args:
        names: as in the sweep file.
        runs_dir: where run folders are made.

    Raises:
        SpecError: one is missing, or writes to the run folder, which is in an object store.
    """
    for logger in find_loggers(names):
        is_local = logger.file is not None and not os.environ.get(logger.server_variable or "")
        if is_local and "://" in runs_dir:
            setting = f"set {logger.server_variable}, " if logger.server_variable else ""
            what = f"{logger.name} writes to a run folder on disk, got {one_line(runs_dir)}"
            raise user_error(f"{what} ({setting}{_choose_another()}, or leave it out)", "run", "loggers")
        if not all(find_spec(module) for module in (*logger.modules, *(logger.local_modules if is_local else ()))):
            what = f"{logger.name} is not installed (pip install {logger.package})"
            raise user_error(what, "run", "loggers")


def needed_bytes(spec: Spec, planned: Plan) -> int:
    """About how many bytes a sweep writes from the start, at most."""
    count = len(planned.trials) if spec.method in PLANNED else spec.run_cap or 0
    further = spec.replicate.front or (spec.looks or ())[-1] if spec.replicate else 0
    seeds = max(len(spec.seeds), further)
    epochs = spec.train.warmup.epochs + spec.train.qat.epochs
    largest = max(trial.sizes.fp32_bytes for trial in planned.trials)
    weights = max(t.sizes.size_bytes + FACTOR_BYTES * t.depth * len(t.structure.layers) for t in planned.trials)
    each = CONFIGURATION_BYTES + epochs * (ROW_BYTES * seeds + EPOCH_BYTES) + seeds * weights
    return count * each + planned.warmups * seeds * largest + paused_bytes(spec, planned)


def paused_bytes(spec: Spec, planned: Plan) -> int:
    """About how many bytes the checkpoints of a sweep have at most; trainings of a second keep none.

    With a risk each stopped trial keeps its checkpoint. Without one, only those that run have one.
    """
    count = len(planned.trials) if spec.method in PLANNED else spec.run_cap or 0
    trials = count if spec.early_terminate.risk is not None else min(count, RUNNING_TRIALS)
    largest = max(trial.sizes.fp32_bytes for trial in planned.trials)
    return min(trials * len(spec.seeds) * CHECKPOINT_COPIES * largest, MAX_PAUSED_BYTES)


def _choose_another() -> str:
    return f"choose another {name_option('--runs-dir')}"


def _named(path: Path) -> str:
    return one_line(str(path))


def _check_place(folder: Path) -> None:
    """Raises if the folder, or a file in it, cannot be made."""
    parts = [folder, *folder.parents]
    there = next(part for part in parts if os.path.lexists(part))  # the innermost existing one; . or / always exists
    if not os.path.isdir(there):
        what = "a link that leads nowhere" if os.path.islink(there) else "a file"
        raise LocationError(f"{_named(there)} must be a folder, got {what} ({_choose_another()} or name)")
    with suppress(FileNotFoundError):
        os.stat(folder)  # raises if the name is too long, which looks like a missing folder above
    tempfile.TemporaryFile(dir=there).close()  # a file without a name leaves nothing behind


def _check_kind(folder: Path, runs_dir: Path) -> None:
    """Raises if the folder holds anything but a run, or links that lead out of `runs_dir` or nowhere."""
    from qdtune.store.disk_folder import MEND_LINK  # Arrow, whose version is checked by now

    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    within = [path for part in inside if part.is_dir() for path in sorted(part.iterdir())]
    for path in (folder, *inside, *within):
        if not path.is_symlink():
            continue
        if path != folder and not path.exists():  # else it would count as missing, and be trained again
            raise LocationError(f"{_named(path)} must be a file, got a link that leads nowhere ({MEND_LINK})")
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(runs_dir)):
            what = f"{_named(path)} must lie in {_named(runs_dir)}, got a link that leads outside"
            raise LocationError(what if path == folder else f"{what} ({MEND_LINK})")
    # A launch that was killed at its start leaves only dot files.
    if any(path.name[0] != "." for path in inside) and not (folder / "sweep.yaml").is_file():
        what = "a folder that holds something else and no sweep.yaml"
        raise LocationError(f"{_named(folder)} must be a run folder or empty, got {what} (choose another name)")


def _check_free(folder: Path, whole: int, is_fresh: bool) -> None:
    """Raises if the disk has too little room for the bytes still to be written."""
    there = next(part for part in (folder, *folder.parents) if part.is_dir())
    free = shutil.disk_usage(there).free
    held = sum(file.stat().st_size for file in folder.glob("**/*") if file.is_file())
    needed = whole - (0 if is_fresh else held)
    if needed > free:
        have, want = f"{free / 1e6:,.1f} MB free", f"about {needed / 1e6:,.1f} MB"
        raise LocationError(f"{_named(there)} has {have}, the sweep needs {want} (make room, or {_choose_another()})")
