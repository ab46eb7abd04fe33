"""The live display: drawn on a terminal and nowhere else, whatever the environment says of colours."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys

import pytest

from qdtune.terminal import _Console, text_table

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


@pytest.mark.parametrize("width", [60, 40, 20])
def test_a_table_that_is_too_wide_keeps_every_digit_and_its_label_gives_way(width: int) -> None:
    numbers, words = ["e62e619074c1", "10,578", "97.54% ± 1.25"], "d3 w4 relu hidden channel ternary"
    file = io.StringIO()
    out = _Console(file=file, width=width, force_terminal=True, color_system=None)
    out.print(text_table(["trial", "bytes", "test", "configuration"], [[*numbers, words]], folded=["configuration"]))
    printed = file.getvalue()
    assert "…" not in printed
    assert all(number in printed for number in numbers)
    assert all(word in printed for word in words.split())
    assert max(map(len, printed.splitlines())) == max(width if width == 60 else 0, 12 + 6 + 13 + 13 + 3 * 2)
