"""The one table of the front: what a sweep prints at its end and what a report prints."""

import io

import pytest
from rich.console import Console

from qdtune.store.front import print_front
from qdtune.store.pareto_table import aggregate
from qdtune.store.parquet import to_table
from qdtune.terminal import console
from tests.schemas import TRIALS
from tests.store.test_store import row

NOTE = "accuracy: mean of n seeds ± half of its 95 % interval (Student t)"


def pareto(*rows):
    return aggregate(to_table(list(rows), TRIALS, {}), bootstrap=True)


def printed(capsys, *args, **options):
    print_front(*args, console(), **options)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("width", "last"), [(0, "n"), (40, "n"), (80, "p front")])
def test_p_front_is_shown_only_if_it_fits(capsys, width, last):
    worse = (row("b", seed, scale="lsq", val_accuracy=0.1) for seed in (0, 1))
    table = pareto(*(row("a", seed) for seed in (0, 1)), *worse)
    title, heads, cells, note = printed(capsys, table, "toy", width=width)
    assert title == "Pareto front on toy: 1 of 2 configurations"
    assert heads.split("  ")[-1].strip() == last
    assert cells.startswith(f"{table['size_bytes'][0].as_py():,}".rjust(5))
    assert note == NOTE


def test_one_seed_has_no_interval_to_explain_and_a_budget_stands_in_the_title(capsys):
    title, _, _ = printed(capsys, pareto(row("a", 0)), "toy", budget=4096)
    assert title == "Pareto front on toy, within 4,096 bytes: 1 of 1 configuration"


def test_an_empty_front_prints_nothing(capsys):
    assert printed(capsys, pareto(row("a", 0, state="failed")), "toy") == []


def test_only_axes_that_vary_are_columns(capsys):
    _, heads, *_ = printed(capsys, pareto(row("a", 0, depth=1), row("b", 0, depth=2, size_bytes=1)), "toy")
    assert heads.split() == ["bytes", "depth", "validation", "test", "n"]


def test_axes_share_a_column_on_a_terminal_that_is_too_narrow_for_one_each():
    """A log has a column for each, however wide; a metric or a size is never cut."""
    other = {"depth": 2, "activation": "leaky_relu", "granularity": "channel", "scale": "lsq", "hidden": "64-32"}
    rows = [row("a", 0, act_bits=4, **other), row("b", 0, act_bits=8, size_bytes=1), row("b", 1, size_bytes=1)]
    table = pareto(*(one | {"levels": "ternary"} if one["depth"] == 2 else one for one in rows))
    for is_terminal, width in ((False, 60), (True, 60), (True, 200)):
        file = io.StringIO()
        print_front(table, "toy", Console(file=file, width=width, force_terminal=is_terminal, color_system=None))
        _, heads, *rest = file.getvalue().splitlines()
        text = " ".join(" ".join(rest).split())
        merged = is_terminal and width == 60
        assert ("configuration" in heads, "granularity" in heads) == (merged, not merged)
        assert "…" not in text, text
        assert "scale" in heads, "labels do not name it"
