"""The page on own Tuners: its code runs as it stands, and Ray's scheduler stops trials in it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qdtune.machine import own_folder

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "own-tuner.md").read_text()


@pytest.mark.slow  # with_ray/test_trainable.py has an ordinary Tuner in the suite of every day
@pytest.mark.timeout(300)
def test_the_code_of_the_page_runs_as_it_stands(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "page.py").write_text(code)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    with own_folder() as scratch:  # Ray's own files; their paths have to be short
        done = subprocess.run(
            [sys.executable, "page.py"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=own | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": scratch, "RAY_USAGE_STATS_ENABLED": "0"},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "Started a local Ray instance" in done.stderr, "not the Ray of another test"
    stopped, trials = map(int, re.findall(r"^(\d+) of (\d+) trials stopped early$", done.stdout, re.MULTILINE)[0])
    assert trials == 12
    assert 3 <= stopped < trials
    (best,) = re.findall(r"^best: d[12] w[124] identity, qat_lr ([\d.]+)$", done.stdout, re.MULTILINE)
    assert 0.001 <= float(best) <= 0.1
    (accuracy,) = re.findall(r"^validation accuracy ([\d.]+)%$", done.stdout, re.MULTILINE)
    assert float(accuracy) > 50
    assert [path.name for path in tmp_path.iterdir()] == ["page.py"]


def test_the_page_is_short():
    assert len(PAGE.splitlines()) <= 80
    assert max(map(len, PAGE.splitlines())) <= 120
