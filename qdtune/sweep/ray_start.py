"""The start of Ray: what would end it without a word, or never, is found before; what it raises becomes one line.

`set_environment` of `cluster` and `check_start` import no Ray.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qdtune.machine import count_cpus, find_ended, leave
from qdtune.messages import SpecError, format_count, one_line, user_error

START_S = 120.0  # how long Ray may take to start, or to join a cluster; on a busy machine it took 40 s
SLOW_S = 10.0  # a start that fails later may have failed because the machine is busy
HEAD = ("gcs_server", "raylet")  # the processes without which no Ray starts; it waits a minute for the first
LOOK_S, GRACE_S = 0.5, 2.0  # between two looks at them, and how long Ray may take to say what is wrong
SOCKET_BYTES = 107  # of the path of a socket, by the kernel
# What Ray appends to the folder: our own folder, the session with its time and process, and the longest name there.
SOCKET_NAME = "/qdtune-12345678/r/session_2026-01-01_00-00-00_123456_4194304/sockets/plasma_store"
LISTENER_NAME = (
    "/pymp-12345678/listener-12345678"  # what Python's multiprocessing, in the dashboard, appends to TMPDIR
)
FOLDER_BYTES = 8_000_000  # for Ray's logs and sockets
FILES, MANY_FILES = 256, 4096  # open files of one process: enough for a small Ray (measured: 63), and for a large one
THREADS, THREADS_PER_CPU = 280, 10  # of all of Ray's processes; measured on two CPUs, without a dashboard: 266


def check_start(address: str | None) -> None:
    """Checks what Ray needs of this machine and process, before a launch makes anything.

    Args:
        address: of a running cluster; None to start one here.

    Raises:
        SpecError: Ray would fail, abort or wait for minutes; the message says what to do.
    """
    if sys.flags.optimize > 1:
        raise user_error("Python must keep docstrings, which Ray needs, got PYTHONOPTIMIZE=2 or -OO (unset it)")
    try:
        Path.home()
    except RuntimeError:
        raise user_error("Ray needs a home folder, and this user has none (let HOME name a folder)") from None
    _check_files()
    if address is None:
        _check_folder(os.environ.get("RAY_TMPDIR"))
        _check_length("TMPDIR", tempfile.gettempdir(), LISTENER_NAME, "(unset it for /tmp)")
        _check_threads()


def forget_warning_errors() -> None:
    """Lets warnings be warnings again, here and in Ray's processes, which end if PYTHONWARNINGS=error."""
    if os.environ.pop("PYTHONWARNINGS", None) or sys.warnoptions:
        sys.warnoptions.clear()  # Python hands them on to child processes
        warnings.filters[:] = [entry for entry in warnings.filters if entry[0] != "error"]  # type: ignore[index]


def check_token(token: str, place: str) -> None:
    """Checks a token for Ray, which aborts the process if it cannot be sent.

    Args:
        token: without spaces around it; it is not printed.
        place: where it comes from: an environment variable, or a file.

    Raises:
        SpecError: it is empty, or holds anything but visible ASCII characters.
    """
    wrong = next((i for i, c in enumerate(token) if not "!" <= c <= "~"), None)
    if not token or wrong is not None:
        what = "an empty one" if wrong is None else f"U+{ord(token[wrong]):04X} as character {wrong + 1}"
        what += " (a byte order mark: save it without)" if what.startswith("U+FEFF") else ""
        raise user_error(f"the token in {one_line(place)} must be of visible ASCII characters, got {what}")


def _check_folder(place: str | None) -> None:
    """Raises if Ray cannot keep its files in RAY_TMPDIR, or in /tmp if that is unset."""
    named, folder = ("RAY_TMPDIR", place) if place is not None else ("the folder /tmp", "/tmp")
    hint = "(unset it for /tmp)" if place is not None else "(let RAY_TMPDIR name another folder)"
    given = one_line(folder)
    if not os.path.isabs(folder):
        raise user_error(f"{named} must be an absolute path, got {given or 'an empty one'} {hint}")
    if not os.path.isdir(folder):
        what = "a file" if os.path.exists(folder) else "no such folder"
        raise user_error(f"{named} must be a folder, got {given}: {what} {hint}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise user_error(f"{named} must be a folder to write to, got {given} {hint}")
    _check_length(named, folder, SOCKET_NAME, hint)
    if (free := shutil.disk_usage(folder).free) < FOLDER_BYTES:
        what = f"{named} must have {FOLDER_BYTES / 1e6:.0f} MB of room for Ray's logs"
        raise user_error(f"{what}, got {free / 1e6:.1f} MB in {given} {hint}")


def _check_length(named: str, folder: str, appended: str, hint: str) -> None:
    """Raises if the path of a socket in a folder would be too long for the kernel."""
    room, size = SOCKET_BYTES - len(appended), len(os.fsencode(folder))
    if size > room:
        what = f"{named} must have at most {room} bytes, because Ray's sockets lie in it"
        raise user_error(f"{what}, got {size}: {one_line(folder)} {hint}")


def _check_files() -> None:
    """Raises the limit of open files as far as Ray may need; raises SpecError if it stays too low."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if n == resource.RLIM_INFINITY else n for n in limits)
    if hard < FILES:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))  # as root may
        except (ValueError, OSError):
            what = f"Ray needs {FILES} open files in a process"
            raise user_error(f"{what}, and the limit is {hard} (ulimit -n {FILES})") from None
    elif soft < MANY_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(MANY_FILES, hard), limits[1]))


def _check_threads() -> None:
    """Raises if the user may not have as many threads as Ray starts at least; it would abort, or wait for ever."""
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    if limit == resource.RLIM_INFINITY or os.getuid() == 0:  # the kernel does not limit root
        return
    needed = THREADS + THREADS_PER_CPU * count_cpus()
    used = sum(map(_count_threads, Path("/proc").glob("[0-9]*")))
    if limit - used < needed:
        what = f"Ray starts {needed} threads or more, and {limit - used} of {limit} are left to this user"
        raise user_error(f"{what} (ulimit -u {used + needed})")


def _count_threads(process: Path) -> int:
    """How many threads a process of this user has; 0 for others."""
    with suppress(OSError):
        if process.stat().st_uid == os.getuid():
            return len(list((process / "task").iterdir()))
    return 0


@contextmanager
def start_errors(what: str, passing: tuple[type[Exception], ...] = (), advice: str = "") -> Iterator[None]:
    """Turns what Ray raises in its block into one line; ends the process with exit code 2 if it never returns.

    Args:
        what: is tried, as in "Ray cannot WHAT".
        passing: errors that are raised as they are.
        advice: what else helps on a busy machine, after "try again later"; may be empty.

    Raises:
        SpecError: for every other exception.
    """
    over, began = threading.Event(), time.monotonic()
    try:
        threading.Thread(target=_watch_start, args=(what, over, advice), daemon=True).start()
        yield
    except passing:
        raise
    except Exception as error:  # whatever Ray raises: one line says it
        seconds = time.monotonic() - began
        raise start_error(what, error, _say_wait(seconds, advice) if seconds >= SLOW_S else "") from None
    finally:
        over.set()


def start_error(what: str, error: Exception, waited: str = "") -> SpecError:
    """The one line for an exception of Ray; `waited` is added to it."""
    first, *more = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    if first.endswith(":"):  # an announcement of what follows, if anything does
        first = more[-1] if more else ""
    why = f"{type(error).__name__}: {first or 'no reason given'}"
    return user_error(f"Ray cannot {what}: {one_line(why)[:300]}{waited}")


def _say_wait(seconds: float, advice: str) -> str:
    """How long a start took, how busy the machine is, and what to do."""
    load, cpus = os.getloadavg()[0], count_cpus()
    busy = f"with a load of {load:.1f} on {format_count(cpus, 'CPU')}"
    return f" (after {seconds:.0f} s, {busy}: try again{' later' if load > cpus else ''}{advice})"


def _watch_start(what: str, over: threading.Event, advice: str) -> None:
    """Ends the process with exit code 2 once Ray has taken too long, or its head has ended.

    C code may never give control back.
    """
    began = time.monotonic()
    why = "no answer"
    while (seconds := time.monotonic() - began) < START_S:
        if over.wait(min(LOOK_S, START_S - seconds)):
            return
        if ended := find_ended(HEAD):
            name, code = ended
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            why = f"its {name} has ended {how}"
            break
    if over.wait(GRACE_S):
        return
    with suppress(OSError):
        os.write(2, f"error: Ray cannot {what}: {why}{_say_wait(seconds, advice)}\n".encode())
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    leave(2)
