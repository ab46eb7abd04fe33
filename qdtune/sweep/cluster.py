"""The Ray cluster that a sweep runs on: a new one on this machine, or a running one.

Call `set_environment` before ray is imported for the first time, because Ray reads much of it then.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdtune.machine import PASSING_SIGNALS, count_cpus, own_folder
from qdtune.messages import SpecError, name_option, user_error
from qdtune.sweep.placement import Node
from qdtune.sweep.ray_start import check_token, forget_warning_errors, start_error, start_errors

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else under `uv run` every worker builds the environment again
    # Hides Ray's lines about a lost node, because `watches.NodeWatch` reports it in one line.
    "RAY_DEDUP_LOGS_SKIP_REGEX": r"^Raylet is terminated\.|^The node with node id: ",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # as nice as the command; with Ray's 15 a sweep would starve on a shared machine
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # five files per trial that nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours is set after ray.init
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's state is not needed: a relaunch plans from the store
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")  # requests reads networks, others whole names
KNOCK_S = 5.0  # how long an address may take to answer
BEGIN = b"\4"  # the type of the first frame that each side of gRPC sends
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + BEGIN + bytes(5)


def _instead() -> str:
    """What to do without a cluster."""
    return f"leave out {name_option('--address')}, or unset RAY_ADDRESS, to start Ray here"


def set_environment(address: str | None) -> None:
    """Sets the environment of Ray and its workers; keeps the user's settings, except those that load code.

    Args:
        address: of a running cluster; None for a new one, which then has all its ports on loopback.

    Raises:
        SpecError: the token cannot be stored, read or sent, or the user's token file holds none.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.pop("RAY_TUNE_CALLBACKS", None)  # Tune would import and call what it names
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every worker compiles all its imports
    forget_warning_errors()
    _spare_loopback_the_proxy()
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = bool(os.environ.get("RAY_AUTH_TOKEN") or given)
    if in_variable := os.environ.get("RAY_AUTH_TOKEN"):
        os.environ["RAY_AUTH_TOKEN"] = in_variable.strip()
        check_token(in_variable.strip(), "RAY_AUTH_TOKEN")
    elif given:
        _check_token_file(given)
    if address is None:
        # Despite its name, 0 keeps every port of a local cluster on loopback (measured).
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if not token:
            try:
                os.environ["RAY_AUTH_TOKEN_PATH"] = str(_token_file())
            except (OSError, RuntimeError) as error:  # no home folder, or it cannot be written
                raise _home_error(error) from None
        os.environ["RAY_AUTH_MODE"] = "token"
    elif token or _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _spare_loopback_the_proxy() -> None:
    """Keeps requests to this machine, and their tokens, from the proxy that the environment names for all others."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [part.strip() for part in os.environ.get(name, "").split(",") if part.strip()]
        if "*" not in known:
            os.environ[name] = ",".join([*known, *(host for host in LOOPBACK if host not in known)])


def token_place() -> str:
    """Where Ray looks for the user's token: the name of an environment variable, or of a file."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    return os.environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")


def _token_file() -> Path:
    """Ray's own token file, made if it is missing; only the user may read it, while Ray lets everybody."""
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)  # if it existed before
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+", errors="replace") as file:
        os.fchmod(file.fileno(), 0o600)
        if not (token := file.read().strip()):  # new, or left empty by a launch that was killed here
            file.write(token := secrets.token_hex(32))
    check_token(token, str(path))
    return path


def _has_token() -> bool:
    """Whether the user has Ray's own token file; raises SpecError if it cannot be read or holds no token."""
    with suppress(RuntimeError):  # no home folder
        path = Path.home() / ".ray" / "auth_token"
        try:
            if path.exists():
                check_token(path.read_text(errors="replace").strip(), str(path))
                return True
        except OSError as error:
            raise _home_error(error) from None
    return False


def _home_error(error: Exception) -> SpecError:
    """The error for a token in the home folder that cannot be read or written."""
    what = f"Ray's token must be kept in ~/.ray/auth_token: {error}"
    return user_error(f"{what} (or let RAY_AUTH_TOKEN_PATH name a file that holds one)")


def _check_token_file(path: str) -> None:
    """Raises if the user's token file holds no token, because Ray would abort."""
    try:
        token = Path(path).read_text().strip()
        what = "" if token else "it is empty"
    except (OSError, ValueError) as error:
        what = str(error)
    if what:
        raise user_error(f"RAY_AUTH_TOKEN_PATH must name a file that holds a token, got {path}: {what} (or unset it)")
    check_token(token, path)


@dataclass(frozen=True)
class RayAt:
    """Where a sweep runs: the address of a Ray cluster, or None to start one here, with or without dashboard."""

    address: str | None = None
    dashboard: bool = True


class NoClusterError(ValueError):
    """No cluster that can be joined answers at the user's address."""


@dataclass(frozen=True)
class Cluster:
    """The nodes of a cluster, the URL of its dashboard or None, and what to tell of its start."""

    nodes: tuple[Node, ...]
    dashboard: str | None
    notes: tuple[str, ...] = ()


def knock(address: str) -> None:
    """Checks that a gRPC server, which may be Ray, answers at an address; ray.init would try for minutes.

    Raises:
        NoClusterError: nothing answers, or a server without gRPC; or the address is neither HOST:PORT nor `auto`,
            for which the address that Ray has noted is checked.
    """
    if address == "auto":
        _knock_noted()
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise NoClusterError(f"an address must be HOST:PORT or auto, got {address} ({_instead()})")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S) as there:
            there.sendall(HELLO)
            answer = there.recv(4)
    except (OSError, OverflowError, ValueError) as error:
        raise NoClusterError(f"no Ray cluster answers at {address}: {error} ({_instead()})") from None
    if answer[3:] != BEGIN and os.environ.get("RAY_USE_TLS") != "1":  # a TLS server hangs up
        raise NoClusterError(
            f"what answers at {address} is no Ray cluster, or one that wants RAY_USE_TLS=1 ({_instead()})"
        )


def _knock_noted() -> None:
    """Checks the address that `auto` stands for, because a cluster that is gone leaves it behind."""
    if (given := os.environ.get("RAY_ADDRESS")) and given != "auto":
        knock(given)
        return
    noted = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray", "ray_current_cluster")
    found = ""
    with suppress(OSError, UnicodeDecodeError):
        found = noted.read_text().strip()
    try:
        if found:
            knock(found)
    except NoClusterError as error:
        what = str(error).removesuffix(f" ({_instead()})")
        raise NoClusterError(f"{what}, which {noted} names for auto (delete that file; or {_instead()})") from None


@contextmanager
def connect(ray_at: RayAt, data_bytes: int) -> Iterator[Cluster]:
    """Starts Ray here, or joins a cluster, for the length of a `with` block.

    Ray's files, such as its logs, lie in a folder that only the user can read and that is deleted at the end.
    Ray's own folder is open to everybody on the machine.

    Args:
        ray_at: the cluster.
        data_bytes: the size of the data set, which the object store has to hold.

    Raises:
        NoClusterError: no cluster answers at the address, or its version differs.
        SpecError: Ray cannot start, or cannot join the cluster.
    """
    import ray

    with ExitStack() as stack:
        if ray_at.address is None:
            folder = stack.enter_context(own_folder())
            logging.getLogger("ray._private.services").setLevel(logging.CRITICAL)  # our lines say it
            without = name_option("--no-dashboard")
            advice = f", or with {without}" if ray_at.dashboard else ""
            with _shielded_from_signals(), start_errors("start", advice=advice):
                context = ray.init(
                    address="local",
                    num_cpus=count_cpus(),  # Ray would count CPUs that this process may not use
                    dashboard_host="127.0.0.1",
                    include_dashboard=None if ray_at.dashboard else False,  # with True it would have to start
                    object_store_memory=max(128 * 2**20, 2 * data_bytes),
                    _temp_dir=f"{folder}/r",  # open to everybody, but its parent is not
                    **QUIET,
                )
        else:
            context = _joined(ray_at.address)
        stack.callback(ray.shutdown)
        url, notes = context.dashboard_url, list[str]()
        if not url and ray_at.address is None and ray_at.dashboard:
            notes = [f"Ray's dashboard did not start; the sweep runs without it ({without} saves the wait for it)"]
        yield Cluster(tuple(nodes_now().values()), f"http://{url}" if url else None, tuple(notes))


@contextmanager
def _shielded_from_signals() -> Iterator[None]:
    """Processes started within ignore what a terminal or a batch system sends to all; the driver ends them.

    Ray's processes would otherwise die of them, and with them what is being trained.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)  # one that came meanwhile comes now


def nodes_now() -> dict[str, Node]:
    """The live nodes, by address and the start of their id, because one machine may have several."""
    import ray

    there = {f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})": node for node in ray.nodes() if node["Alive"]}
    counts = {name: node["Resources"] for name, node in there.items()}
    return {name: Node(int(held.get("CPU", 0)), int(held.get("GPU", 0))) for name, held in counts.items()}


def _joined(address: str) -> Any:
    """The context of ray.init for the cluster at an address."""
    import ray

    knock(address)
    try:
        with start_errors(f"join the cluster at {address}", passing=(ConnectionError, RuntimeError)):
            return ray.init(address=address, **QUIET)
    except ConnectionError:
        what = f"no Ray cluster answers at {address}, or it wants another token"
        raise NoClusterError(f"{what} ({_instead()})") from None
    except RuntimeError as error:
        versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
        if len(versions) != 2:
            raise start_error(f"join the cluster at {address}", error) from None
        there, here = (f"Ray {ray_version} and Python {python}" for ray_version, python in versions)
        raise NoClusterError(
            f"the cluster at {address} must have the versions of this one, {here}, got {there}"
        ) from None
