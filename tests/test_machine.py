"""What a process leaves behind on its machine, however it ends."""

import os
import subprocess
import sys

import pytest

from qdtune.machine import has_compiler, own_folder

HOLDER = """
from qdtune.machine import own_folder
import sys
with own_folder() as folder:
    open(folder + "/big", "w").close()
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_folder_of_a_killed_process_goes_with_the_next_and_that_of_a_living_one_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "qdtune-not-ours").mkdir()
    (tmp_path / "qdtune-link").symlink_to(tmp_path / "qdtune-not-ours")
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLDER], **quiet) as process:
        folder = process.stdout.readline().strip()
        assert os.stat(folder).st_mode & 0o777 == 0o700
        with own_folder() as mine:
            assert sorted(os.listdir(folder)) == ["big", "lock"]
            process.kill()
            process.wait()
            assert os.path.exists(folder)
            with own_folder():
                assert not os.path.exists(folder)
                assert os.path.exists(mine)
    assert sorted(os.listdir(tmp_path)) == ["qdtune-link", "qdtune-not-ours"]


def test_a_folder_goes_when_its_block_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(ValueError, match="no"), own_folder():
        raise ValueError("no")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("tools", [(), ("g++",), ("openssl",), ("g++", "openssl")])
def test_a_compiler_is_there_with_all_that_torch_calls(tmp_path, monkeypatch, tools):
    for tool in tools:
        (tmp_path / tool).touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert has_compiler() is (len(tools) == 2)
