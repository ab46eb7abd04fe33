"""The Ray cluster a sweep runs on: one of its own on this machine, or one that is running already.

`prepare` has to be called before ray is imported for the first time: much of what it sets is read then.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths keep their meaning
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` every worker would build the environment anew
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # as nice as the command itself; Ray's 15 would starve a sweep on a shared machine
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # five files per trial, which nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours is set after ray.init
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Tune's state is disposable: a resume is planned from the store
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
KNOCK_S = 5.0  # how long an address may take to answer


def prepare(address: str | None) -> None:
    """Sets the environment of Ray and its workers; keeps what the user has set, but for code from outside.

    Args:
        address: of a running cluster; None for one of our own, whose every port is then on loopback.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.pop("RAY_TUNE_CALLBACKS", None)  # import paths that Tune would instantiate
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every worker compiles all that it imports
    token = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if address is None:
        # The odd name notwithstanding, 0 is what keeps every port of a local cluster on loopback (measured).
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if not token:
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(_token_file())
        os.environ["RAY_AUTH_MODE"] = "token"
    elif token or (Path.home() / ".ray" / "auth_token").exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _token_file() -> Path:
    """Ray's own token file, made here if there is none: Ray would leave it readable by everybody."""
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
    else:
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    return path


@dataclass(frozen=True)
class RayAt:
    """Where a sweep runs: the address of a Ray cluster, or None for one started here, with or without dashboard."""

    address: str | None = None
    dashboard: bool = True


class NoClusterError(ValueError):
    """No cluster answers where the user says there is one."""


@dataclass(frozen=True)
class Cluster:
    """What there is to run on: CPUs and GPUs of the largest node and in all, the dashboard's URL or None."""

    node_cpus: int
    node_gpus: int
    cpus: int
    gpus: int
    dashboard: str | None


def _knock(address: str) -> None:
    """Raises where nothing listens at the address: ray.init would go on trying for minutes."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        raise NoClusterError(f"an address must be HOST:PORT or auto, got {address}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    except (OSError, OverflowError) as error:
        told = f"no Ray cluster answers at {address}: {error} (leave it out to start Ray here)"
        raise NoClusterError(told) from None


@contextmanager
def connect(ray_at: RayAt, data_bytes: int) -> Iterator[Cluster]:
    """Starts Ray here, or joins a cluster, for the length of a `with` block.

    Args:
        ray_at: which one.
        data_bytes: size of the data set, which the object store has to hold.

    Raises:
        NoClusterError: no cluster answers there.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = ray_at.address
    if address is None:
        context = ray.init(
            address="local",
            dashboard_host="127.0.0.1",
            include_dashboard=ray_at.dashboard,
            object_store_memory=max(128 * 2**20, 2 * data_bytes),
            **quiet,
        )
    else:
        _knock(address)
        try:
            context = ray.init(address=address, **quiet)
        except ConnectionError:
            raise NoClusterError(f"no Ray cluster answers at {address} (leave it out to start Ray here)") from None
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
        url = context.dashboard_url
        yield Cluster(
            node_cpus=max(cpus, default=0),
            node_gpus=max(gpus, default=0),
            cpus=sum(cpus),
            gpus=sum(gpus),
            dashboard=f"http://{url}" if url else None,
        )
    finally:
        ray.shutdown()
