"""The live display: drawn on a terminal and nowhere else, whatever the environment says of colours."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

SHOW = """
import time
from qdtune.terminal import Screen, console, is_live_console
out = console()
screen = Screen(out, "trials", 3, 0, lambda: ["below"])
screen.start()
for done in range(3):
    screen.update(done, 3)
    time.sleep(0.3)
screen.stop()
out.print("end", is_live_console(out), screen.is_live)
"""


@pytest.mark.parametrize("variable", [None, "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_log_holds_no_live_display(variable):
    environment = {**os.environ, **({variable: "1"} if variable else {})}
    done = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["end", "False", "False"]


def test_a_terminal_has_a_live_display():
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", SHOW], stdout=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                read = os.read(ours, 4096)
            except OSError:  # the process has ended
                break
            if not read:
                break
            shown += read
    os.close(ours)
    assert process.returncode == 0
    assert b"\x1b[" in shown
    assert b"True True" in shown
