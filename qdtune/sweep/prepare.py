"""The decisions of a launch before it makes anything, one step after the other, each taken once.

`prepare_launch` returns one `Prepared`, which a dry run prints and a sweep trains. Two things are known later, and
`Prepared` says so. Which data set can be had: `Unread`, which `read_data` settles. The nodes, and what `gpu: auto`
comes to: a `forecast` on this machine, until `driver.decide_placement` knows the nodes of Ray. Nothing heavy is
imported here unless the sweep names code of the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdtune import plugins
from qdtune.machine import count_cpus, count_gpus
from qdtune.messages import SpecError, blame_source, one_line, user_error
from qdtune.spec.comparable import check_comparable
from qdtune.spec.plan import Plan, plan
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import AUC, R2
from qdtune.sweep.placement import Node, Placement, place_trials
from qdtune.sweep.prepared import LaunchOptions, Prepared, Unread

if TYPE_CHECKING:
    from qdtune.datasets.load import Samples


def prepare_launch(options: LaunchOptions) -> Prepared:
    """The launch that `options` ask for, decided step by step; nothing is made.

    Raises:
        SpecError: what the user has to mend.
        LocationError, StorageError: the run folder, in an object store, cannot be used or read.
    """
    asked = options.load_spec()
    from qdtune.store.folder import join_location  # Arrow: not needed to say that a file is wrong

    folder = join_location(options.runs_dir, asked.name)
    with blame_source(options.sweep):
        _permit_plugins(asked, options)
    plugins.check_modules(options.plugins)
    from qdtune.sweep.preflight import check_data_dir, check_loggers, check_run_place, check_surroundings

    check_data_dir(options.data_dir)
    if options.is_dry:
        check_run_place(options.runs_dir, asked.name)
    else:
        check_surroundings(options.runs_dir, asked.name, options.address)
        with blame_source(options.sweep):
            check_loggers(asked.run.loggers, options.runs_dir)
    with blame_source(options.sweep):
        asked, data, data_dir = _choose_data(asked, options)
        asked, spec, planned = _decide_on(asked, asked.data.names[0], None if isinstance(data, Unread) else data)
        fallbacks = _plan_fallbacks(asked)  # so their mistakes are told now, not when the first data set is missing
        forecast = _forecast(spec, options)
    earlier = _read_earlier(options, folder)
    comparable = _find_comparable(asked, data, data_dir, folder, earlier, options.is_dry)
    if earlier is not None:
        from qdtune.store.frozen_looks import check_frozen_looks

        check_frozen_looks(spec, earlier, folder)
    prepared = Prepared(
        options, asked, spec, planned, data, data_dir, folder, earlier, comparable, forecast, fallbacks
    )
    if not options.is_dry:
        from qdtune.sweep.preflight import check_room

        check_room(spec, planned, options.runs_dir, options.is_fresh)
    return prepared


def read_data(prepared: Prepared, out: Any) -> tuple[Prepared, Samples, list[str]]:
    """The launch on the data set that could be had, its data, and why that is not the first one, if so.

    Args:
        prepared: by `prepare_launch`.
        out: where to say that something is downloaded.

    Raises:
        DataError: none of the data sets can be had.
        SpecError: the sweep cannot use the one that can, or the run folder holds results on another one.
    """
    if not isinstance(prepared.data, Unread):
        return prepared, prepared.data, []
    from qdtune.datasets.load import load, on_disk

    names, data_dir = prepared.data.names, prepared.data_dir
    if not on_disk(names[0], data_dir):
        out.print(one_line(f"{names[0]} is not in {data_dir}: downloading it"))
    data, notes = load(names, data_dir, lambda name: prepared.asked.resolve(name).data.val_size)
    if data.name != prepared.spec.data.names[0]:  # another data set has other configurations
        asked, spec, planned = _decide_on(prepared.asked, data.name, data)
        prepared = replace(prepared, asked=asked, spec=spec, plan=planned)
    if data.name not in prepared.comparable:
        check_comparable(prepared.spec, prepared.earlier, prepared.folder, notes[0] if notes else None)
    return prepared, data, notes


def call_own_data(spec: Spec, root: Path) -> tuple[Spec, Samples]:
    """The data that the factory of a spec gives, and the spec with what is now known of it.

    Args:
        spec: its `data` has a factory.
        root: the folder of the data sets.

    Raises:
        SpecError: the factory cannot be used, or its data does not fit the rest of the spec.
    """
    from qdtune.datasets.load import cut
    from qdtune.datasets.own import load_own
    from qdtune.datasets.targets import varies

    data = spec.data
    splits, known = load_own(data.factory or "", root, spec.task.targets, data.sha256, data.content)
    spec = spec.changed("data", **known)  # raises if there are too few rows
    samples = cut(data.factory or "", splits, data.val_size, spec.data.info, data.normalize)
    if spec.metric in (R2, AUC) and not varies(samples.val_y):
        what = f"{data.val_size} leaves a target that is the same in all validation samples: {spec.metric.name} is"
        raise user_error(f"{what} undefined then (set a larger one)", "data", "val_size")
    return spec, samples


def _permit_plugins(spec: Spec, options: LaunchOptions) -> None:
    """Lets the user's modules be imported that the file names and the command allows."""
    if spec.factories:
        plugins.permit(spec.factories, options.plugins, [Path(options.sweep).parent, Path.cwd()])


def _choose_data(spec: Spec, options: LaunchOptions) -> tuple[Spec, Samples | Unread, Path]:
    """The spec with the sizes of its data known, that data or its names, and the folder of the data sets.

    A factory is called; a known data set is neither read nor downloaded, because its sizes are known.
    """
    from qdtune.datasets.load import default_root, on_disk

    data_dir = options.data_dir or default_root()
    if spec.data.factory:
        spec, data = call_own_data(spec, data_dir)
        return spec, data, data_dir
    names = tuple(spec.data.names)
    return spec, Unread(names, next((name for name in names if on_disk(name, data_dir)), None)), data_dir


def _decide_on(asked: Spec, dataset: str, data: Samples | None) -> tuple[Spec, Spec, Plan]:
    """The spec with its model known, the same on one data set, and its configurations there.

    A model of the user's own is built for each choice of hidden widths, and trained once for a moment, on rows of
    the data if it is read already.
    """
    spec = asked.resolve(dataset)
    if spec.model.factory:
        from qdtune.training.own_model import describe_own_model, try_own_model  # torch

        spec = describe_own_model(spec, data)
        try_own_model(spec, data)
        asked = asked.changed("model", sha256=spec.model.sha256)
    return asked, spec, plan(spec)


def _plan_fallbacks(asked: Spec) -> dict[str, Plan]:
    """What is trained on each data set that may stand in, by name; empty without a `fallback` in the file.

    Raises:
        SpecError: nothing is left to run on one of them.
    """
    if asked.fallback is None or asked.model.factory:
        return {}
    found = {}
    for name in filter(asked.is_changed_on, asked.data.names[1:]):
        try:
            found[name] = plan(asked.resolve(name))
        except SpecError as error:
            raise user_error(f"on {name}, {error.problems[0].what}", "fallback") from None
    return found


def _forecast(spec: Spec, options: LaunchOptions) -> Placement | None:
    """How trials would share this machine, as far as that is known without Ray; None on a cluster elsewhere.

    Raises:
        SpecError: one trial asks for more than this machine has.
    """
    if options.address is not None and not options.is_dry:
        return None
    here = Node(count_cpus(), count_gpus())
    return place_trials(spec.resources, [here], spec.run.max_concurrent_trials)


def _read_earlier(options: LaunchOptions, folder: str) -> bytes | None:
    """The sweep file of the run that a launch would finish; None if it begins one."""
    from qdtune.store.open_folder import open_folder

    runs = open_folder(options.runs_dir)
    if not options.is_dry:
        runs.probe()
    return None if options.is_fresh else open_folder(folder).read_file("sweep.yaml")


def _find_comparable(
    asked: Spec, data: Samples | Unread, data_dir: Path, folder: str, earlier: bytes | None, is_dry: bool
) -> frozenset[str]:
    """The data sets, of those that the launch may take, on which its results could be compared with earlier ones.

    Raises:
        SpecError: there is none; it speaks of the first.
    """
    missing = None
    names: Sequence[str] = asked.data.names
    if isinstance(data, Unread):
        names = (data.likely,) if is_dry else data.possible
        if is_dry and data.likely != data.names[0]:
            missing = f"{data.names[0]} is not in {data_dir}"
    found, first = [], None
    for name in names:
        try:
            check_comparable(asked.resolve(name), earlier, folder, missing)
            found.append(name)
        except SpecError as error:
            first = first or error
    if first is not None and not found:
        raise first
    return frozenset(found)
