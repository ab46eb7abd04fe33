"""What must not change unless it is meant to: ids, tables, the numbers of a training, what commands print.

Where a change is meant, `python -m tests.golden.record` writes the new records, which are committed with it.
"""

import json

import pytest

from tests.golden import trees

RECORDED = json.loads(trees.NUMBERS.read_text())


def test_ids_of_every_configuration_are_those_of_the_first_landing():
    found = trees.ids()
    assert len(found) > 400
    assert found == trees.IDS.read_text().splitlines()


def test_commands_print_what_they_printed():
    found = trees.words()
    recorded = {path.stem: path.read_text() for path in trees.WORDS.glob("*.txt")}
    assert found.keys() == recorded.keys()
    for name, text in found.items():
        assert text == recorded[name], name


@pytest.mark.timeout(600)
def test_trainings_give_the_recorded_numbers(eager_launch):
    check_numbers("eager", eager_launch.folder)


@pytest.mark.slow  # the same uncompiled is above; training/test_compiled.py compares both
@pytest.mark.timeout(600)
def test_compiled_trainings_give_the_recorded_numbers(tmp_path):
    check_numbers("compiled", trees.sweep("compiled", tmp_path))


def check_numbers(name, run):
    """To the last bit on the machine of the record; on another one as near as another order of sums allows."""
    found, recorded = trees.numbers(run), dict(RECORDED[name])
    weights = recorded.pop("packed")
    if trees.machine() == RECORDED["machine"]:
        assert found == recorded
        assert trees.packed(run) == weights
        return
    for kind, (heads, *rows) in recorded.items():
        assert found[kind][0] == heads
        assert sorted({row[0] for row in found[kind][1:]}) == sorted({row[0] for row in rows})
    sized = recorded["pareto"][0].index("size_bytes")
    assert {r[0]: r[sized] for r in found["pareto"][1:]} == {r[0]: r[sized] for r in recorded["pareto"][1:]}
    heads, *rows = recorded["trials"]
    place = heads.index("val_accuracy")
    accuracies = [[float.fromhex(r[place]) for r in those if r[place]] for those in (rows, found["trials"][1:])]
    means = [sum(a) / len(a) for a in accuracies]
    assert abs(means[0] - means[1]) < 0.05
