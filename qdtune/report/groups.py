"""Comparisons with the same verdict, told together: one sentence for all of the same two values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qdtune.analysis.comparison import Comparison, named_settings, values_among
from qdtune.messages import format_count
from qdtune.spec.axes import axis_of
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.metric_text import format_differences, say_distance

MAX_GROUPS = 3  # results of one question that are said; the others are counted
FEW_TESTED = 2  # comparisons with an effect that are said one by one
RELATIONS = {  # how the first of two values stands to the second: verdict -> in full, and in short
    "helps": ("is significantly better than", "is better than"),
    "hurts": ("is significantly worse than", "is worse than"),
    "same": ("is the same as", "is the same as"),
}


def significant_sentences(found: Sequence[Comparison]) -> list[str]:
    """One sentence for all significant comparisons of the same two values and verdict, the largest group first."""
    lines, rest = _say_groups(found, ("helps", "hurts"))
    if rest:
        count = f"{format_count(len(rest), 'more result')} {'is' if len(rest) == 1 else 'are'} significant"
        lines.append(f"{count}: {_join_short(rest, found)}.")
    return lines


def same_sentences(found: Sequence[Comparison]) -> list[str]:
    """As `significant_sentences`, for comparisons that are the same within the margin of the sweep."""
    lines, rest = _say_groups(found, ("same",))
    if rest:
        margin = rest[0][0].margin_text
        lines.append(f"{format_count(len(rest), 'more pair')} of values, {margin}: {_join_short(rest, found)}.")
    return lines


def _say_groups(found: Sequence[Comparison], verdicts: Sequence[str]) -> tuple[list[str], list[list[Comparison]]]:
    """A sentence for each of the largest groups of comparisons with these verdicts, and the other groups."""
    tested = [one for one in found if one.effect is not None]
    groups: dict[tuple[tuple[str, str], str], list[Comparison]] = {}
    for one in tested:
        if one.verdict in verdicts:
            groups.setdefault((one.names, one.verdict), []).append(one)
    settings = named_settings(found)
    counts = Counter(one.names for one in tested)
    ordered = sorted(groups.values(), key=lambda members: -len(members))
    if len(tested) <= FEW_TESTED:
        return [one.describe(settings) for members in ordered for one in members], []
    lines = [
        members[0].describe(settings)
        if len(members) == 1
        else _describe_group(members, counts[members[0].names], _describe_where(members, found))
        for members in ordered[:MAX_GROUPS]
    ]
    return lines, ordered[MAX_GROUPS:]


def _join_short(groups: Sequence[Sequence[Comparison]], found: Sequence[Comparison]) -> str:
    """`depth 3 is better than depth 1 (at 2 bits; look 2, 6 seeds); depth 2 is ...`."""
    return "; ".join(
        f" {RELATIONS[members[0].verdict][1]} ".join(members[0].names) + f" ({_describe_where(members, found)})"
        for members in groups
    )


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
            f"{capital(behind)} is behind {ahead} in {len(members)} comparisons ({where}): "
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
    """At which bits, at which values of other settings, and at which looks: `at 1 and 2 bits, relu; look 2, 6 seeds`.

    Args:
        members: the comparisons.
        found: all comparisons of the question.
    """
    bits = describe_bits_list(sorted({member.weight_bits for member in members}))
    where = ", ".join([bits, *_describe_shared(members, found, named_settings(found))])
    looks = sorted({member.look for member in members if member.look})
    if not looks:
        return where
    seeds = sorted({member.n_seeds for member in members})
    said = f"look {looks[0]}" if len(looks) == 1 else f"looks {_describe_range(looks)}"
    return f"{where}; {said}, {_describe_range(seeds)} seeds"


def _describe_range(numbers: Sequence[int]) -> str:
    """`2`, `2 and 3`, `1 to 3`; ascending."""
    if len(numbers) == 1:
        return str(numbers[0])
    return f"{numbers[0]} {'and' if len(numbers) == 2 else 'to'} {numbers[-1]}"


def _describe_shared(
    members: Sequence[Comparison], found: Sequence[Comparison], settings: Sequence[str]
) -> list[str]:
    """The values in words of each setting of which the members have only some of the values."""
    words = []
    for name in settings:
        if name == "activation" and members[0].axis == "activation":
            continue
        values, all_values = (values_among(some, name) for some in (members, found))
        if values and values != all_values:
            form = axis_of(name).asked or "{}"
            said = [str(form).format(value) for value in sorted(values - {None})]
            words.append(" and ".join([*said, *([f"{name} null"] if None in values else [])]))
    return words


def _describe_group(members: Sequence[Comparison], total: int, where: str) -> str:
    """`Depth 3 is significantly better than depth 1 in 2 of 10 comparisons (at 1 bit, relu), by 0.5 to 1 points.`"""
    (one, other), first = members[0].names, members[0]
    count = f"in {'all' if len(members) == total else f'{len(members)} of'} {total} comparisons"
    said = f"{capital(one)} {RELATIONS[first.verdict][0]} {other}"
    if first.verdict == "same":
        return f"{said} {first.margin_text} {count} ({where})."
    sizes = sorted(abs(member.effect or 0) for member in members)
    low, high = (text.removeprefix("+") for text in format_differences(first.metric, sizes[0], sizes[-1]))
    points = say_distance(first.metric, low if low == high else f"{low} to {high}")
    return f"{said} {count} ({where}), by {points}."


def describe_bits_list(numbers: Sequence[int]) -> str:
    """`at 1 bit`, `at 1, 2 and 8 bits`, `at 2 bits and with float weights`."""
    whole = [n for n in numbers if n != FLOAT_BITS]
    *first, last = map(str, whole) if whole else [""]
    shown = f"{', '.join(first)} and {last}" if first else last
    parts = [f"at {shown} {'bit' if whole == [1] else 'bits'}"] if whole else []
    return " and ".join([*parts, *(["with float weights"] if FLOAT_BITS in numbers else [])])


def capital(text: str) -> str:
    """The text with a capital letter, except names such as `relu`, which stay as users write them."""
    return text[0].upper() + text[1:] if text.split()[0] in ("depth", "at", "with") else text
