"""What a log says while a sweep runs: how far it is, epochs of running trials included, and no line twice."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from qdtune.sweep import progress
from qdtune.sweep.progress import CHANGED_LINE_S, LINE_TRIALS, QUIET_LINE_S, SweepProgress
from qdtune.terminal import console
from tests.schemas import PARETO

EPOCHS = {"warmup": 2, "qat": 4}
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


def begun(total: int, *names: str) -> SweepProgress:
    shown = SweepProgress(console(), total, 0, set(), EPOCHS)
    for name in names:
        shown.start(name, name)
    return shown


def trained(shown: SweepProgress, name: str, epoch: int) -> None:
    """Reports an epoch, counted through both phases."""
    phase, n = ("warmup", epoch) if epoch <= EPOCHS["warmup"] else ("qat", epoch - EPOCHS["warmup"])
    shown.update(name, name, {"phase": phase, "epoch": n, "val_accuracy": [0.5, None, 0.7]})


def seconds_left(shown: SweepProgress) -> float | None:
    found = re.search(r"about (\d+) (min|s) left", shown.summary())
    return float(found[1]) * (60 if found[2] == "min" else 1) if found else None


def test_time_left_counts_down_while_trials_run(clock: Clock) -> None:
    shown, left = begun(6), []
    for done in (0, 2, 4):
        for name in ("a", "b"):
            shown.start(name, name)
        for epoch in range(1, 7):
            for _ in range(100):
                clock.now += 1
                left.append((2800 - clock.now, seconds_left(shown)))
            for name in ("a", "b"):
                trained(shown, name, epoch)
        for n, name in enumerate(("a", "b")):
            shown.finish(name, "ok", FRONT, done + n + 1, 6)
    known = [(truly, said) for truly, said in left if said is not None]
    assert len(known) > len(left) / 2, "as soon as as much is trained as one trial takes"
    assert all(abs(truly - said) <= truly / 4 + 100 for truly, said in known)
    assert all(later <= before + 60 for (_, before), (_, later) in pairwise(known)), "a minute by rounding"


def test_time_left_is_unknown_before_one_trials_worth_and_after_the_last(clock: Clock) -> None:
    shown = begun(2, "a", "b")
    for epoch in range(1, 4):
        for name in ("a", "b"):
            assert seconds_left(shown) is None
            trained(shown, name, epoch)
            clock.now += 1
    trained(shown, "a", 4)
    assert seconds_left(shown) == 5  # epochs, one a second
    shown.finish("a", "ok", FRONT, 1, 2)
    shown.finish("b", "ok", FRONT, 2, 2)
    assert seconds_left(shown) is None


def test_time_left_is_that_of_a_large_trial_when_the_others_are_through(clock: Clock) -> None:
    shown = begun(4, "large", "a", "b", "c")
    for epoch in range(1, 4):  # ten times as long as each of the others
        clock.now += 600
        trained(shown, "large", epoch)
        name = "abc"[epoch - 1]
        for n in range(1, 7):
            clock.now += 10
            trained(shown, name, n)
        shown.finish(name, "ok", FRONT, epoch, 4)
    clock.now += 600
    trained(shown, "large", 4)
    assert seconds_left(shown) == 2 * 660  # its own two epochs, at its own pace


def test_epochs_are_those_of_all_trials_whatever_happens_to_them() -> None:
    draw = random.Random(0)
    shown, total, waiting = begun(40), 40, [str(n) for n in range(40)]
    draw.shuffle(waiting)
    running: dict[str, int] = {}
    done = 0
    while waiting or running:
        what = draw.choice(["start", "train", "train", "train", "lose", "end"])
        name = draw.choice(sorted(running)) if running else ""
        if what == "start" and waiting:
            running[waiting[-1]] = 0
            shown.start(waiting[-1], waiting.pop())
        elif what == "train" and name and running[name] < 6:
            running[name] += 1
            trained(shown, name, running[name])
        elif what == "lose" and name:  # it begins anew
            del running[name]
            waiting.append(name)
            shown.forget(name)
        elif what == "end" and name:
            del running[name]
            done += 1
            shown.finish(name, draw.choice(["ok", "pruned"]), FRONT, done, total)
        told = f"{done}/40 done, {len(running)} running, "
        assert shown.summary().startswith(told)
        assert f" {6 * done + sum(running.values())}/240 epochs" in shown.summary()


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
    shown = begun(6, "a", "b")
    lines = ticking(clock, shown, capsys)
    assert lines(CHANGED_LINE_S + 1) == ["0/6 done, 2 running, 0/36 epochs; a starting, b starting"]
    assert lines(QUIET_LINE_S - 2) == []
    assert len(lines(3 * QUIET_LINE_S)) == 3, "a compile that takes its time is not taken for a sweep that hangs"
    lines(CHANGED_LINE_S)
    trained(shown, "a", 3)
    assert lines(CHANGED_LINE_S + 1) == [], "an epoch is no reason to speak"
    shown.finish("b", "failed", FRONT, 1, 6)
    said = "1/6 done, 1 running, 1 failed, 9/36 epochs"
    assert [line.split(", about")[0] for line in [*capsys.readouterr().out.splitlines(), *lines(1)]] == [said]


def test_line_names_some_running_trials(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = begun(99, *(f"t{n}" for n in range(LINE_TRIALS + 3)))
    trained(shown, "t1", 4)
    (line,) = ticking(clock, shown, capsys)(CHANGED_LINE_S + 1)
    assert line.endswith("/594 epochs; t0 starting, t1 qat 2/4 60.0%, t2 starting, t3 starting, 3 more")


def test_last_trial_is_told_at_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = begun(1, "a")
    shown.finish("a", "ok", FRONT, 1, 1)
    assert capsys.readouterr().out == "1/1 done, 0 running, 6/6 epochs\n"


def test_line_says_how_many_comparisons_are_decided(clock: Clock) -> None:
    shown = begun(2, "a")
    assert "decided" not in shown.summary()
    shown.decisions = "12 of 30 comparisons decided, 9 given up, 9 live"
    assert shown.summary() == f"0/2 done, 1 running, 0/12 epochs, {shown.decisions}"


def test_trials_that_were_not_foreseen_are_counted_once_they_start(clock: Clock) -> None:
    shown = begun(1, "a")
    shown.finish("a", "ok", FRONT, 1, 1)
    assert shown.summary().startswith("1/1 done, 0 running, 6/6 epochs")
    shown.start("b", "b")
    assert shown.summary().startswith("1/2 done, 1 running, 6/12 epochs")
    trained(shown, "b", 2)
    assert shown.summary().startswith("1/2 done, 1 running, 8/12 epochs")
    shown.start("b", "b")  # again, on another node
    assert shown.summary().startswith("1/2 done, 1 running, ")
