"""One launch: what its user asks for, and what `prepare` has decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qdtune.messages import format_count
from qdtune.spec.objectives import say_list
from qdtune.spec.plan import Plan
from qdtune.spec.sweep_file import Spec, load, loads
from qdtune.spec.tasks import AUC, AUTOENCODER, R2
from qdtune.sweep.placement import Placement

if TYPE_CHECKING:
    from qdtune.datasets.load import Samples


@dataclass(frozen=True)
class LaunchOptions:
    """What a user asks of a launch.

    Attributes:
        sweep: path of the sweep file, or its name in messages if `content` is given.
        overrides: `KEY=VALUE` texts that replace keys of the file.
        plugins: modules of the user's own that may be imported.
        runs_dir: a path or a URL; the run folder is made in it, under the sweep's name.
        data_dir: where data sets lie or are downloaded to; None for `QDTUNE_DATA`, else `data`.
        address: of a running Ray cluster; None for one that is started here.
        is_fresh: whether an earlier run is set aside.
        is_dry: whether nothing is started: the network is left alone, and the nodes are this machine.
        content: the sweep file itself; None if it is to be read from `sweep`.
    """

    sweep: str
    overrides: Sequence[str] = ()
    plugins: Sequence[str] = ()
    runs_dir: str = "runs"
    data_dir: Path | None = None
    address: str | None = None
    is_fresh: bool = False
    is_dry: bool = False
    content: bytes | None = None

    def load_spec(self) -> Spec:
        """The sweep file with the overrides, checked.

        Raises:
            SpecError: every mistake in it.
        """
        if self.content is None:
            return load(self.sweep, self.overrides)
        return loads(self.content, self.sweep, self.overrides)


@dataclass(frozen=True)
class Unread:
    """Known data sets that are not read yet: a launch takes the first that it can have.

    Attributes:
        names: in the order of the sweep file.
        on_disk: the first of them that lies on disk; None if none does.
    """

    names: tuple[str, ...]
    on_disk: str | None

    @property
    def possible(self) -> tuple[str, ...]:
        """The names that a launch may take: those before the one on disk may be downloaded."""
        return self.names if self.on_disk is None else self.names[: self.names.index(self.on_disk) + 1]

    @property
    def likely(self) -> str:
        """The name that a launch takes without a network."""
        return self.on_disk or self.names[0]


@dataclass(frozen=True)
class Prepared:
    """One launch, decided.

    Attributes:
        options: what the user asked.
        asked: the sweep file with what the user's code gives, on all of its data sets.
        spec: the same on one data set: the first, until `read_data` settles which.
        plan: the configurations of `spec`.
        data: of the user's own, or the names of what is to be read.
        data_dir: where data sets lie.
        folder: the run folder, a path or a URL.
        earlier: the sweep file that the run folder holds; None if there is no run to finish.
        comparable: the data sets on which results could be compared with those in the run folder.
        forecast: how trials would share this machine; None if they run on a cluster elsewhere.
        fallbacks: the plan on each data set that may stand in, by name; empty without a `fallback` in the file.
    """

    options: LaunchOptions
    asked: Spec
    spec: Spec
    plan: Plan
    data: Samples | Unread
    data_dir: Path
    folder: str
    earlier: bytes | None
    comparable: frozenset[str]
    forecast: Placement | None
    fallbacks: dict[str, Plan] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What a launch says before it trains, a line each."""
        return [*self.front_notes, *self.replaced, *self.lengthened, *self.test_notes, *self.float_notes]

    @property
    def lengthened(self) -> list[str]:
        """A line for each phase that `min_steps` makes longer on this data set than the sweep file says."""
        lines = []
        for name in ("warmup", "qat"):
            asked, given = getattr(self.asked.train, name), getattr(self.spec.train, name)
            if given.epochs > asked.epochs:
                data = self.spec.data.names[0]
                lines.append(
                    f"{name}: {given.epochs} epochs instead of {asked.epochs}, because an epoch of {data} has few "
                    f"steps (min_steps {asked.min_steps:,})"
                )
        return lines

    @property
    def replaced(self) -> list[str]:
        """A line on what the sweep file changes on this data set, if it stands in for another one."""
        fallback, data = self.asked.fallback, self.spec.data.names[0]
        if fallback is None or not self.asked.is_changed_on(data):
            return []
        return [f"on {data}, fallback of the sweep file replaces {', '.join(fallback.given)}"]

    @property
    def front_notes(self) -> list[str]:
        """A line on the front if the run folder has one over other costs."""
        if self.earlier is None:
            return []
        before = loads(self.earlier, f"{self.folder}/sweep.yaml").costs
        if before == self.spec.costs:
            return []
        now, then = (say_list([cost.head for cost in costs]) for costs in (self.spec.costs, before))
        return [f"the front is drawn anew, over {now} instead of {then}; trials that were stopped may be released"]

    @property
    def float_notes(self) -> list[str]:
        """A line on the parts of the user's own model that no layer kind quantises."""
        if not self.spec.model.factory:
            return []
        from qdtune.training.unquantised import find_unquantised  # torch, which has built this model before

        parts = [f"{name} ({format_count(size, 'byte')})" for name, size in find_unquantised(self.spec).items()]
        return [f"not quantised, float32 at any bits: {', '.join(parts)}"] if parts else []

    @property
    def test_notes(self) -> list[str]:
        """A line for each metric of the test set that is not what its name suggests: undefined, or of all rows."""
        if isinstance(self.data, Unread):
            return []
        from qdtune.datasets.targets import varies

        metric, task, lines = self.spec.metric, self.spec.task, []
        if not varies(self.data.test_y):
            why = "null, because a target is the same in all rows of the test set"
            lines += [f"{one.test}: {why}" for one in (metric, *task.also_tested(metric)) if one in (R2, AUC)]
        if task is AUTOENCODER and self.data.test_y.any():
            rows = f"{int(self.data.test_y.sum()):,} anomalies among {len(self.data.test_y):,}"
            lines.append(f"{metric.test}: of all test rows, {rows}")
        return lines
