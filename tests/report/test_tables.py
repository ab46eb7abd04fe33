"""Comparisons as text: narrow tables whose notes are letters, and effects that say no more than they prove."""

from dataclasses import replace

import pytest

from qdtune.report.tables import format_effect, full_table, short_tables
from qdtune.terminal import wrap_text
from tests.report.test_conclusions import BASE, HELPS, UNDECIDED, at

REFUSED = replace(BASE, reason="sizes differ by more than 5 %", obstacle="size")
FOUND = [HELPS, *at(replace(UNDECIDED, flags=("a note",)), 4), *at(REFUSED, 8)]


def test_notes_are_letters_below_the_table():
    (table,), notes = short_tables("activation", FOUND, 80)
    assert table.heads == ["bits", "activation", "effect (points)", "n", "needed", "verdict", "notes"]
    assert [row[-3:] for row in table.rows] == [["-", "helps", ""], ["9", "undecided", "a"], ["-", "refused", "b"]]
    assert notes[0] == "A positive effect favours the value in the column activation over identity."
    assert notes[1] == "In brackets: the 95 % interval, at the level of the test (Holm's correction)."
    assert notes[3:] == ["a: a note.", "b: sizes differ by more than 5 %."]
    wide = full_table("activation", FOUND)
    assert wide.rows[1][-1] == "undecided; about 9 seeds would be needed; a note"


def test_each_setting_has_a_table_if_one_is_too_wide():
    found = [*FOUND, *(replace(one, scale="minmax") for one in FOUND)]
    (table,), _ = short_tables("activation", found, 80)
    assert table.heads[:3] == ["bits", "scale", "activation"]
    tables, notes = short_tables("activation", found, table.width - 1)
    assert [one.title for one in tables] == ["scale lsq", "scale minmax"]
    assert all("scale" not in one.heads and one.width < table.width and len(one.rows) == 3 for one in tables)
    assert len(notes) == 5


def test_the_levels_of_the_intervals_are_told():
    several = [HELPS, *at(replace(UNDECIDED, level=0.998), 4)]
    assert short_tables("activation", several, 80).notes[1] == (
        "In brackets: the 95 to 99.8 % interval, at the level of each test (Holm's correction)."
    )
    useless = [replace(UNDECIDED, low=-1.0), *at(REFUSED, 8)]
    assert not any("In brackets" in note for note in short_tables("activation", useless, 80).notes)
    assert "In brackets: the 95 % interval" in full_table("activation", FOUND).title


def test_more_notes_than_letters_have_two_letters_each():
    found = [replace(HELPS, flags=(f"note {k}",)) for k in range(28)]
    (table,), notes = short_tables("activation", found, 80)
    assert [row[-1] for row in table.rows[25:]] == ["z", "aa", "ab"]
    assert notes[-1] == "ab: note 27."


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "+2.00 [+1.00, +3.00]"),
        ({"effect": -0.00001, "low": -0.01, "high": 0.00001, "verdict": "undecided"}, "0.00 [-1.00, 0.00]"),
        ({"low": -0.2, "high": 1, "verdict": "undecided"}, "+2.00"),
        ({"low": 0.01, "high": 1}, "+2.00 [+1.00, +100.00]"),
    ],
)
def test_an_effect_has_no_negative_zero_and_no_interval_that_says_nothing(changes, text):
    one = replace(HELPS, **changes)
    assert format_effect(one) == text
    told = "too few seeds for an interval" in full_table("activation", [one]).rows[0][-1]
    assert told == (one.is_interval_useless)


@pytest.mark.parametrize("unit", ["%", "bytes", "bits", "seeds", "points"])
def test_a_number_and_its_unit_stay_on_one_line(unit):
    assert wrap_text(f"It has 97.4 {unit} there", 12, " ") == ["It has", f" 97.4 {unit}", " there"]
    assert wrap_text("It has depth 2", 12) == ["It has", "depth 2"]
    assert wrap_text("It has seen 4 of them", 13) == ["It has seen 4", "of them"]
