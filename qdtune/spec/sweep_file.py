"""A sweep file as one frozen, typed value, or all of its mistakes at once.

`load` reads a file once. It returns a `Spec` that needs no further checks, or raises a `SpecError` with one line per
mistake. It imports no torch, ray, optuna or numpy, because a sweep is checked before anything heavy is imported.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import ValidationError, model_validator
from ruamel.yaml import YAML

from qdtune.datasets.known import dataset_of
from qdtune.messages import KeyPath, Place, Problem, SpecError, format_value, printable, user_error
from qdtune.spec.axes import AXES, Excluded, Parameters
from qdtune.spec.checks import choice, matching, whole
from qdtune.spec.choices import METHODS
from qdtune.spec.disagreements import list_disagreements
from qdtune.spec.early_terminate import EarlyTerminate
from qdtune.spec.fallback import Fallback, change_groups
from qdtune.spec.groups import (
    Constraint,
    DataGroup,
    ModelGroup,
    Resources,
    RunGroup,
    RunName,
    Seed,
    Train,
)
from qdtune.spec.judging import find_metric
from qdtune.spec.mistakes import DisagreementError, list_mistakes
from qdtune.spec.objectives import CHOICE_OF_COSTS, OBJECTIVE_NAMES, Objective, costs_of
from qdtune.spec.overrides import apply_overrides
from qdtune.spec.replicate import Replicate
from qdtune.spec.source_file import read_sweep_file
from qdtune.spec.tasks import Metric, Task, metric_of, task_of
from qdtune.spec.values import Distinct, Frozen, NumberValues, Several, Values, some
from qdtune.spec.yaml_reader import Document, parse_yaml

_AXES_OF_THE_FRONT = some(f"the metric, then {CHOICE_OF_COSTS}; or null: the metric and size_bytes")


class Spec(Frozen):
    """A whole sweep file, every default filled in.

    Attributes:
        version: version of the file format
        name: name of the sweep and of its run folder
        description: free text, stored with the results
        method: how configurations are chosen
        run_cap: number of configurations to train, if the method is not `grid`
        duplicates: what to do if the search chooses a configuration again
        parameters: the axes
        exclude: combinations of values that are not run
        seeds: seeds of every configuration, trained together
        early_terminate: pruner that stops weak trials
        replicate: more seeds after the search, for the front or until comparisons are decided
        objectives: axes of the front: the metric, then one to three costs; null: the metric and `size_bytes`
        constraints: limits such as `size_bytes <= 8192`
        fallback: what changes where another data set of the list stands in for the first one
    """

    version: Annotated[int, whole(1, 1)]
    name: RunName
    description: Annotated[str, matching("text", printable)] = ""
    method: Annotated[str, choice(METHODS)] = "grid"
    run_cap: Annotated[int, whole(1, 1_000_000)] | None = None
    duplicates: Annotated[str, choice(("resample", "replicate"))] = "resample"
    parameters: Parameters
    exclude: tuple[Excluded, ...] = ()
    seeds: Several[Seed] = (0, 1, 2)
    data: DataGroup
    model: ModelGroup = ModelGroup()
    train: Train = Train()
    early_terminate: EarlyTerminate = EarlyTerminate()
    replicate: Replicate | None = None
    objectives: Annotated[Distinct[Annotated[str, choice(OBJECTIVE_NAMES)]], _AXES_OF_THE_FRONT] | None = None
    constraints: Distinct[Constraint] = ()
    resources: Resources = Resources()
    run: RunGroup = RunGroup()
    fallback: Fallback | None = None

    @model_validator(mode="after")
    def _parts_agree(self) -> Spec:
        if found := [*list_disagreements(self)] or [*self._list_fallback_disagreements()]:
            raise DisagreementError(found)
        return self

    def _list_fallback_disagreements(self) -> Iterator[tuple[KeyPath, str]]:
        """The mistakes of the sweeps that stand in for this one."""
        if self.fallback is None:
            return
        for name in self.data.names[0 if self.is_changed_on(self.data.names[0]) else 1 :]:
            try:
                self._on(name)
            except SpecError as error:
                for one in error.problems:
                    group = ("fallback",) if {*one.path[:1]} <= self.fallback.model_fields_set else ()
                    yield (*group, *one.path), f"{one.what} (on {name})"
                return

    @property
    def axes(self) -> dict[str, Values[Any]]:
        """The values of every axis by its name, in the order of `AXES`; each axis has some."""
        found = {}
        for axis in AXES:
            values = getattr(self.parameters, axis.name)
            if values is None:  # another key of the file holds its value
                kind = NumberValues if axis.has_range else Values
                values = kind[axis.rule](values=(self.at(axis.home),))  # type: ignore[operator]
            found[axis.name] = values
        return found

    @property
    def task(self) -> Task:
        """What the network is trained for."""
        return task_of(self.data.task)

    @property
    def metric(self) -> Metric:
        """By what configurations are judged."""
        return metric_of(self.data.metric) if self.data.metric else self.task.metrics[0]

    @property
    def costs(self) -> tuple[Objective, ...]:
        """What the front is over besides the metric."""
        return costs_of(self.objectives)

    @property
    def looks(self) -> tuple[int, ...] | None:
        """The numbers of seeds at which comparisons are tested; None without `replicate.until`."""
        return self.replicate.looks_of(len(self.seeds)) if self.replicate else None

    def is_changed_on(self, dataset: str) -> bool:
        """Whether `fallback` is for this data set."""
        return self.fallback is not None and self.fallback.is_for(dataset, self.data.names)

    def at(self, path: KeyPath) -> Any:
        """The value of the key at a path of names, such as `("train", "qat", "lr")`."""
        value: Any = self
        for key in path:
            value = getattr(value, str(key))
        return value

    def resolve(self, dataset: str) -> Spec:
        """The same sweep on `dataset`, one of `data.names`, alone.

        A fallback (not the first of the list) is usually smaller, so its validation split is at most a fifth. The
        groups of `fallback` replace keys of the same groups on the data sets that it is for. `min_steps` of a phase
        is turned into epochs.

        Raises:
            SpecError: the data set is not in the list, or is too small for the batch size.
        """
        if dataset not in self.data.names:
            what = f"{format_value(dataset)} is not in the list ({', '.join(self.data.names)})"
            raise user_error(what, "data", "dataset")
        return (self if self.data.factory else self._on(dataset))._with_floors()

    def _on(self, dataset: str) -> Spec:
        """The same sweep on one data set of the list, with what `fallback` changes there."""
        data, val_size = self.to_dict(), self.data.val_size
        data.pop("fallback", None)
        if self.fallback is not None and self.is_changed_on(dataset):
            data = change_groups(data, self.fallback.given)
        if dataset != self.data.names[0] or self.is_changed_on(dataset):
            val_size = min(val_size, dataset_of(dataset).train // 5)
        data["data"] = {**data["data"], "dataset": [dataset], "val_size": val_size}
        return self._validated_like(data)

    def _with_floors(self) -> Spec:
        """The same sweep with each `min_steps` turned into epochs; unchanged if its data is not known yet.

        What the pruner counts in epochs is stretched with QAT: the second of 8 epochs is the 16th of 63.
        """
        info, train = self.data.info, self.train
        if info is None or (train.warmup.min_steps is None and train.qat.min_steps is None):
            return self
        steps = max(1, (info.train - self.data.val_size) // train.batch_size)  # 0: a mistake that is told of
        phases = {name: getattr(train, name) for name in ("warmup", "qat")}
        floors = {name: {"epochs": phase.epochs_of(steps), "min_steps": None} for name, phase in phases.items()}
        groups = {name: {**phase.model_dump(mode="json"), **floors[name]} for name, phase in phases.items()}
        longer = self.changed("train", **groups)
        before, epochs = train.qat.epochs, longer.train.qat.epochs
        return longer.changed("early_terminate", **self.early_terminate.pruner.stretch(before, epochs))

    def changed(self, group: str, **values: Any) -> Spec:
        """The same sweep with other values, JSON-able, in one group.

        Raises:
            SpecError: the values do not fit the rest.
        """
        data = self.to_dict()
        data[group] = {**data[group], **values}
        return _validated(Document(data)) if group == "resources" else self._validated_like(data)

    def _validated_like(self, data: dict[str, Any]) -> Spec:
        """The spec of changed data; its resources stay as they were read, so that they tell which keys a file has."""
        return _validated(Document(data)).model_copy(update={"resources": self.resources})

    @property
    def factories(self) -> dict[str, str]:
        """The user's functions that `model` and `data` name, by group."""
        found = {"model": self.model.factory, "data": self.data.factory}
        return {group: factory for group, factory in found.items() if factory}

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON-able data, in the order of the class, without keys that are None; a fallback as it is."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude_none=True)
        data["exclude"] = [{axis: _plain(value) for axis, value in rule.items()} for rule in self.exclude]
        if self.fallback is not None:
            data["fallback"] = self.fallback.to_dict()
        return data

    def to_yaml(self) -> str:
        """Canonical text: equal specs give equal text, from which `loads` returns an equal spec."""
        yaml: Any = YAML(typ="safe", pure=True)
        yaml.sort_base_mapping_type_on_output = False
        yaml.default_flow_style = None  # leaves on one line, groups on several
        yaml.width = 110
        text = io.StringIO()
        yaml.dump(self.to_dict(), text)
        return text.getvalue()

    def __reduce__(self) -> tuple[Any, ...]:
        # It travels to the workers as plain data, because pickle cannot find pydantic's NumberValues[...] classes.
        return Spec.model_validate, (self.to_dict(),)

    def result_settings(self) -> dict[str, Any]:
        """The settings, other than axes, that change results; runs that differ here must not share a folder."""
        data = self.to_dict()
        data["data"]["metric"] = self.metric.name  # the same whether the file names it or not
        # `built` follows from `sha256`, and `image` from `content`; older files have no `image`.
        homes = [*(axis.home for axis in AXES if axis.home), ("model", "built"), ("data", "image")]
        for *groups, key in homes:
            group = data
            for name in groups:
                group = group[name]
            group.pop(key, None)
        return {key: data[key] for key in ("data", "model", "train", "seeds")}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def load(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Spec:
    """The spec in the file at `path`, which is read once.

    Args:
        path: a regular file of at most 1 MB.
        overrides: `KEY=VALUE` with a dotted key and a value in YAML, as `--set` takes them.

    Raises:
        SpecError: every mistake of the file and of the overrides, or why it cannot be read.
    """
    source = os.fspath(path)
    return loads(read_sweep_file(source), source, overrides)


def loads(data: bytes, source: str, overrides: Sequence[str] = ()) -> Spec:
    """The spec in `data`, as `load`; `source` is its name in messages."""
    document = parse_yaml(data, source)
    if not document.problems and not isinstance(document.value, dict):
        what = "file is empty" if document.value is None else "top level must be key: value pairs"
        document.problems.append(Problem(Place(source), (), what))
    if isinstance(document.value, dict):
        apply_overrides(document, overrides)
        return _validated(document)
    raise SpecError(document.problems)


def _validated(document: Document) -> Spec:
    problems = list(document.problems)
    try:
        spec = Spec.model_validate(document.value, context={"metric": find_metric(document.value)[1]})
    except ValidationError as error:
        problems += list_mistakes(error, document, Spec)
    if problems:
        raise SpecError(sorted(problems, key=lambda problem: problem.place or Place("")))
    return spec
