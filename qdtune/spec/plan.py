"""What a sweep will run, decided before anything starts: its configurations, and the rules that they keep."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from qdtune.messages import user_error
from qdtune.spec.axes import AXES, AXIS_NAMES, BLOCKS, decisive_axes
from qdtune.spec.choices import PLANNED
from qdtune.spec.configuration import Configuration, OwnData, OwnModel
from qdtune.spec.groups import DataGroup, ModelGroup, Phase, name_built
from qdtune.spec.objectives import find_known
from qdtune.spec.points import Point, list_points
from qdtune.spec.sweep_file import Spec
from qdtune.spec.values import cell_text


@dataclass(frozen=True)
class Plan:
    """The configurations of a sweep.

    Attributes:
        spec: the resolved spec.
        trials: what will run, in the order in which it starts; if the method searches, a random sample of what it
            may choose.
        points: how many points of the space were examined.
        excluded: each rule of `exclude` as text, and how many points it removed that no earlier rule removed.
        broken: how many of the other points break these constraints, or are no networks that can be built, each by
            what it breaks: several constraints together, or `Configuration.unbuildable`.
    """

    spec: Spec
    trials: list[Configuration]
    points: int
    excluded: list[tuple[str, int]]
    broken: dict[str, int] = field(default_factory=dict)

    @property
    def infeasible(self) -> int:
        """How many points break something."""
        return sum(self.broken.values())

    @cached_property
    def distinct_sizes(self) -> list[int]:
        """The different values of `size_bytes`, ascending."""
        return sorted({trial.sizes.size_bytes for trial in self.trials})

    @cached_property
    def warmups(self) -> int:
        """How many float warm-ups the configurations share."""
        return len({trial.warmup_key for trial in self.trials})

    @cached_property
    def twins(self) -> int:
        """How many configurations duplicate others of the plan (see `axes.decisive_axes`)."""
        return len(self.trials) - len({tuple(decisive_axes(trial.cells).values()) for trial in self.trials})

    @cached_property
    def twin_rules(self) -> list[str]:
        """Entries of `exclude` that drop the twins and nothing else, as a sweep file writes them.

        An axis is left out if the sweep's own rules already name it together with other values.
        """
        found: list[dict[str, Any]] = []
        for where, axis in ((self._without_news(where), one.name) for one in AXES for where in one.idle):
            rules = [where | {axis: value} for value in self.spec.axes[axis].choices or ()]
            tangled = any(axis in rule and rule not in rules for rule in self.spec.exclude)
            if not tangled and any(_excluded(trial.values, where) for trial in self.trials):
                found += [rule for rule in rules if rule not in self.spec.exclude][1:]  # the first is kept
        return [f"{{{_rule_text(rule)}}}" for rule in found]

    def _without_news(self, where: Mapping[str, Any]) -> dict[str, Any]:
        """The conditions without axes of later versions that are everywhere as they were before."""
        fixed = {axis.name for axis in AXES if axis.is_new and self.spec.axes[axis.name].choices == (axis.before,)}
        return {name: value for name, value in where.items() if name not in fixed}

    @property
    def warning(self) -> str | None:
        """A warning about the twins and how to drop them; None if there are no twins."""
        if not self.twins:
            return None
        of = "" if self.spec.method in PLANNED else " of a random sample"
        which = f"{self.twins:,} configuration{'' if self.twins == 1 else 's'}{of}"
        why = "some of their axes change nothing there, such as an activation at depth 1 or levels at one bit"
        rules = f"add to exclude: {', '.join(self.twin_rules)}" if self.twin_rules else "exclude them"
        return f"{which} would repeat another one, for {why} ({rules})"


def plan(spec: Spec) -> Plan:
    """The plan of a resolved spec: every point of a grid, or `run_cap` different points drawn with a fixed seed.

    A random sweep with a larger `run_cap` contains the smaller sweep, so that finished trials stay in the plan.

    Raises:
        SpecError: nothing is left to run.
        ValueError: the spec names several data sets (`Spec.resolve` picks one), or a factory that has not been called
            (`own.load_own`, `own_model.describe_own_model`).
    """
    if len(spec.data.names) > 1:
        raise ValueError(f"plan needs one data set, got {', '.join(spec.data.names)}: call Spec.resolve first")
    if spec.data.info is None or (spec.model.factory and not spec.model.built):
        raise ValueError(f"plan needs to know what {', '.join(spec.factories.values())} gives: call it first")
    wanted = spec.run_cap or math.inf
    removed = [0] * len(spec.exclude)
    trials: list[Configuration] = []
    points = 0
    broken: Counter[str] = Counter()
    for point in list_points(spec):
        points += 1
        config = dict(zip(AXIS_NAMES, point, strict=True))
        first = next((i for i, rule in enumerate(spec.exclude) if _excluded(config, rule)), None)
        if first is not None:
            removed[first] += 1
            continue
        trial = _trial(spec, point)
        why = trial.unbuildable or ", ".join(one for one in spec.constraints if measure_excess(one, trial) > 0)
        if why:
            broken[why] += 1
            continue
        trials.append(trial)
        if len(trials) >= wanted:
            break
    if not trials:
        what = f"nothing is left to run: {sum(removed)} of {points} points excluded"
        raise user_error("".join([what, *[f", {count} left out by {why}" for why, count in broken.items()]]))
    excluded = [(_rule_text(rule), count) for rule, count in zip(spec.exclude, removed, strict=True)]
    trials = put_warmups_first(sort_trials(trials, spec.run.order))
    return Plan(spec, trials, points, excluded, dict(broken))


def list_violations(spec: Spec, trial: Configuration) -> dict[str, float]:
    """Each rule of `exclude` and `constraints` as text, and how far the trial breaks it; 0 or less if it does not."""
    excluded = {f"exclude {_rule_text(rule)}": float(_excluded(trial.values, rule)) for rule in spec.exclude}
    if trial.unbuildable:  # it has no bytes
        return excluded | {"unbuildable": 1.0} | dict.fromkeys(spec.constraints, 1.0)
    if any(spec.axes[name].choices != (None,) for name in ("layer_bits", "layer_act_bits", "blocks")):
        excluded["unbuildable"] = 0.0
    return excluded | {text: measure_excess(text, trial) for text in spec.constraints}


def measure_excess(constraint: str, trial: Configuration) -> float:
    """How far a trial breaks a constraint such as `size_bytes <= 8192`; 0 or less if it does not."""
    name, sign, bound = constraint.split()
    over = (getattr(trial, name) if name in AXIS_NAMES else find_known(trial, name)) - float(bound)
    if sign == "==":
        return abs(over)
    if sign[0] == ">":
        over = -over
    return math.ulp(0.0) if over == 0 and len(sign) == 1 else over


def sort_trials(trials: Sequence[Configuration], order: str) -> list[Configuration]:
    """The trials by size, up or down, or shuffled with a fixed seed, or as given; equal sizes keep their order."""
    if order == "shuffled":
        return random.Random(0).sample(trials, len(trials))
    if order == "as_listed":
        return list(trials)
    sign = 1 if order == "small_first" else -1
    return sorted(trials, key=lambda trial: sign * trial.sizes.size_bytes)


def put_warmups_first(trials: Iterable[Configuration]) -> list[Configuration]:
    """One trial of each float warm-up, then the others; otherwise in the order given.

    Trials that share a warm-up would wait for the trial that trains it. In this order they find it finished.
    """
    firsts: list[Configuration] = []
    others: list[Configuration] = []
    seen = set()
    for trial in trials:
        warmup = trial.warmup_key
        (others if warmup in seen else firsts).append(trial)
        seen.add(warmup)
    return firsts + others


def make_trial(spec: Spec, config: Mapping[str, Any], seeds: tuple[int, ...] | None = None) -> Configuration:
    """The trial of a resolved spec whose axes have these values.

    Args:
        config: the axes by name, with values as in tables.
        seeds: one replica each; None for the seeds of the spec.
    """
    values = {axis.name: axis.of_cell(config[axis.name]) for axis in AXES}
    is_list = spec.axes[BLOCKS.name].choices != (None,)
    if is_list and values[BLOCKS.name] is None:  # a result of the time when the sweep had one list of blocks
        values[BLOCKS.name] = spec.model.blocks
    elif not is_list and values[BLOCKS.name] == spec.model.blocks:
        values[BLOCKS.name] = None
    return _trial(spec, tuple(values.values()), seeds)


def keep_possible(spec: Spec, trials: Iterable[Configuration]) -> list[Configuration]:
    """The trials that the sweep could run: every value can occur, and no rule excludes them."""
    axes = spec.axes
    return [
        trial
        for trial in trials
        if all(axes[name].holds(value) for name, value in trial.values.items()) and _feasible(spec, trial)
    ]


def draw_candidates(spec: Spec) -> Iterator[Configuration]:
    """The configurations that a sweep may run, in an order that is random but always the same."""
    for point in list_points(spec.model_copy(update={"method": "random"})):
        trial = _trial(spec, point)
        if _feasible(spec, trial):
            yield trial


def _feasible(spec: Spec, trial: Configuration) -> bool:
    return max(list_violations(spec, trial).values(), default=0) <= 0


def _trial(spec: Spec, point: Point, seeds: tuple[int, ...] | None = None) -> Configuration:
    axes, norm = dict(zip(AXIS_NAMES, point, strict=True)), spec.model.batch_norm
    phases: dict[str, dict[str, Any]] = {"warmup": {}, "qat": {}}
    for axis in AXES:
        if axis.phase:
            phases[axis.phase][axis.home[-1]] = axes.pop(axis.name)
    return Configuration(
        **axes,
        batch_norm=norm if axes["depth"] > 1 else bool(norm),  # with one factor `factors` adds nothing
        dataset=spec.data.names[0],
        val_size=spec.data.val_size,
        batch_size=spec.train.batch_size,
        warmup=_with(spec.train.warmup, **phases["warmup"]),
        qat=_with(spec.train.qat, **phases["qat"]),
        seeds=spec.seeds if seeds is None else seeds,
        own_model=_own_model(spec.model, axes["hidden"], axes["resolution"]),
        own_data=_own_data(spec.data),
        task=spec.task.name,
        metric=spec.metric.name,
        normalize=spec.data.normalize,
        model_blocks=spec.model.blocks,
        padding=spec.model.padding,
    )


def _own_model(model: ModelGroup, hidden: tuple[int, ...], resolution: int | None) -> OwnModel | None:
    if not (model.factory and model.sha256 and model.built):
        return None
    return OwnModel(model.factory, model.sha256, model.built.get(name_built(hidden, resolution)))


def _own_data(data: DataGroup) -> OwnData | None:
    if not (data.factory and data.sha256 and data.content and data.info):
        return None
    return OwnData(data.sha256, data.content, data.info)


@lru_cache(maxsize=1024)
def _with(phase: Phase, **values: Any) -> Phase:
    # Cached because a large grid repeats a few learning rates in every configuration.
    return phase.model_copy(update=values)


def _excluded(config: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    return all(config[axis] == value for axis, value in rule.items())


def _rule_text(rule: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis}: {cell_text(value)}" for axis, value in rule.items())
