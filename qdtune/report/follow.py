"""Follows a run that is still being made: its page is drawn again whenever its files have changed.

A launch has a child do this, at the lowest priority. It ends when its standard input does, which is when the launch
closes that or is gone, however that came about.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qdtune.machine import ASKING_SIGNALS, PASSING_SIGNALS
from qdtune.store.disk_folder import DiskFolder
from qdtune.store.folder import StorageError
from qdtune.store.store import Store

LEAST_S = 3.0  # between two drawings
SHARE = 50  # a drawing is followed by this many times its own CPU time: 2 % of a core
LAST_S = 5.0  # how long a launch waits in the end for the page to be drawn once more
NICE = 19
_left: list[subprocess.Popen[bytes]] = []  # children that still draw: Python warns of those that are forgotten


def follow(run: str, draw: Callable[[bool], bool], over: Callable[[float], bool]) -> None:
    """Draws a run at once and after every change, until it is over, and then once more.

    Args:
        run: the run folder.
        draw: draws it, told whether the page is to go on loading itself; whether the sweep is finished.
        over: waits for so many seconds; True as soon as nobody wants to follow any more.

    Raises:
        StorageError: the run folder cannot be read or written.
    """
    seen: object = None
    wait, finished, was_drawn = LEAST_S, False, False
    while not finished:
        if (stamp := _stamp(run)) != seen:
            begin, seen = time.process_time(), stamp
            try:
                finished = draw(True)
                was_drawn = True
            except StorageError:  # such as a full disk: drawn again later, and the last drawing says it
                if not was_drawn:
                    raise
                seen = None
            wait = max(LEAST_S, SHARE * (time.process_time() - begin))
        if finished or over(wait):
            break
    draw(False)


def _stamp(run: str) -> object:
    """What changes with every result that is stored."""
    store = Store(run)
    if not isinstance(store.folder, DiskFolder):
        return [store.folder.list_files(kind) for kind in ("trials", "history")]
    paths = [store.root / name for name in ("sweep.yaml", "trials", "history")]
    return [path.stat().st_mtime_ns if path.exists() else 0 for path in paths]


@contextmanager
def drawing(run: str, out: Any) -> Iterator[Callable[[], None]]:
    """The page of a run drawn by a child of ours within, again and again, and once more in the end.

    The function that it gives has the child draw that last page already. Nothing here fails a sweep: where the page
    cannot be drawn, `out` gets one line.

    Args:
        run: the run folder, a path or a URL.
        out: a console.
    """
    command = [sys.executable, "-m", "qdtune", "report", run, "--for-launch"]
    try:  # a session of its own, and deaf: what stops the launch is not for it, even where all its children are told
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (*ASKING_SIGNALS, *PASSING_SIGNALS))
        try:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.setpriority(os.PRIO_PROCESS, child.pid, NICE)
    except OSError as error:
        out.print(f"no report is drawn: {error}", style="yellow")
        yield lambda: None
        return
    assert child.stderr is not None

    def finish() -> None:
        if child.stdin is not None:
            child.stdin.close()
            child.stdin = None  # `communicate` would flush it

    try:
        yield finish
    except BaseException:
        finish()
        child.stderr.close()
        _left.append(child)  # it draws its last page alone
        raise
    try:
        _, said = child.communicate(timeout=LAST_S)
    except subprocess.TimeoutExpired:  # the machine is busy: the page comes when there is time
        child.stderr.close()
        _left.append(child)
        return
    if child.returncode:
        why = (said.decode(errors="replace").strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        out.print(f"no report was drawn: {why.removeprefix('error: ')}", style="yellow")


def closed(seconds: float) -> bool:
    """Waits so long for the end of standard input; whether it has ended, as it does when who started us is gone."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)
