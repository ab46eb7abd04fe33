"""What is derived from the pruners: the keys of `early_terminate`, canonical order, the table in the docs."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pytest

from docs.tables import pruner_table
from qdtune.spec import early_terminate, pruners
from qdtune.spec.checks import whole
from qdtune.spec.early_terminate import EarlyTerminate
from qdtune.spec.pruners import PRUNERS, NoPruner, Pruner, ScopedPruner, pruner_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("pruner", PRUNERS, ids=lambda pruner: pruner.name)
def test_a_type_alone_is_the_pruner_with_its_defaults(pruner):
    rule = EarlyTerminate(type=pruner.name)
    assert rule.pruner == pruner()
    assert rule.options == pruner.defaults()
    assert rule.keeps_front is pruner().keeps_front


def test_given_values_reach_the_pruner():
    rule = EarlyTerminate(type="hyperband", scope="all", reduction_factor=4)
    assert rule.pruner == pruners.Hyperband(scope="all", min_resource=1, reduction_factor=4)
    assert not rule.keeps_front


def test_a_pruner_is_frozen():
    with pytest.raises(FrozenInstanceError):
        EarlyTerminate(type="median").pruner.scope = "all"


def test_every_pruner_has_a_name_and_one_line_of_its_own():
    assert len({pruner.name for pruner in PRUNERS}) == len({pruner.text for pruner in PRUNERS}) == len(PRUNERS)
    assert all(pruner.text and "\n" not in pruner.text and "|" not in pruner.text for pruner in PRUNERS)


def test_every_default_passes_its_own_check():
    for pruner in PRUNERS:
        given = {"type": pruner.name, **pruner.defaults()}
        assert EarlyTerminate.model_validate(given).options == pruner.defaults()
        assert {key: type(value) for key, value in EarlyTerminate.model_validate(given).options.items()} == {
            key: type(value) for key, value in pruner.defaults().items()
        }


@pytest.mark.parametrize("name", ["nope", None, ["pareto"]])
def test_an_unknown_type_has_no_keys_of_its_own(name):
    assert pruner_of(name) is NoPruner
    assert EarlyTerminate.keys_of(name) == list(EarlyTerminate.model_fields)


def test_scope_is_a_key_of_the_pruners_that_see_sizes():
    assert [pruner.name for pruner in PRUNERS if issubclass(pruner, ScopedPruner)] == [
        pruner.name for pruner in PRUNERS if "scope" in pruner.defaults()
    ]
    assert EarlyTerminate(type="median").keeps_front
    assert not EarlyTerminate(type="median", scope="all").keeps_front


def test_a_key_with_two_meanings_is_refused(monkeypatch):
    @dataclass(frozen=True)
    class Other(Pruner):
        name: ClassVar = "other"
        patience: ANYTHING = 1

    monkeypatch.setattr(early_terminate, "PRUNERS", (*PRUNERS, Other))
    with pytest.raises(TypeError, match=r"patience must have the same type in all pruners, got .* in other"):
        early_terminate._key_fields()


ANYTHING = Annotated[int, whole(-1, 7)]


@pytest.mark.parametrize(("n_seeds", "p", "fits"), [(3, 0.125, False), (3, 0.126, True), (4, 0.1, True)])
def test_wilcoxon_needs_enough_seeds_to_reach_its_threshold(n_seeds, p, fits):
    found = list(pruners.Wilcoxon(p_threshold=p).misfits(n_seeds))
    assert found == [] if fits else [key for key, _ in found] == ["p_threshold"]
    assert not [pruner for pruner in PRUNERS if pruner is not pruners.Wilcoxon and list(pruner().misfits(1))]


def test_the_table_in_the_docs_is_that_of_the_pruners():
    table = pruner_table()
    assert len(table.splitlines()) == 2 + len(PRUNERS)
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(table in page.read_text(encoding="utf-8") for page in pages)
