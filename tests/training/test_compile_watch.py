"""How long a process makes steps, and who is told of it."""

from qdtune.training.compile_watch import CompileWatch


def test_both_ends_are_told_and_the_seconds_add_up() -> None:
    watch, told = CompileWatch(), []
    with watch.measure():
        pass
    first = watch.seconds
    watch.listener = told.append
    for _ in range(2):
        with watch.measure():
            told.append(None)
    assert told == [True, None, False] * 2
    assert watch.seconds > first > 0
