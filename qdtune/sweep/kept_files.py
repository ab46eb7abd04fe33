"""The actor that keeps the warm-ups and checkpoints of a run folder, and both as one trial uses them.

The actor runs next to the driver, so workers on other machines need no shared file system.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import ray

from qdtune.store.folder import join_location
from qdtune.store.paused import PausedFolder
from qdtune.store.warmups import Answer, WarmupFolder

POLL_S = 0.2  # how often a waiting trial asks for a warm-up that another trial trains
RELEASE_S = 5.0  # how long a trial that ends waits until its claim is released
KEEP_S = 5.0  # how long a trial waits until its checkpoint is written; the actor writes on


class KeptFiles:
    """The warm-ups and checkpoints of a run folder in one actor: each process of Python costs seconds and memory.

    Args:
        run_folder: its path or URL.
    """

    def __init__(self, run_folder: str) -> None:
        self.warmups = WarmupFolder(join_location(run_folder, "warmup"))
        self.paused = PausedFolder(join_location(run_folder, "paused"))
        self.preparing: dict[str, str] = {}  # trial_id -> what a trial does instead of training

    def claim(self, key: str, holder: str) -> tuple[Answer, bytes | None]:
        """As `WarmupFolder.claim`."""
        return self.warmups.claim(key, holder)

    def keep(self, key: str, blob: bytes) -> None:
        """As `WarmupFolder.keep`."""
        self.warmups.keep(key, blob)

    def release(self, holder: str) -> None:
        """As `WarmupFolder.release`; the trial no longer runs, so it prepares nothing either."""
        self.warmups.release(holder)
        self.preparing.pop(holder, None)

    def find_paused(self, trial_id: str) -> bytes | None:
        """As `PausedFolder.find`."""
        return self.paused.find(trial_id)

    def keep_paused(self, trial_id: str, blob: bytes) -> None:
        """As `PausedFolder.keep`."""
        self.paused.keep(trial_id, blob)

    def refuse_paused(self, trial_id: str) -> None:
        """As `PausedFolder.refuse`."""
        self.paused.refuse(trial_id)

    def forget_paused(self, trial_ids: Iterable[str]) -> None:
        """As `PausedFolder.forget`."""
        self.paused.forget(trial_ids)

    def set_preparing(self, trial_id: str, text: str | None) -> None:
        """Notes what a trial does instead of training, such as `compiling`; None if it trains."""
        self.preparing.pop(trial_id, None)
        if text is not None:
            self.preparing[trial_id] = text

    def list_preparing(self) -> dict[str, str]:
        """The trials that do not train now, with what they do."""
        return self.preparing


class SharedPaused:
    """The checkpoints as a worker uses them. A checkpoint that cannot be kept fails no trial.

    Args:
        files: the actor, a `KeptFiles`.
    """

    def __init__(self, files: Any) -> None:
        self.files = files

    def find(self, trial_id: str) -> bytes | None:
        found: bytes | None = ray.get(self.files.find_paused.remote(trial_id))
        return found

    def keep(self, trial_id: str, blob: bytes) -> None:
        with suppress(ray.exceptions.RayError):
            ray.get(self.files.keep_paused.remote(trial_id, blob), timeout=KEEP_S)

    def refuse(self, trial_id: str) -> None:
        ray.get(self.files.refuse_paused.remote(trial_id))


class SharedWarmups:
    """The `WarmupFolder` as one trial uses it: a claim waits while another trial trains the warm-up.

    Args:
        folder: the actor.
        holder: the name under which this trial claims.
        report_alive: called while the trial waits.
        report_preparing: called with what the trial does instead of training, and with None once it trains.
    """

    def __init__(
        self,
        folder: Any,
        holder: str,
        report_alive: Callable[[], None],
        report_preparing: Callable[[str | None], None] = lambda text: None,
    ) -> None:
        self.folder, self.holder = folder, holder
        self.report_alive, self.report_preparing = report_alive, report_preparing
        self.waited_s = 0.0
        self.is_training = False  # whether this trial has claimed a warm-up and not kept it yet

    def claim(self, key: str) -> bytes | None:
        is_waiting = False
        while True:
            answer, blob = ray.get(self.folder.claim.remote(key, self.holder))
            if answer != "wait":
                self.is_training = answer == "train"
                if is_waiting:
                    self.report_preparing(None)
                return blob
            if not is_waiting:
                is_waiting = True
                self.report_preparing("waiting for its warm-up")
            time.sleep(POLL_S)
            self.waited_s += POLL_S
            self.report_alive()

    def keep(self, key: str, blob: bytes) -> None:
        ray.get(self.folder.keep.remote(key, blob))
        self.is_training = False

    def release(self) -> None:
        """Lets another trial train the warm-up that this trial has claimed and not finished."""
        if self.is_training:
            self.is_training = False
            with suppress(ray.exceptions.RayError):  # nobody waits for it if the actor is gone
                ray.get(self.folder.release.remote(self.holder), timeout=RELEASE_S)
