"""Watches during a sweep: signals, the nodes of the cluster, and Ray's head."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import ray
from ray import tune

from qdtune.machine import PASSING_SIGNALS, handle_signals, leave
from qdtune.messages import format_count
from qdtune.sweep.cluster import nodes_now
from qdtune.sweep.placement import Node, Placement

ASK_S = 1.0  # between two questions to the workers what they do
BEAT_S, GONE_S = 1.0, 10.0  # the time between two checks of Ray's head, and how long it may be silent
LOOK_S = 3.0  # between two looks at the nodes


class NodeWatch(tune.Callback):
    """Prints one line when nodes leave or join, with the number of trials that now run at a time.

    Args:
        known: the nodes at the start, as `nodes_now` returns them.
        place: the resources of each trial.
        most: the most trials at a time; None for no limit.
        out: where to print it.
    """

    def __init__(self, known: dict[str, Node], place: Placement, most: int | None, out: Any) -> None:
        self.known, self.place, self.most, self.out = known, place, most, out
        self.looked_at = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks for a restore that never comes

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self.looked_at < LOOK_S:
            return
        before, self.known, self.looked_at = self.known, nodes_now(), time.monotonic()
        changes = [f"node {name} has left" for name in before if name not in self.known]
        changes += [f"node {name} has joined" for name in self.known if name not in before]
        if changes:
            n = self.place.at_once(list(self.known.values()))
            n = n if self.most is None else min(n, self.most)
            wait = "" if n else ", until a node has room for one"
            self.out.print(f"{', '.join(changes)}: {format_count(n, 'trial')} at a time now{wait}")


class PreparingWatch:
    """Asks the actor of the kept files what trials do instead of training, and never waits for its answer.

    Args:
        files: the actor, a `KeptFiles`; None if there is none.
    """

    def __init__(self, files: Any) -> None:
        self.files, self.asked_at = files, 0.0
        self.answer: Any = None  # that has not come yet

    def poll(self) -> dict[str, str] | None:
        """What trials do that do not train now, by trial_id; None if nothing new is known."""
        if self.files is None:
            return None
        if self.answer is None:
            if time.monotonic() - self.asked_at >= ASK_S:
                self.answer, self.asked_at = self.files.list_preparing.remote(), time.monotonic()
            return None
        found: dict[str, str] | None = None
        if ray.wait([self.answer], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):  # it is lost, and starts again
                found = ray.get(self.answer)
            self.answer = None
        return found


@contextmanager
def watch_head(stopped: list[int]) -> Iterator[None]:
    """Ends the process if Ray's head is lost within a `with` block; Ray would wait a minute and abort silently.

    Finished trials are stored, and the kernel frees the lock. A SIGTERM to the whole process group, as `timeout` or a
    batch system sends it, also ends a local head.

    Args:
        stopped: the signals received so far.
    """
    over = threading.Event()
    threading.Thread(target=_watch_head, args=(stopped, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch_head(stopped: list[int], over: threading.Event) -> None:
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    silent = 0.0
    while not over.wait(BEAT_S):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=BEAT_S).close()
        except OSError:
            silent += BEAT_S
        else:
            silent = 0.0
        if silent >= GONE_S:
            if stopped:
                _leave(f"stopped by {signal.Signals(stopped[0]).name}, which ended Ray, too", 128 + stopped[0])
            _leave("Ray's head is gone; what was finished is kept", 4)


def _leave(what: str, code: int) -> NoReturn:
    """Prints the reason and what to do, and ends the process at once."""
    cursor = "\x1b[?25h" if sys.stdout is not None and sys.stdout.isatty() else ""  # the bar hides the cursor
    _say(f"{cursor}\n{what}; the same command goes on from here\n")
    leave(code)


def _say(text: str) -> None:
    """Prints on standard error, if that can be done."""
    with suppress(OSError):  # the terminal may have gone away, which may be why the sweep stops
        os.write(2, text.encode())


@contextmanager
def note_signals(received: list[int]) -> Iterator[None]:
    """A signal that stops a sweep ends it in order, a second one at once; `received` notes them.

    A later one of `PASSING_SIGNALS` does not count: a closed terminal sends SIGHUP to all processes, and its shell
    passes it on to them once more.

    Enter it after ray.init, which sets its own handlers.
    """

    def handle(number: int, frame: Any) -> None:
        if received and number in PASSING_SIGNALS:
            return
        received.append(number)
        if len(received) > 1:
            _leave("stopped", 128 + number)
        _say("\nstopping: what is finished is kept (once more: stop at once)\n")

    with handle_signals(handle):
        yield
