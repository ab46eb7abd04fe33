"""What the driver can say of a trial that ended without a last report."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from qdtune.spec.configuration import Configuration


def unfinished_rows(trial: Configuration, state: str, error: str) -> list[dict[str, Any]]:
    """A row per seed for a trial that ended without rows: the columns known before training, and why it ended."""
    now = datetime.now(timezone.utc)
    return [
        trial.columns | {"seed": seed, "state": state, "error": error, "finished_at": now} for seed in trial.seeds
    ]


def locate_stack(stack: Path) -> str:
    """The line at which a trial killed itself: the innermost one of the main thread, which the stack has last."""
    with suppress(OSError):
        lines = stack.read_text(errors="replace").splitlines()
        heads = [i for i, line in enumerate(lines) if "(most recent call first)" in line]
        if heads and heads[-1] + 1 < len(lines):
            return f", in {lines[heads[-1] + 1].strip()}"
    return ""


def read_reason(trial: Any) -> str:
    """Ray's reason for a lost worker, in one line."""
    text = trial.get_error() if trial.pickled_error_file else None
    return " ".join((text or "no reason given").split())[:300]
