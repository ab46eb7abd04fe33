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
