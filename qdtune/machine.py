"""The machine that a sweep runs on, inspected without heavy imports."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from qdtune.messages import SpecError, one_line, user_error


def has_compiler() -> bool:
    """Whether the tools that torch needs to compile exist, openssl included; if not, training steps run eagerly."""
    return all(shutil.which(tool) for tool in (os.environ.get("CXX", "g++"), "openssl"))


# A phase is compiled from this many steps on. Compiling takes 13 s of a core, once for all trials of a shape. It
# saves 1 to 2 ms of a quantised step (one core, K = 5), so it pays from the fifth trial on; and 0.5 ms of a step of
# the warm-up, which a sweep trains once for each shape. The number of steps decides and not the state of the cache,
# because a trial that runs again must give the same numbers.
MIN_COMPILED_STEPS = {"warmup": 20_000, "qat": 2_500}


def should_compile(
    compile: str, phase: str, epochs: int, batch_size: int, samples: int, convolves: bool = False
) -> bool:
    """Whether the steps of a phase are compiled, if this machine has a compiler.

    Args:
        compile: `always`, `never`, or `auto`: if it saves time.
        phase: `warmup` or `qat`.
        epochs: of the phase.
        batch_size: samples per step.
        samples: of an epoch.
        convolves: whether a network with convolutions is trained on a CPU: single operations are as fast then.
    """
    pays = epochs * (samples // batch_size) >= MIN_COMPILED_STEPS[phase] and not convolves
    return compile == "always" or (compile == "auto" and pays)


def cache_dir() -> Path:
    """The folder that keeps compiled steps between runs: `qdtune` in the user's cache folder.

    Without a home folder it is one that nobody can make, so that everything goes on as with a full disk.
    """
    with suppress(SpecError):
        return Path(expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")) / "qdtune"
    return Path(os.devnull) / "qdtune"


_own_folders: list[str] = []  # made by `own_folder` in this process, and still in use


@contextmanager
def own_folder() -> Iterator[str]:
    """A temporary folder for this user alone. It is removed at the end, as are folders of killed processes.

    Processes that were started to work in it end before, because they would write to it while it is removed.

    It lies in RAY_TMPDIR, or in /tmp if that is unset, because the paths of Ray's sockets must fit into 107 bytes.
    """
    place = os.environ.get("RAY_TMPDIR") or "/tmp"
    for left in Path(place).glob("qdtune-*/lock"):
        with suppress(OSError):
            if left.parent.lstat().st_uid == os.getuid() and not left.parent.is_symlink():
                with left.open() as held:
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(left.parent, ignore_errors=True)
    made = tempfile.TemporaryDirectory(prefix="qdtune-", dir=place, ignore_cleanup_errors=True)
    with made as folder, open(f"{folder}/new", "w") as lock:
        with suppress(OSError):  # without locks there, nobody can tell that it is left over, so it stays after a kill
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.rename(lock.name, f"{folder}/lock")  # so that others see the lock only once it is held
        _own_folders.append(folder)
        try:
            yield folder
        finally:
            _own_folders.remove(folder)
            end_processes(folder)


def leave(code: int) -> NoReturn:
    """Ends this process at once, with the processes that work in its own folders, and removes these folders."""
    for folder in _own_folders:
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(code)


END_S = 5.0  # how long killed processes may take to end


def end_processes(folder: str) -> None:
    """Kills what this process has started with a folder in its command line, and all that this has started in turn.

    All are stopped before the first is killed, so that none starts another one meanwhile. It returns once they have
    ended, or after `END_S`.
    """
    deadline, stopped = time.monotonic() + END_S, set[int]()
    while time.monotonic() < deadline:
        parents = _parents()
        doomed = {pid for pid in parents if parents[pid] == os.getpid() and folder in _read(pid, "cmdline")}
        doomed |= {pid for pid, parent in parents.items() if parent in doomed | stopped}
        if doomed <= stopped and all(_state(pid) in "TZX" for pid in stopped):
            break
        _send(signal.SIGSTOP, doomed - stopped)
        stopped |= doomed
    _send(signal.SIGKILL, stopped)
    while any(_state(pid) not in "ZX" for pid in stopped) and time.monotonic() < deadline:
        time.sleep(0.01)


def _send(number: int, pids: Collection[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, number)


def find_ended(names: Collection[str]) -> tuple[str, int] | None:
    """A process with one of these names that this one has started and that has ended: its name and exit code.

    The code is -N after signal N.
    """
    for pid, parent in _parents().items():
        if parent == os.getpid() and _state(pid) == "Z" and (name := _read(pid, "comm").strip()) in names:
            return name, os.waitstatus_to_exitcode(int(_read(pid, "stat").split()[-1]))
    return None


def _state(pid: int) -> str:
    """The kernel's letter for the state of a process; X if there is none."""
    return (_read(pid, "stat").rpartition(")")[2].split() or "X")[0]


def _parents() -> dict[int, int]:
    """Which process started which, both by number."""
    lines = {int(place.name): _read(int(place.name), "stat") for place in Path("/proc").glob("[0-9]*")}
    return {pid: int(line.rpartition(")")[2].split()[1]) for pid, line in lines.items() if line}


def _read(pid: int, name: str) -> str:
    """A file of the kernel about a process; empty if there is no such process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    return ""


# All of these stop a sweep in order. A second one of the first kind, Ctrl-C or `kill`, stops it at once. Those of the
# second kind often come several times or to a whole process group: from a terminal that goes away, and from batch
# systems that say that the time is nearly over.
ASKING_SIGNALS = (signal.SIGINT, signal.SIGTERM)
PASSING_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


@contextmanager
def handle_signals(handle: Callable[[int, Any], None]) -> Iterator[None]:
    """Calls `handle` with (number, frame) at the signals that stop a sweep; restores the earlier handlers at the end.

    They are `ASKING_SIGNALS`, and those of `PASSING_SIGNALS` that are not ignored, as `nohup` ignores SIGHUP.
    """
    numbers = [*ASKING_SIGNALS, *(n for n in PASSING_SIGNALS if signal.getsignal(n) != signal.SIG_IGN)]
    old = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def count_cpus(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """The CPUs that this process may use: its affinity (taskset, Slurm), and no more than the quota of its container.

    Args:
        groups: where control groups are mounted.
        own: names the groups of this process.
    """
    count = len(os.sched_getaffinity(0))
    return max(1, min([count, *(int(quota) for quota in _list_cpu_quotas(groups, own))]))


def _list_cpu_quotas(groups: Path, own: Path) -> Iterator[float]:
    """The CPUs that each control group around this process allows, of version 1 and 2."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            mounts = [groups] if not controllers else [groups / controllers, groups / "cpu"]
            inner = Path(path.lstrip("/"))
            for folder in (mount / part for mount in mounts for part in (inner, *inner.parents)):
                with suppress(OSError, ValueError, ZeroDivisionError):  # no such file, or no limit
                    if controllers:
                        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                        quota, period = (int((folder / name).read_text()) for name in names)
                    else:
                        quota, period = map(int, (folder / "cpu.max").read_text().split())
                    if quota > 0:
                        yield quota / period


def expand_home(path: str) -> str:
    """The path with a leading `~` or `~NAME` replaced by that home folder, as a shell does it only at times.

    Raises:
        SpecError: the home folder is not known.
    """
    if not path.startswith("~"):
        return path
    found = os.path.expanduser(path)
    if found.startswith("~"):
        name, path = one_line(path.partition("/")[0]), one_line(path)
        raise user_error(f"{name} is no known home folder (for a folder of this name write ./{path})")
    return found


def count_gpus(devices: Path = Path("/dev")) -> int:
    """The number of NVIDIA GPUs of this machine, counted without the library of a driver."""
    return len(list(devices.glob("nvidia[0-9]*")))
