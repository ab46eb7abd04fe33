"""The answers of a run in a few sentences: significant results first, then how many are not, then what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from qdtune.analysis.answers import Answers
from qdtune.analysis.best import BestDepth
from qdtune.analysis.comparison import OBSTACLES, VERDICTS, Comparison, named_settings
from qdtune.messages import format_count
from qdtune.spec.axes import ASKED_AT, axis_of
from qdtune.spec.choices import FLOAT_BITS, QUESTION_AXES
from qdtune.spec.metric_text import format_differences, say_distance
from qdtune.store.looks import GIVEN_UP, LIVE

MAX_GROUPS = 3  # significant results of one question that are said; the others are counted
MAX_WORDS = 3  # values of one axis that a sentence about several best depths names
FEW_TESTED = 2  # comparisons with an effect that are said one by one


def conclude(axis: str, answers: Answers) -> list[str]:
    """The conclusions of a question, the significant ones first.

    Args:
        axis: of the question: `depth` or `activation`.
        answers: of the run.
    """
    found: tuple[Comparison, ...] = getattr(answers, axis)
    first, rest = significant_sentences(found), [*behind_sentences(found), *_count_others(found)]
    if axis == "depth":
        best = [answers.best.sentence] if answers.best.row else []
        depths = [one for one in answers.by_bits if one.p is not None]
        first = [*best, *_name_best_depths([one for one in depths if one.decided]), *first]
        open_bits = _name_open_bits([one for one in depths if not one.decided])
        rest = [*open_bits, *_name_lone_depths([one for one in answers.by_bits if one.is_alone]), *rest]
    return [*first, *rest]


def sum_up(answers: Answers) -> list[str]:
    """A line each for the end of a launch: the best configuration, and the verdicts of each question."""
    best = [answers.best.short_sentence] if answers.best.row else []
    questions = ((axis, getattr(answers, axis)) for axis in QUESTION_AXES)
    return [*best, *(f"{axis.capitalize()}, {describe_verdicts(found)}." for axis, found in questions if found)]


def significant_sentences(found: Sequence[Comparison]) -> list[str]:
    """One sentence for all significant comparisons of the same two values and verdict, the largest group first."""
    tested = [one for one in found if one.effect is not None]
    groups: dict[tuple[tuple[str, str], str], list[Comparison]] = {}
    for one in tested:
        if one.is_significant:
            groups.setdefault((one.names, one.verdict), []).append(one)
    settings = named_settings(found)
    counts = Counter(one.names for one in tested)
    ordered = sorted(groups.values(), key=lambda members: -len(members))
    if len(tested) <= FEW_TESTED:
        return [one.describe(settings) for members in ordered for one in members]
    lines = []
    for members in ordered[:MAX_GROUPS]:
        if len(members) == 1:
            lines += [one.describe(settings) for one in members]
        else:
            lines.append(_describe_group(members, counts[members[0].names], _describe_where(members, found)))
    if rest := ordered[MAX_GROUPS:]:
        short = "; ".join(
            f"{' is better than ' if members[0].verdict == 'helps' else ' is worse than '}".join(members[0].names)
            + f" ({_describe_where(members, found)})"
            for members in rest
        )
        lines.append(
            f"{format_count(len(rest), 'more result')} {'is' if len(rest) == 1 else 'are'} significant: {short}."
        )
    return lines


def behind_sentences(found: Sequence[Comparison]) -> list[str]:
    """One sentence for all comparisons in which the same side is behind, the largest group first."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for one in found:
        if one.verdict == "behind":
            ahead = next(name for name in one.names if name != one.behind)
            groups.setdefault((one.behind, ahead), []).append(one)
    settings, lines = named_settings(found), []
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    for (behind, ahead), members in ordered[:MAX_GROUPS]:
        if len(members) == 1:
            lines.append(members[0].describe(settings))
            continue
        where = _describe_where(members, found)
        lines.append(
            f"{_capital(behind)} is behind {ahead} in {len(members)} comparisons ({where}): "
            "it was stopped early, and none of the finished trainings most like it gained as much as it would need."
        )
    if rest := ordered[MAX_GROUPS:]:
        count = format_count(sum(len(members) for _, members in rest), "more comparison")
        short = "; ".join(
            f"{behind} is behind {ahead} ({_describe_where(members, found)})" for (behind, ahead), members in rest
        )
        lines.append(f"In {count} a side is behind: {short}.")
    return lines


def _describe_where(members: Sequence[Comparison], found: Sequence[Comparison]) -> str:
    """At which bits, and at which values of other settings: `at 1 and 2 bits, relu`."""
    bits = describe_bits_list(sorted({member.weight_bits for member in members}))
    return ", ".join([bits, *_describe_shared(members, found, named_settings(found))])


def _describe_shared(
    members: Sequence[Comparison], found: Sequence[Comparison], settings: Sequence[str]
) -> list[str]:
    """The values in words of each setting of which the members have only some of the values."""
    words = []
    for name in settings:
        if name == "activation" and members[0].axis == "activation":
            continue
        values, all_values = (sorted({getattr(one, name) for one in some} - {None}) for some in (members, found))
        if values and values != all_values:
            form = axis_of(name).asked or "{}"
            words.append(" and ".join(str(form).format(value) for value in values))
    return words


def _describe_group(members: Sequence[Comparison], total: int, where: str) -> str:
    """`Depth 3 is significantly better than depth 1 in 2 of 10 comparisons (at 1 bit, relu), by 0.5 to 1 points.`"""
    one, other = members[0].names
    better = "better" if members[0].verdict == "helps" else "worse"
    sizes = sorted(abs(member.effect or 0) for member in members)
    metric = members[0].metric
    low, high = (text.removeprefix("+") for text in format_differences(metric, sizes[0], sizes[-1]))
    points = say_distance(metric, low if low == high else f"{low} to {high}")
    count = f"in {'all' if len(members) == total else f'{len(members)} of'} {total} comparisons"
    return f"{_capital(one)} is significantly {better} than {other} {count} ({where}), by {points}."


def _count_others(found: Sequence[Comparison]) -> Iterator[str]:
    """How many comparisons are not significant, and how many seeds the closest would need."""
    tested = [one for one in found if one.effect is not None]
    open_ones = [one for one in tested if not one.is_significant]
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
        yield f"{named} is significantly better than every other depth {where}."


def _join_settings(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """The values in words of each axis, such as `relu or gelu`; an axis with more than `MAX_WORDS` is left out."""
    words = [list(dict.fromkeys(one[axis] for one in settings if axis in one)) for axis in settings[0]]
    return [" or ".join(values) for values in words if len(values) <= MAX_WORDS]


def _name_open_bits(undecided: Sequence[BestDepth]) -> Iterator[str]:
    """At which bits no depth is significantly the best."""
    if len(undecided) == 1:
        yield undecided[0].sentence
    elif undecided:
        where = describe_bits_list([one.weight_bits or 0 for one in undecided])
        yield f"{_capital(where)}, no depth is significantly better than every other depth."


def _name_lone_depths(alone: Sequence[BestDepth]) -> Iterator[str]:
    """At which bits one depth alone was trained to its end or fits the budget, and how the others ended."""
    groups: dict[str, list[int]] = {}
    for one in alone:
        if one.ended:
            groups.setdefault(one.describe_alone(), []).append(one.weight_bits or 0)
    for what, bits in groups.items():
        yield f"{_capital(describe_bits_list(bits))}, {what}."


def describe_bits_list(numbers: Sequence[int]) -> str:
    """`at 1 bit`, `at 1, 2 and 8 bits`, `at 2 bits and with float weights`."""
    whole = [n for n in numbers if n != FLOAT_BITS]
    *first, last = map(str, whole) if whole else [""]
    shown = f"{', '.join(first)} and {last}" if first else last
    parts = [f"at {shown} {'bit' if whole == [1] else 'bits'}"] if whole else []
    return " and ".join([*parts, *(["with float weights"] if FLOAT_BITS in numbers else [])])


def describe_verdicts(found: Sequence[Comparison]) -> str:
    """How comparisons came out: `15 comparisons: 2 help, 13 refused`; empty if there are none."""
    counts = Counter(one.verdict for one in found)
    verdicts = ", ".join(_count_verdict(counts[verdict], verdict) for verdict in VERDICTS if counts[verdict])
    return f"{format_count(len(found), 'comparison')}: {verdicts}" if found else ""


def _count_verdict(count: int, verdict: str) -> str:
    """`1 helps`, `2 help`, `3 refused`."""
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
    within = "" if budget is None else f", {'that' if count == 1 else 'those'} within the budget"
    text = f"Corrected for {format_count(count, 'test')} (Holm){within}"
    advice = "hoose a budget before you look at results, because verdicts depend on it."
    if any(one.look for one in found):  # whose family also holds comparisons that are not tested yet
        return "" if budget is None else f"C{advice}"
    return f"{text}." if budget is None else f"{text}: c{advice}"


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
    return [name for name in ASKED_AT if len({getattr(one, name) for one in found} - {None}) > 1]


def _capital(text: str) -> str:
    """The text with a capital letter, except names such as `relu`, which stay as users write them."""
    return text[0].upper() + text[1:] if text.split()[0] in ("depth", "at", "with") else text
