"""What Ray is started with: the CPUs that the process may use, and deaf to the signals of batch systems."""

from __future__ import annotations

import os
import signal
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from qdtune.machine import PASSING_SIGNALS
from qdtune.sweep import cluster


def test_ray_gets_the_cpus_of_the_process_and_a_shield(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def start(**options: Any) -> SimpleNamespace:
        kill = "; ".join(f"kill -{signal.Signals(number).name.removeprefix('SIG')} $$" for number in PASSING_SIGNALS)
        said = subprocess.run(["sh", "-c", f"{kill}; echo alive"], capture_output=True, text=True).stdout
        seen.update(options, said=said)
        return SimpleNamespace(dashboard_url=None)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "nodes_now", dict)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with cluster.connect(cluster.RayAt(), 0):
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    assert seen["num_cpus"] == 1
    assert seen["said"] == "alive\n"


@pytest.mark.parametrize(("wanted", "url"), [(True, "127.0.0.1:8265"), (True, None), (True, ""), (False, None)])
def test_dashboard_that_does_not_start_costs_no_sweep(
    monkeypatch: pytest.MonkeyPatch, wanted: bool, url: str | None
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(ray, "init", lambda **options: seen.update(options) or SimpleNamespace(dashboard_url=url))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(cluster, "nodes_now", dict)
    with cluster.connect(cluster.RayAt(dashboard=wanted), 0) as joined:
        assert joined.dashboard == (f"http://{url}" if url else None)
        told = ["Ray's dashboard did not start; the sweep runs without it (--no-dashboard saves the wait for it)"]
        assert list(joined.notes) == (told if wanted and not url else [])
    assert seen["include_dashboard"] is (None if wanted else False), "with True Ray does not start without it"
