"""The Ray cluster a sweep runs on: one of its own on this machine, or one that is running already.

`set_environment` has to be called before ray is imported for the first time: much of what it sets is read then.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdtune.machine import own_folder
from qdtune.messages import user_error
from qdtune.sweep.placement import Node

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` every worker would build the environment anew
    # Of a node that is lost, which `driver.NodeWatch` tells in one line: Ray prints its last log in any case.
    "RAY_DEDUP_LOGS_SKIP_REGEX": r"^Raylet is terminated\.|^The node with node id: ",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # as nice as the command itself; Ray's 15 would starve a sweep on a shared machine
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # five files per trial, which nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours is set after ray.init
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's state is disposable: a resume is planned from the store
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
KNOCK_S = 5.0  # how long an address may take to answer
BEGIN = b"\4"  # the type of the frame with which both sides of gRPC begin
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + BEGIN + bytes(5)
INSTEAD = "leave out --address, or unset RAY_ADDRESS, to start Ray here"


def set_environment(address: str | None) -> None:
    """Sets the environment of Ray and its workers; keeps what the user has set, but for code from outside.

    Args:
        address: of a running cluster; None for one of our own, whose every port is then on loopback.

    Raises:
        SpecError: the token has no place, or the file that should hold it does not.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.pop("RAY_TUNE_CALLBACKS", None)  # import paths that Tune would instantiate
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every worker compiles all that it imports
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    token = bool(os.environ.get("RAY_AUTH_TOKEN") or given)
    if given and not os.environ.get("RAY_AUTH_TOKEN"):
        _check_token(given)
    if address is None:
        # The odd name notwithstanding, 0 is what keeps every port of a local cluster on loopback (measured).
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if not token:
            try:
                os.environ["RAY_AUTH_TOKEN_PATH"] = str(_token_file())
            except (OSError, RuntimeError) as error:  # no home, or none that can be written
                what = f"Ray's token must be kept in ~/.ray/auth_token: {error}"
                raise user_error(f"{what} (or let RAY_AUTH_TOKEN_PATH name a file that holds one)") from None
        os.environ["RAY_AUTH_MODE"] = "token"
    elif token or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def token_place() -> str:
    """Where Ray finds the user's token, or looks for it: an environment variable's name, or a file's."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    return os.environ.get("RAY_AUTH_TOKEN_PATH") or str(Path.home() / ".ray" / "auth_token")


def _token_file() -> Path:
    """Ray's own token file, for the user alone, made if there is none: Ray would leave it readable by everybody."""
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)  # where it was there
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        os.fchmod(file.fileno(), 0o600)
        if not file.read().strip():  # new, or of a launch that was killed just here
            file.write(secrets.token_hex(32))
    return path


def _check_token(path: str) -> None:
    """Raises where the user's own token file holds none: Ray would abort."""
    try:
        what = "" if Path(path).read_text().strip() else "it is empty"
    except (OSError, ValueError) as error:
        what = str(error)
    if what:
        raise user_error(f"RAY_AUTH_TOKEN_PATH must name a file that holds a token, got {path}: {what} (or unset it)")


@dataclass(frozen=True)
class RayAt:
    """Where a sweep runs: the address of a Ray cluster, or None for one started here, with or without dashboard."""

    address: str | None = None
    dashboard: bool = True


class NoClusterError(ValueError):
    """No cluster that could be joined answers where the user says there is one."""


@dataclass(frozen=True)
class Cluster:
    """What there is to run on: the nodes, and the dashboard's URL or None."""

    nodes: tuple[Node, ...]
    dashboard: str | None


def knock(address: str) -> None:
    """Returns where something that may be Ray listens: elsewhere ray.init would go on trying for minutes.

    Raises:
        NoClusterError: nothing answers, or something that speaks no gRPC; or it is no HOST:PORT (or `auto`, which
            is taken as it is).
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise NoClusterError(f"an address must be HOST:PORT or auto, got {address} ({INSTEAD})")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S) as there:
            there.sendall(HELLO)
            answer = there.recv(4)
    except (OSError, OverflowError, ValueError) as error:
        raise NoClusterError(f"no Ray cluster answers at {address}: {error} ({INSTEAD})") from None
    if answer[3:] != BEGIN and os.environ.get("RAY_USE_TLS") != "1":  # a TLS server hangs up
        raise NoClusterError(
            f"what answers at {address} is no Ray cluster, or one that wants RAY_USE_TLS=1 ({INSTEAD})"
        )


@contextmanager
def connect(ray_at: RayAt, data_bytes: int) -> Iterator[Cluster]:
    """Starts Ray here, or joins a cluster, for the length of a `with` block.

    What Ray writes here, its logs among them, is in a folder of the user's alone and goes with it: Ray's own is open
    to everybody on the machine.

    Args:
        ray_at: which one.
        data_bytes: size of the data set, which the object store has to hold.

    Raises:
        NoClusterError: no cluster answers there, or one of another version.
    """
    import ray

    with ExitStack() as stack:
        if ray_at.address is None:
            context = ray.init(
                address="local",
                dashboard_host="127.0.0.1",
                include_dashboard=ray_at.dashboard,
                object_store_memory=max(128 * 2**20, 2 * data_bytes),
                _temp_dir=f"{stack.enter_context(own_folder())}/r",  # Ray opens it to everybody, but not its parent
                **QUIET,
            )
        else:
            context = _joined(ray_at.address)
        stack.callback(ray.shutdown)
        url = context.dashboard_url
        yield Cluster(nodes=tuple(nodes_now().values()), dashboard=f"http://{url}" if url else None)


def nodes_now() -> dict[str, Node]:
    """The nodes that are alive, by address and the beginning of their id: of one machine there may be several."""
    import ray

    there = {f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})": node for node in ray.nodes() if node["Alive"]}
    counts = {name: node["Resources"] for name, node in there.items()}
    return {name: Node(int(held.get("CPU", 0)), int(held.get("GPU", 0))) for name, held in counts.items()}


def _joined(address: str) -> Any:
    """What ray.init returns of the cluster at an address."""
    import ray

    knock(address)
    try:
        return ray.init(address=address, **QUIET)
    except ConnectionError:
        raise NoClusterError(f"no Ray cluster answers at {address}, or it wants another token ({INSTEAD})") from None
    except RuntimeError as error:
        versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
        if len(versions) != 2:
            raise
        there, here = (f"Ray {ray_version} and Python {python}" for ray_version, python in versions)
        raise NoClusterError(
            f"the cluster at {address} must have the versions of this one, {here}, got {there}"
        ) from None
