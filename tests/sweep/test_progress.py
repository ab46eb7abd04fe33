"""What a log says while a sweep runs: how far it is, epochs of running trials included, and no line twice."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load
from qdtune.sweep import progress
from qdtune.sweep.pace import Start
from qdtune.sweep.progress import CHANGED_LINE_S, LINE_TRIALS, QUIET_LINE_S, SweepProgress
from qdtune.terminal import console
from tests.schemas import PARETO

SMOKE = Path(__file__).parents[2] / "sweeps" / "smoke.yaml"
EPOCHS = {"warmup": 2, "qat": 4}
NOTHING = Start()
FRONT = PARETO.empty_table()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def begun(total: int, *names: str, start: Start = NOTHING) -> SweepProgress:
    shown = SweepProgress(console(), total, start, set(), EPOCHS)
    for name in names:
        shown.start(name, name)
    return shown


def trained(shown: SweepProgress, name: str, epoch: int, seconds: float = 1.0, preparing_s: float = 0.0) -> None:
    """Reports an epoch, counted through both phases."""
    phase, n = ("warmup", epoch) if epoch <= EPOCHS["warmup"] else ("qat", epoch - EPOCHS["warmup"])
    times = {"seconds": seconds, "preparing_s": preparing_s}
    shown.update(name, {"phase": phase, "epoch": n, "val_accuracy": [0.5, None, 0.7], **times})


def epochs_of(shown: SweepProgress) -> str:
    found = re.search(r", ([\d,/]+) epochs", shown.summary())
    assert found
    return found[1]


def seconds_left(shown: SweepProgress) -> float | None:
    found = re.search(r"about (\d+) (min|s) left", shown.summary())
    return float(found[1]) * (60 if found[2] == "min" else 1) if found else None


def test_time_left_counts_down_while_trials_run_and_compiling_does_not_count(clock: Clock) -> None:
    shown, left = begun(6, start=Start(warmups=6)), []
    for done in (0, 2, 4):
        names = f"a{done}", f"b{done}"
        for name in names:
            shown.start(name, name)
        if not done:
            clock.now += 1000  # compiling
        for epoch in range(1, 7):
            for _ in range(100):
                clock.now += 1
                left.append((3800 - clock.now, seconds_left(shown)))
            for name in names:
                trained(shown, name, epoch, 100.0, 1000.0 if not done and epoch == 1 else 0.0)
        for name in names:
            shown.finish(name, "ok", FRONT, 6, 4)
    known = [(truly, said) for truly, said in left if said is not None]
    assert len(known) > len(left) / 2, "as soon as as much is trained as one trial takes"
    assert all(abs(truly - said) <= truly / 4 + 100 for truly, said in known)
    assert all(later <= before + 60 for (_, before), (_, later) in pairwise(known)), "a minute by rounding"


def test_time_left_is_unknown_before_one_trials_worth_and_after_the_last(clock: Clock) -> None:
    shown = begun(2, "a", "b", start=Start(warmups=2))
    for epoch in range(1, 4):
        for name in ("a", "b"):
            assert seconds_left(shown) is None
            trained(shown, name, epoch)
            clock.now += 1
    trained(shown, "a", 4)
    assert seconds_left(shown) == 3  # the slower one has three epochs left, one a second
    shown.finish("a", "ok", FRONT, 2, 4)
    shown.finish("b", "ok", FRONT, 2, 4)
    assert seconds_left(shown) is None


def test_time_left_is_that_of_a_large_trial_when_the_others_are_through(clock: Clock) -> None:
    shown = begun(4, "large", start=Start(warmups=4))
    for epoch in range(1, 4):  # ten times as long as each of the others
        clock.now += 600
        trained(shown, "large", epoch, 660)
        name = "abc"[epoch - 1]
        shown.start(name, name)
        for n in range(1, 7):
            clock.now += 10
            trained(shown, name, n, 10)
        shown.finish(name, "ok", FRONT, 4, 4)
    clock.now += 600
    trained(shown, "large", 4, 660)
    assert seconds_left(shown) == 2 * 660  # its own two epochs, at its own pace


def test_epochs_never_fall_whatever_happens_and_come_to_those_trained() -> None:
    draw = random.Random(0)
    shown, total, waiting = begun(40, start=Start(warmups=40)), 40, [str(n) for n in range(40)]
    draw.shuffle(waiting)
    running: dict[str, int] = {}
    done, all_trained = 0, 0
    while waiting or running:
        what = draw.choice(["start", "train", "train", "train", "lose", "end"])
        name = draw.choice(sorted(running)) if running else ""
        if what == "start" and waiting:
            running[waiting[-1]] = 0
            shown.start(waiting[-1], waiting.pop())
        elif what == "train" and name and running[name] < 6:
            running[name] += 1
            all_trained += 1
            trained(shown, name, running[name])
        elif what == "lose" and name:  # it begins anew
            del running[name]
            waiting.append(name)
            shown.forget(name)
        elif what == "end" and name:
            epochs = max(0, running.pop(name) - 2)
            done += 1
            shown.finish(name, draw.choice(["ok", "pruned"]), FRONT, total, epochs)
        told = f"{done}/40 done, {len(running)} running, "
        assert shown.summary().startswith(told)
        assert epochs_of(shown).startswith(f"{all_trained}/")
    assert epochs_of(shown) == f"{all_trained}/{all_trained}"


def test_a_stopped_trial_leaves_the_epochs_that_it_is_spared(clock: Clock) -> None:
    shown = begun(2, "a", start=Start(warmups=1))
    trained(shown, "a", 1)
    trained(shown, "a", 2)
    assert epochs_of(shown) == "2/10"  # a shared warm-up of 2 epochs, and 4 of QAT for each
    trained(shown, "a", 3)
    shown.finish("a", "pruned", FRONT, 2, 2)
    assert epochs_of(shown) == "4/8"


def test_released_trials_stay_done_and_are_named(clock: Clock) -> None:
    states = {"a": "pruned", "b": "pruned", "c": "ok"}
    shown = begun(3, start=Start(states, trained=8, stopped={"a": 2, "b": 2}))
    assert shown.summary() == "3/3 done, 0 running, 2 stopped, 8/8 epochs"
    shown.start("a", "a")
    assert shown.summary() == "3/3 done, 1 running, 2 stopped, releasing 1, 8/10 epochs"
    shown.update("a", {"phase": "qat", "epoch": 3, "resumed_at": 2, "val_accuracy": [0.5]})
    assert epochs_of(shown) == "9/10"
    shown.finish("a", "ok", FRONT, 3, 4)
    assert shown.summary() == "3/3 done, 0 running, 2 stopped, 1 released, 10/10 epochs"


def test_a_resumed_launch_begins_with_the_epochs_that_are_trained(clock: Clock) -> None:
    """The first launch was killed at 9 of 14 epochs: one trial done, the other one at QAT epoch 3 of 4."""
    shown = begun(2, start=Start({"a": "ok"}, trained=2 + 4 + 3, checkpoints={"b": 3}))
    assert shown.summary() == "1/2 done, 0 running, 9/10 epochs"
    shown.start("b", "b")
    assert epochs_of(shown) == "9/10"
    shown.finish("b", "ok", FRONT, 2, 4)
    assert epochs_of(shown) == "10/10", "its only epoch comes with its result"


@pytest.mark.parametrize(
    ("rows", "title", "smallest"),
    [(1, "front so far", 1), (8, "front so far", 1), (12, "front so far, the last 8 of 12", 5)],
)
def test_a_long_front_on_the_screen_says_how_many_it_leaves_out(
    clock: Clock, capsys: pytest.CaptureFixture[str], rows: int, title: str, smallest: int
) -> None:
    shown = begun(2)
    cells = {"depth": 1, "weight_bits": 2, "activation": "identity", "n": 2, "n_seeds": 2}
    points = [cells | {"size_bytes": size, "val_accuracy": 0.9} for size in range(1, rows + 1)]
    shown.front = pa.Table.from_pylist(points, PARETO)
    for part in shown._below():
        shown.out.print(part)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].rstrip() == title
    assert lines[3].split()[0] == str(smallest)


def test_what_a_trial_does_instead_of_training_is_said(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = begun(2, "a", "b", start=Start(warmups=1))
    shown.set_preparing({"a": "compiling", "b": "waiting for its warm-up"})
    (line,) = ticking(clock, shown, capsys)(CHANGED_LINE_S + 1)
    assert line.endswith("; a compiling, b waiting for its warm-up")
    shown.set_preparing({})
    trained(shown, "a", 1)
    assert shown._texts() == ["a warmup 1/2 60.0%", "b starting"]


def test_a_name_has_the_axes_that_vary_and_other_seeds() -> None:
    trial = plan(load(SMOKE)).trials[0]
    shown = SweepProgress(console(), 1, Start(), {"depth", "weight_bits"}, EPOCHS)
    assert shown.name(trial, trial.seeds) == "d1 w1"
    assert shown.name(replace(trial, seeds=(2, 3)), trial.seeds) == "d1 w1 seeds 2-3"


def ticking(clock: Clock, shown: SweepProgress, capsys: pytest.CaptureFixture[str]) -> Callable[[float], list[str]]:
    def pass_by(seconds: float) -> list[str]:
        for _ in range(round(10 * seconds)):
            clock.now += 0.1
            shown.tick()
        return capsys.readouterr().out.splitlines()

    return pass_by


def test_line_comes_where_a_trial_begins_or_ends_and_else_every_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = begun(6, "a", "b", start=Start(warmups=6))
    lines = ticking(clock, shown, capsys)
    assert lines(CHANGED_LINE_S + 1) == ["0/6 done, 2 running, 0/36 epochs; a starting, b starting"]
    assert lines(QUIET_LINE_S - 2) == []
    assert len(lines(3 * QUIET_LINE_S)) == 3, "a compile that takes its time is not taken for a sweep that hangs"
    lines(CHANGED_LINE_S)
    trained(shown, "a", 3)
    assert len(capsys.readouterr().out.splitlines()) == 1, "the first epoch gets a line at once"
    trained(shown, "a", 4)
    assert lines(CHANGED_LINE_S + 1) == [], "a later one is no reason to speak"
    shown.finish("b", "failed", FRONT, 6, 0)
    said = "1/6 done, 1 running, 1 failed, 2/28 epochs"
    assert [re.split(", about|; a", line)[0] for line in [*capsys.readouterr().out.splitlines(), *lines(1)]] == [said]


def test_line_names_some_running_trials(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = begun(99, *(f"t{n}" for n in range(LINE_TRIALS + 3)))
    trained(shown, "t1", 4)
    (line,) = ticking(clock, shown, capsys)(CHANGED_LINE_S + 1)
    assert line.endswith("/396 epochs; t0 starting, t1 qat 2/4 60.0%, t2 starting, t3 starting, 3 more")


def test_last_trial_is_told_at_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = begun(1, "a")
    shown.finish("a", "ok", FRONT, 1, 0)
    assert capsys.readouterr().out == "1/1 done, 0 running, 0/0 epochs\n"


def test_line_says_how_many_comparisons_are_decided(clock: Clock) -> None:
    shown = begun(2, "a")
    assert "decided" not in shown.summary()
    shown.decisions = "look 2 of 4: 3/6 trainings; 12 of 30 comparisons decided, 9 given up, 9 live"
    assert shown.summary() == f"{shown.decisions}; 1 running, 0/8 epochs"


def test_trials_that_were_not_foreseen_are_counted_once_they_start(clock: Clock) -> None:
    shown = begun(1, "a")
    for epoch in range(3, 7):
        trained(shown, "a", epoch)
    shown.finish("a", "ok", FRONT, 1, 4)
    assert shown.summary().startswith("1/1 done, 0 running, 4/4 epochs")
    shown.start("b", "b")
    assert shown.summary().startswith("1/2 done, 1 running, 4/8 epochs")
    trained(shown, "b", 3)
    assert shown.summary().startswith("1/2 done, 1 running, 5/8 epochs")
    shown.start("b", "b")  # again, on another node
    assert shown.summary().startswith("1/2 done, 1 running, ")
