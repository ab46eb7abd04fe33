"""Standard output and standard error that fail: full, closed, gone."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qdtune.commands.output import _Output
from qdtune.terminal import console, print_facts

PRINT = """
import os, sys
from contextlib import suppress
from qdtune.commands.output import drop_output
from qdtune.commands.parser import run_command

def command():
    if "drop" in sys.argv:
        drop_output()
    print("one \\u2603")
    sys.stdout.flush()
    open("file", "w").write("whole")
    for number in (1, 2):
        with suppress(OSError):
            os.write(number, b"noise\\n")  # as libraries in C do
    print("two", file=sys.stderr)
    open("end", "w").close()
    return 3

sys.exit(run_command(command))
"""


def printing(folder: Path, redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = f'exec "$0" -c "$1" {" ".join(arguments)} {redirection}'
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0"}
    command = ["bash", "-c", line, sys.executable, PRINT]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-", "2>&-", "> /dev/full 2> /dev/full", "<&- >&- 2>&-"])
def test_what_a_sweep_prints_never_ends_it_and_goes_into_no_other_file(tmp_path: Path, redirection: str) -> None:
    done = printing(tmp_path, redirection, "drop")
    assert (done.returncode, "Traceback" in done.stdout + done.stderr) == (3, False)
    assert (tmp_path / "file").read_text() == "whole"
    assert (tmp_path / "end").exists()


def test_a_command_whose_output_has_no_room_says_so(tmp_path: Path) -> None:
    done = printing(tmp_path, "> /dev/full")
    assert done.returncode == 4
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"
    assert not (tmp_path / "end").exists()


@pytest.mark.parametrize("arguments", ["--help", "--version", "nothing", ""])
def test_the_command_itself_ends_in_one_line_too(arguments: str) -> None:
    command = [sys.executable, "-m", "qdtune", *arguments.split()]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (4 if arguments.startswith("-") else 2, 1)


def test_a_full_pipe_that_does_not_block_is_waited_for() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    data = bytes(1 << 20)
    got: list[bytes] = []

    def read() -> None:
        while chunk := os.read(reader, 1 << 16):
            got.append(chunk)

    thread = threading.Thread(target=read)
    output, sent = _Output(writer, is_lossy=False), 0
    threading.Timer(0.2, thread.start).start()
    while sent < len(data):
        sent += output.write(memoryview(data)[sent:])
    os.close(writer)
    while thread.ident is None:
        pass
    thread.join(30)
    os.close(reader)
    assert sum(map(len, got)) == len(data)


def test_a_console_without_a_standard_output_prints_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program of the user's that has none, such as a service."""
    monkeypatch.setattr(sys, "stdout", None)
    console().print("nobody reads this")
    print_facts([("name", "text")])
