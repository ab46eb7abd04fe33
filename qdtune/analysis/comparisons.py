"""Does depth help, does an activation between the factors help: pairs that differ in this alone, and a verdict.

Each comparison is made at one number of bits, one rule for step sizes and codes, one init of the factors and one
choice of the layers that are split, because these decide the answer.
Over its pairs (of other widths or learning rates, say) the mean is taken seed by seed; the seeds are what a t test
is over. Holm's correction holds the chance of any wrong verdict in a question at 5 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qdtune.analysis.pairs import KEYS, SIZES_EQUAL, Baselines, Side, curve_difference, differences, obstacle
from qdtune.analysis.seed_tests import MANY, half_width, holm, paired, seeds_needed
from qdtune.spec.axes import ASKED_AT, AXES, axis_fields, bits, idle_at_depth
from qdtune.spec.axis import Axis
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.values import cell_text
from qdtune.store.tables import Table

VERDICTS = ("helps", "hurts", "undecided", "refused")
Pairs = list[tuple[Side, Side]]
_WHY = {
    "size": "sizes further apart than 5 %",
    "failed": "training that failed",
    "unfinished": "training that has not come to its end",
}


_MadeAt: Any = axis_fields("_MadeAt", ["weight_bits", "depth", "activation", *ASKED_AT], frozen=True)


@dataclass(frozen=True)
class Comparison(_MadeAt):
    """One comparison of a question, with its verdict; accuracies are fractions of the validation split.

    Attributes:
        axis: `depth` or `activation`: the only axis in which the two sides differ.
        value, baseline: of this axis on the two sides; an effect above zero speaks for `value`.
        weight_bits, depth, activation and what else a comparison is made at (`axes.ASKED_AT`): of the side with
            `value`; None for what changes nothing, such as `scale` where nothing is quantised.
        verdict: one of `VERDICTS`.
        effect: mean over seeds of the paired difference; None where it is refused.
        low, high: its interval at `level`; None where there is none.
        level: confidence of the interval: that at which Holm's procedure tested, so that it excludes zero exactly
            where the verdict is decided.
        p: of the two-sided test, before correction; None below two seeds.
        n_seeds: seeds that both sides of every pair have.
        n_pairs: pairs of configurations, over whose differences each seed's mean is taken.
        size_bytes, baseline_bytes: mean size of the two sides over the pairs; None where not known.
        seeds_needed: how many would decide it if the effect is what it looks like, 101 for more than 100; None where
            it is decided, or more seeds would not help.
        curve_epoch, curve_effect: where a side was stopped early, the last QAT epoch that all sides have, and the
            mean difference there.
        flags: what has to be said beside the verdict.
        reason: why it is refused, or undecided for another reason than its interval; else empty.
        confounders: where it is refused for want of pairs, the other axes in which the nearest pair differs.
        stopped: whether it is refused because a side was stopped early.
    """

    axis: str
    value: int | str
    baseline: int | str
    verdict: str = "refused"
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    p: float | None = None
    n_seeds: int = 0
    n_pairs: int = 0
    size_bytes: float | None = None
    baseline_bytes: float | None = None
    seeds_needed: int | None = None
    curve_epoch: int | None = None
    curve_effect: float | None = None
    flags: tuple[str, ...] = ()
    reason: str = ""
    confounders: tuple[str, ...] = ()
    stopped: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """The two sides in words: `depth 2`, `depth 1`; `relu`, `identity`."""
        before = "depth " if self.axis == "depth" else ""
        return f"{before}{self.value}", f"{before}{self.baseline}"

    @property
    def setting(self) -> str:
        """Where the comparison is made: `At 2 bits (absmean, orthogonal)`."""
        at = [at_bits(self.weight_bits), *([f"depth {self.depth}"] if self.axis == "activation" else [])]
        between = self.activation if self.axis == "depth" and self.activation != "identity" else None
        first = [_said(axis, getattr(self, axis.name)) for axis in AXES if axis.asked and not axis.is_new]
        later = [_said(axis, getattr(self, axis.name)) for axis in AXES if axis.asked and axis.is_new]
        said = [*first, between, *later]
        return f"{' and '.join(at)} ({', '.join(filter(None, said))})"

    @property
    def hint(self) -> str:
        """How many seeds would decide it: `about 9 seeds would decide it`; empty where that is not known."""
        if not self.seeds_needed:
            return ""
        many = f"more than {MANY}" if self.seeds_needed > MANY else f"about {self.seeds_needed}"
        return f"{many} seeds would decide it"

    @property
    def sentence(self) -> str:
        """The verdict, to be read aloud."""
        one, other = self.names
        seeds = f"{self.n_seeds} seed{'s' if self.n_seeds > 1 else ''}"
        over = f"{seeds}, {self.n_pairs} pairs" if self.n_pairs > 1 else seeds
        if self.verdict == "refused":
            text = f"no answer for {one} against {other}: {self.reason}."
        elif self.reason:
            text = f"{one} against {other}: {self.verdict}, {self.reason}."
        else:
            assert None not in (self.effect, self.low, self.high, self.level)
            effect, low, high = points(self.effect, self.low, self.high)  # type: ignore[arg-type]
            interval = f"{100 * self.level:.4g} % interval {low} to {high}"  # type: ignore[operator]
            if self.verdict != "undecided":
                text = f"{one} {self.verdict}: {effect} points against {other}, {interval} ({over})."
            else:
                text = f"{one} against {other} is not decidable with these {over}: {effect} points, {interval}"
                text += f"; {self.hint} if the effect is what it looks like." if self.hint else "."
        note = f" Note: {'; '.join(self.flags)}." if self.flags else ""
        return f"{self.setting} {text}{note}"


def _said(axis: Axis, value: Any) -> str | None:
    """How a comparison says that it was made at a value of an axis; None where that goes without saying."""
    usual = (None, axis.before) if axis.is_new else (None,)
    return None if value in usual else str(axis.asked).format(value)


def at_bits(n: int) -> str:
    """`At 1 bit`, `At 2 bits`, `With float weights`."""
    return f"{'With' if n == FLOAT_BITS else 'At'} {bits(n)}"


def points(*fractions: float) -> list[str]:
    """Differences of accuracies in per cent, signed: with one digit, or two where one would show a zero."""
    digits = 1 if all(abs(x) >= 0.0005 or x == 0 for x in fractions) else 2
    return [f"{100 * x:+.{digits}f}" for x in fractions]


def compare_depths(everything: list[Side], history: Table) -> tuple[Comparison, ...]:
    """At each number of bits, scale rule and init: each depth against the smallest one at these bits.

    Chains are asked by what is between their factors: of those with an activation one learns whether they are worth
    their bytes, of those with identity whether depth alone is.

    Args:
        everything: the configurations, see `pairs.sides`.
        history: one row per seed and epoch, as `columns.HISTORY`.
    """
    return _judged(_drafted(draft, history) for draft in _depths(everything))


def compare_activations(everything: list[Side], history: Table) -> tuple[Comparison, ...]:
    """At each number of bits, depth from 2 on, scale rule and init: each activation against identity.

    Args:
        everything, history: as for `compare_depths`.
    """
    return _judged(_drafted(draft, history) for draft in _activations(everything))


Draft = tuple[Comparison, list[Side], Baselines]


def _depths(everything: list[Side]) -> Iterator[Draft]:
    for n in sorted({side.key["weight_bits"] for side in everything}):
        here = [side for side in everything if side.key["weight_bits"] == n]
        least = min(side.key["depth"] for side in here)
        baselines = Baselines([side for side in here if side.key["depth"] == least])
        chains = [side for side in here if side.key["depth"] > least]
        for group in _grouped(chains, (*ASKED_AT, "depth", "activation")):
            yield _asked("depth", least, group[0]), group, baselines


def _activations(everything: list[Side]) -> Iterator[Draft]:
    chains = [side for side in everything if side.key["depth"] > 1]
    baselines = Baselines([side for side in chains if side.key["activation"] == "identity"])
    others = [side for side in chains if side.key["activation"] != "identity"]
    if baselines.sides:
        for group in _grouped(others, ("weight_bits", *ASKED_AT, "depth", "activation")):
            yield _asked("activation", "identity", group[0]), group, baselines


def _grouped(chains: Sequence[Side], names: tuple[str, ...]) -> list[list[Side]]:
    groups: dict[tuple[Any, ...], list[Side]] = {}
    for side in chains:
        groups.setdefault(side.values(names), []).append(side)
    order = sorted(groups, key=lambda values: [(value is not None, value) for value in values])
    return [groups[values] for values in order]


def _asked(axis: str, baseline: int | str, side: Side) -> Comparison:
    shared = {name: side.key[name] for name in ("weight_bits", "depth", "activation", *ASKED_AT)}
    return Comparison(axis, side.key[axis], baseline, **shared)


def _drafted(draft: Draft, history: Table) -> tuple[Comparison, dict[int, float]]:
    """The comparison with what is known before the test, and its differences by seed; none where it is refused."""
    asked, group, baselines = draft
    idle = idle_at_depth(asked.baseline) if asked.axis == "depth" else []
    match = tuple(name for name in KEYS if name != asked.axis and name not in idle)
    pairs = (baselines.sized if asked.axis == "depth" else baselines.pairs)(group, match)
    if not pairs:
        apart, one, other = baselines.confounder(group, match)
        differ = ", ".join(f"{name} ({_shown(one, name)} here, {_shown(other, name)} there)" for name in apart)
        verb = "differs" if len(apart) == 1 else "differ"
        reason = f"no pair differs in {asked.axis} alone, {differ} {verb} too"
        return replace(asked, reason=reason, confounders=apart), {}
    found: dict[str | None, Pairs] = {}
    for pair in pairs:
        found.setdefault(obstacle(*pair), []).append(pair)
    sound = found.get(None, [])
    if "pruned" in found:
        return _stopped(asked, sound + found["pruned"], history), {}
    if not sound:
        why = max((str(name) for name in found), key=lambda name: (len(found[name]), name))
        return replace(asked, n_pairs=len(pairs), reason=_refusal(asked, why, found[why])), {}
    by_seed = differences(sound)
    asked = replace(asked, n_pairs=len(sound), flags=(*_flags(asked, sound), *_left_out(found, len(pairs))))
    sizes = [[side.size for side in those] for those in zip(*sound, strict=True)]
    means = [float(np.mean(s)) if None not in s else None for s in sizes]
    asked = replace(asked, size_bytes=means[0], baseline_bytes=means[1])
    return (asked, by_seed) if by_seed else (replace(asked, reason="no seed was trained on both sides"), {})


def _shown(side: Side, name: str) -> str:
    value = side.key[name]
    return f"{value:g}" if isinstance(value, float) else cell_text(value)


def _refusal(asked: Comparison, why: str, pairs: Pairs) -> str:
    if why != "failed":
        return f"it would compare {_WHY[why]}"
    failed = [(name, side.failure) for pair in pairs for name, side in zip(asked.names, pair, strict=True)]
    name, how = next((name, how) for name, how in failed if how)
    return f"{name} {how}, so this would compare training that failed, not {asked.axis}"


def _stopped(asked: Comparison, pairs: Pairs, history: Table) -> Comparison:
    """What is stopped for being behind has no final accuracy; and those that were not are no fair choice of pairs."""
    stopped = [name for name, those in zip(asked.names, zip(*pairs, strict=True), strict=True) if _pruned(those)]
    reason = f"{' and '.join(stopped)} {'was' if len(stopped) == 1 else 'were'} stopped early, for being behind"
    if where := curve_difference(pairs, history):
        epoch, gap = where
        asked = replace(asked, curve_epoch=epoch, curve_effect=gap)
        shown = f"{asked.names[0]} stood {points(gap)[0]} points from {asked.names[1]}"
        reason += f" (at QAT epoch {epoch}, the last that both have, {shown})"
    return replace(asked, n_pairs=len(pairs), reason=reason, stopped=True)


def _pruned(those: Iterable[Side]) -> bool:
    return any(side.state == "pruned" for side in those)


def _flags(asked: Comparison, pairs: Pairs) -> Iterator[str]:
    ranks = {(one.head_rank, other.head_rank) for one, other in pairs}
    capped = sorted((a, b) for a, b in ranks if a is not None and b is not None and a < b)
    if capped:
        a, b = capped[0]
        yield f"a last layer of rank {a} against {b}"
    widths = [(str(a), str(b)) for a, b in ([s.key["hidden"] for s in pair] for pair in pairs) if a != b]
    if widths:
        one_width, other_width = min(widths)
        yield f"hidden width {one_width} against {other_width}, for equal bytes"
    if asked.scale == "minmax" and asked.weight_bits == 2:
        yield "minmax at two bits rounds about 95 % of the first layer to zero, so this is about that rule"
    apart = [(one.size - other.size) / min(one.size, other.size) for one, other in pairs if one.size and other.size]
    if apart and abs(widest := max(apart, key=abs)) >= SIZES_EQUAL:
        size = "larger" if widest > 0 else "smaller"
        yield f"{abs(widest):.1%} {size}".replace("%", " %")


def _left_out(found: dict[str | None, Pairs], total: int) -> Iterator[str]:
    for why, those in found.items():
        if why is not None:
            yield f"{len(those)} of {total} pairs left out for {_WHY[why]}"


def _judged(drafts: Iterable[tuple[Comparison, dict[int, float]]]) -> tuple[Comparison, ...]:
    """All comparisons of a question with their verdicts: one family for Holm's procedure."""
    family = list(drafts)
    seeds = sorted({seed for _, by_seed in family for seed in by_seed})
    table = np.array([[by_seed.get(s, np.nan) for s in seeds] for _, by_seed in family])
    table = table.reshape(len(family), len(seeds))
    found = paired(table)
    rejected, levels = holm(found.p)
    result = []
    for i, (asked, by_seed) in enumerate(family):
        n, effect, std = len(by_seed), float(found.mean[i]), float(found.std[i])
        if by_seed:
            asked = replace(asked, n_seeds=n, effect=effect, verdict="undecided")
        if n == 1:
            asked = replace(asked, reason=f"{points(effect)[0]} points with one seed, which tells nothing of chance")
        elif n > 1:
            asked = replace(asked, p=float(found.p[i]))
            if rejected[i]:
                asked = replace(asked, verdict="helps" if effect > 0 else "hurts")
            if std > 0:
                half, alpha = half_width(std, n, levels[i]), float(levels[i])
                low, high = max(effect - half, -1), min(effect + half, 1)
                asked = replace(asked, low=low, high=high, level=1 - alpha)
                if not rejected[i]:
                    asked = replace(asked, seeds_needed=seeds_needed(effect, std, alpha))
            else:
                asked = replace(asked, reason=_equal(effect, n, asked.p))
        result.append(asked)
    return tuple(result)


def _equal(effect: float, n: int, p: float | None) -> str:
    """What is said where all seeds differ by the same amount."""
    if p == 1:
        return f"no difference in any of these {n} seeds"
    alike = f"{points(effect)[0]} points in each of {n} seeds alike"
    return f"{alike}, which leaves nothing but the signs to judge by (p = {p:.2g})"
