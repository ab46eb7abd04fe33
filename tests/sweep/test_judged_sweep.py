"""The example of the docs with 16-bit rows, two targets and another metric, from the launch to an exported file."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import qdtune
from qdtune import __main__, reader

PAGE = (Path(__file__).parents[2] / "docs" / "your-own-code.md").read_text(encoding="utf-8")
PY, YAML = (PAGE.split("<!-- sensors -->")[1].split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "yaml"))

pytestmark = pytest.mark.slow  # test_plugins.py has the other example of the page; training/test_tasks.py the metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the sweep of the page has run; its run folder is runs/sensors."""
    folder = tmp_path_factory.mktemp("sensors")
    (folder / "token").write_text("0" * 64)
    (folder / "sensors.py").write_text(PY)
    (folder / "sensors.yaml").write_text(YAML)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    line = [sys.executable, "-m", "qdtune.launch", "sensors.yaml", "--allow-plugin", "sensors", "--no-dashboard"]
    line += ["--set", "parameters.depth={value: 1}", "--set", "seeds=[0, 1]", "--set", "run.max_concurrent_trials=1"]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=110, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "best r2" in done.stdout
    return folder


def test_columns_are_named_by_the_metric(folder):
    rows = pq.read_table(folder / "runs" / "sensors" / "pareto.parquet").to_pylist()
    assert len(rows) == 4
    assert {"val_r2", "test_r2", "test_r2_low", "test_mae"} <= rows[0].keys()
    assert not any("accuracy" in name for name in rows[0])
    best = max(rows, key=lambda row: row["val_r2"])
    assert best["val_r2"] > 0.9
    assert best["is_pareto"]


def test_front_is_read_and_exported_with_its_numbers(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    run = qdtune.load("runs/sensors")
    assert run.front().num_rows >= 1
    assert __main__.main(["report", "runs/sensors"]) == 0
    assert __main__.main(["export", "runs/sensors", "--front", "--out", "models"]) == 0
    out = capsys.readouterr().out
    assert "test r2" in out
    assert "accuracy" not in out
    code = {}
    exec(PY, code)
    *_, test_x, test_y = code["windows"](None)
    cards = [json.loads(path.read_text()) for path in Path("models").glob("*.json")]
    assert cards
    for card in cards:
        outputs = reader.load(f"models/{card['file']}").logits(test_x)
        errors = ((outputs - test_y.astype(np.float32)) ** 2).sum(0)
        r2 = np.mean(1 - errors / ((test_y - test_y.mean(0)) ** 2).sum(0))
        assert card["r2"]["test"] == pytest.approx(r2, abs=1e-5)
        assert "x int16 (batch, inputs)" in card["read_with"]


def test_another_metric_needs_a_folder_of_its_own(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    line = ["launch", "sensors.yaml", "--allow-plugin", "sensors", "--set", "data.metric=mae", "--dry-run"]
    assert __main__.main(line) == 2
    assert "data.metric: r2 there, mae now" in capsys.readouterr().err
