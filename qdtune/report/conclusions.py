"""The answers of a run in a few sentences: significant results first, then how many are not, then what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from qdtune.analysis.answers import Answers
from qdtune.analysis.best_depth import BestDepth
from qdtune.analysis.comparison import OBSTACLES, VERDICTS, Comparison, named_settings
from qdtune.messages import format_count
from qdtune.report.groups import (
    FEW_TESTED,
    MAX_GROUPS,
    behind_sentences,
    capital,
    describe_bits_list,
    same_sentences,
    significant_sentences,
)
from qdtune.spec.axes import ASKED_AT
from qdtune.spec.choices import QUESTION_AXES
from qdtune.spec.objectives import SIZE_BYTES, Objective, say_larger
from qdtune.store.looks import GIVEN_UP, LIVE
from qdtune.store.pairs import SIZES_APART

MAX_WORDS = 3  # values of one axis that a sentence about several best depths names


def conclude(axis: str, answers: Answers) -> list[str]:
    """The conclusions of a question, the significant ones first.

    Args:
        axis: of the question: `depth` or `activation`.
        answers: of the run.
    """
    found: tuple[Comparison, ...] = getattr(answers, axis)
    first, rest = significant_sentences(found), [*behind_sentences(found), *_count_others(found)]
    first += same_sentences(found)
    if axis == "depth":
        best = [answers.best.sentence] if answers.best.row else []
        best += _tell_seeds(answers)
        depths = [one for one in answers.by_bits if one.p is not None]
        first = [*best, *_name_best_depths([one for one in depths if one.decided]), *first]
        open_bits = _name_open_bits([one for one in depths if not one.decided])
        rest = [*open_bits, *_name_lone_depths([one for one in answers.by_bits if one.is_alone]), *rest]
    return [*first, *rest]


def sum_up(answers: Answers) -> list[str]:
    """A line each for the end of a launch: the best configuration, and the verdicts of each question."""
    best = [answers.best.short_sentence] if answers.best.row else []
    questions = [(axis, getattr(answers, axis)) for axis in QUESTION_AXES]
    verdicts = [f"{axis.capitalize()}, {describe_verdicts(found)}." for axis, found in questions if found]
    return [*best, *(_tell_seeds(answers) if best and verdicts else []), *verdicts]


def _tell_seeds(answers: Answers) -> list[str]:
    """Why the best configuration and depths may seem to contradict comparisons that have more seeds."""
    few = answers.best.n_tested
    most = max((one.n_seeds for axis in QUESTION_AXES for one in getattr(answers, axis)), default=0)
    if few is None or most <= few:
        return []
    return [
        f"The best configuration and the best depths are tested with the first {format_count(few, 'seed')}, because "
        f"results decide who gets more. The comparisons use up to {most}."
    ]


def describe_best_depths(answers: Answers) -> list[str]:
    """A sentence for the best depth at each number of bits and within each cost, and why the two may differ."""
    both = (answers.by_bits, answers.by_size)
    lines = [one.sentence for found in both for one in found]
    n_bits, n_sizes = (sum(one.p is not None for one in found) for found in both)
    if not (n_bits and n_sizes):
        return lines
    cost = answers.by_size[0].costs[0]
    sizes = format_count(n_sizes, "size" if cost is SIZE_BYTES else "number")
    sizes += "" if cost is SIZE_BYTES else f" of {cost.head}"
    counts = f"for {format_count(n_bits, 'bit width')} and for {sizes}"
    what = f'The best depth "at N bits" and the best "within N {cost.head}" are two questions'
    how = f"each is corrected by itself (Holm, {counts})"
    return [*lines, f"{what}, and {how}. So one can be significant where the other is not."]


def _count_others(found: Sequence[Comparison]) -> Iterator[str]:
    """How many comparisons are not significant, and how many seeds the closest would need."""
    tested = [one for one in found if one.effect is not None]
    open_ones = [one for one in tested if not one.is_settled]
    if len(tested) <= FEW_TESTED or len(open_ones) == 1:
        yield from (one.describe(named_settings(found)) for one in open_ones)
        return
    if not open_ones:
        return
    n = len(open_ones)
    seeds = sorted({one.n_seeds for one in open_ones})
    if seeds[-1] == 1:
        yield f"{format_count(n, 'comparison')} cannot be tested: a test needs at least 2 seeds."
        return
    with_seeds = f"with {format_count(seeds[-1], 'seed')}"
    if len(seeds) > 1:
        with_seeds = f"with {seeds[0]} to {seeds[-1]} seeds"
    none = n == len(tested)
    text = f"None of {n} comparisons is" if none else f"{n} comparisons are not"
    needed = [one for one in open_ones if one.seeds_needed]
    closest = min(needed, key=lambda one: one.seeds_needed or 0, default=None)
    end = f" The closest would need {closest.hint}." if closest else ""
    endings = Counter(one.ending for one in open_ones if one.ending)
    how = f": {', '.join(f'{endings[name]} {name}' for name in (GIVEN_UP, LIVE) if endings[name])}" if endings else ""
    yield f"{text} significant {with_seeds}{how}.{end}"


def _name_best_depths(decided: Sequence[BestDepth]) -> Iterator[str]:
    """Which depth is significantly the best at which bits."""
    if len(decided) == 1:
        yield decided[0].sentence
        return
    groups: dict[int, list[BestDepth]] = {}
    for one in decided:
        groups.setdefault(one.depth, []).append(one)
    for depth, members in groups.items():
        where = describe_bits_list([one.weight_bits or 0 for one in members])
        words = _join_settings([one.setting for one in members])
        named = f"Depth {depth} ({', '.join(words)})" if words else f"Depth {depth}"
        first = f" (tested with {members[0].first_seeds})" if members[0].first_seeds else ""
        yield f"{named} is significantly better than every other depth {where}{first}.{_note_larger(members)}"


def _note_larger(members: Sequence[BestDepth]) -> str:
    """` At 2 and 4 bits it is more than 5 % larger there than the best of every other depth.`; empty if nowhere."""
    groups: dict[tuple[Objective, ...], list[int]] = {}
    for one in members:
        groups.setdefault(one.more, []).append(one.weight_bits or 0)
    lines = []
    for more, bits in groups.items():
        where = f"{capital(describe_bits_list(bits))} it" if len(groups) > 1 else "It"
        how = say_larger(more, f"more than {100 * SIZES_APART:g} % ") if more else ""
        lines += [f" {where} {how} there than the best of every other depth."] if more else []
    return "".join(lines)


def _join_settings(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The values in words of each axis, such as `relu or gelu`; of more than `MAX_WORDS` the others are counted."""
    words = [list(dict.fromkeys(one[axis] for one in settings if axis in one)) for axis in settings[0]]
    more = [values[MAX_WORDS:] for values in words]
    return [
        " or ".join([*values[:MAX_WORDS], *([format_count(len(others), "other")] if others else [])])
        for values, others in zip(words, more, strict=True)
    ]


def _name_open_bits(undecided: Sequence[BestDepth]) -> Iterator[str]:
    """At which bits no depth is significantly the best."""
    if len(undecided) == 1:
        yield undecided[0].sentence
    elif undecided:
        where = describe_bits_list([one.weight_bits or 0 for one in undecided])
        first = f" with {undecided[0].first_seeds}" if undecided[0].first_seeds else ""
        none = "no depth is significantly better than every other depth"
        yield f"{capital(where)}{first}, {none}.{_name_leaders(undecided)}"


def _name_leaders(undecided: Sequence[BestDepth]) -> str:
    """` Depth 1 (hidden 24) has the best mean at 1 and 2 bits, depth 3 (relu) at 8 bits.`; empty if that is long."""
    groups: dict[str, list[int]] = {}
    for one in undecided:
        groups.setdefault(one.named, []).append(one.weight_bits or 0)
    if len(groups) > MAX_GROUPS:
        return ""
    (first, where), *others = [(named, describe_bits_list(bits)) for named, bits in groups.items()]
    more = "".join(f", {named} {bits}" for named, bits in others)
    return f" {capital(first)} has the best mean {where}{more}."


def _name_lone_depths(alone: Sequence[BestDepth]) -> Iterator[str]:
    """At which bits one depth alone was trained to its end or fits the budget, and how the others ended."""
    groups: dict[str, list[int]] = {}
    for one in alone:
        if one.ended:
            groups.setdefault(one.describe_alone(), []).append(one.weight_bits or 0)
    for what, bits in groups.items():
        yield f"{capital(describe_bits_list(bits))}, {what}."


def describe_verdicts(found: Sequence[Comparison]) -> str:
    """How comparisons came out: `15 comparisons: 2 help, 13 refused`; empty if there are none."""
    counts = Counter(one.verdict for one in found)
    verdicts = ", ".join(_count_verdict(counts[verdict], verdict) for verdict in VERDICTS if counts[verdict])
    return f"{format_count(len(found), 'comparison')}: {verdicts}" if found else ""


def _count_verdict(count: int, verdict: str) -> str:
    """`1 helps`, `2 help`, `3 the same`, `3 refused`."""
    if verdict == "same":
        return f"{count} the same"
    return f"{count} {verdict if count == 1 else verdict.removesuffix('s')}"


def describe_refusals(axis: str, found: Sequence[Comparison]) -> str:
    """How many comparisons are refused for which reason, in one line; empty if none is."""
    reasons = _count_reasons(axis, found)
    if not reasons:
        return ""
    if len(reasons) == 1:
        return f"{reasons[0][0]} refused because {reasons[0][1]}"
    return f"{sum(n for n, _ in reasons)} refused: {_list_reasons(reasons)}"


def describe_counts(axis: str, found: Sequence[Comparison]) -> str:
    """How comparisons came out, and why some are refused, in one line; empty if there are none."""
    verdicts, reasons = describe_verdicts(found), _count_reasons(axis, found)  # those refused are the last verdict
    if len(reasons) > 1:
        return f"{verdicts} ({_list_reasons(reasons)})"
    return f"{verdicts} because {reasons[0][1]}" if reasons else verdicts


def describe_correction(found: Sequence[Comparison], budget: int | None) -> str:
    """For how many tests the verdicts are corrected, and that a budget changes them; empty if that says nothing.

    Args:
        found: the comparisons of a question.
        budget: bytes; None: no limit.
    """
    count = sum(one.p is not None for one in found)
    if not count or (count == 1 and budget is None):
        return ""
    within = "" if budget is None else " within the budget"
    text = f"Corrected for {format_count(count, 'test')}{within} (Holm)."
    advice = "Choose a budget before you look at results, because verdicts depend on it."
    if any(one.look for one in found):  # whose family also holds comparisons that are not tested yet
        return "" if budget is None else advice
    return text if budget is None else f"{text} {advice}"


def _count_reasons(axis: str, found: Sequence[Comparison]) -> list[tuple[int, str]]:
    """How many comparisons are refused for each reason, the most frequent first."""
    counts = Counter(one.obstacle for one in found if one.verdict == "refused").most_common()
    return [(n, OBSTACLES[obstacle].format(axis)) for obstacle, n in counts]


def _list_reasons(reasons: Sequence[tuple[int, str]]) -> str:
    return ", ".join(f"{n} because {reason}" for n, reason in reasons)


def advise_refusals(axis: str, found: Sequence[Comparison]) -> list[str]:
    """What a sweep needs so that refused comparisons can be made, if its file can change that."""
    obstacles = {one.obstacle for one in found}
    lines = []
    if "pruned" in obstacles:
        lines.append("With `early_terminate: {type: none}` no side is stopped early.")
    if "confounded" in obstacles:
        others = Counter(name for one in found for name in one.confounders)
        names = ", ".join(f"`{name}`" for name, _ in others.most_common())
        lines.append(f"A grid over `{axis}` has comparable pairs if it holds fixed: {names}.")
    return lines


def varying_settings(found: Sequence[Comparison]) -> list[str]:
    """The axes of `axes.ASKED_AT` that have several values among comparisons."""
    return named_settings(found, ASKED_AT)
