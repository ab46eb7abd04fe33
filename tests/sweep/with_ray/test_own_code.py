"""The example of the docs with a model and data of the user's own: workers find its module where it lies, too."""

import hashlib
import json
import os
import subprocess
import sys
from contextlib import nullcontext

import pyarrow.parquet as pq
import pytest
import torch

import qdtune
from qdtune import __main__, plugins
from qdtune.commands.replay import main as replay
from qdtune.sweep import session
from qdtune.sweep.cluster import Cluster, nodes_now
from qdtune.sweep.prepare import prepare_launch
from qdtune.sweep.prepared import LaunchOptions
from tests.test_plugins import PY, YAML

pytestmark = pytest.mark.timeout(300)
FEW = (
    "parameters.weight_bits={value: 4}",
    "seeds=[0, 1]",
    "train.warmup.epochs=5",
    "train.qat.epochs=2",
    "run={max_concurrent_trials: 1, compile: never}",
    "resources={gpu: 0, cpu: 1}",
)
OLDER = """version: 1
name: mine
parameters: {depth: {value: 1}}
data: {dataset: digits, val_size: 200}
"""  # its results cannot be compared with those of the example


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, to which nothing leads: the sweep file and the module are in sub/."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.py").write_text(PY)
    (tmp_path / "sub" / "mine.yaml").write_text(YAML)
    return tmp_path


def test_the_example_of_the_docs_runs_where_it_lies(ray_here, folder, monkeypatch, capsys):
    monkeypatch.setenv("TUNE_MAX_PENDING_TRIALS_PG", "1")  # to be set back, for the sweep sets it itself
    older = folder / "runs" / "mine" / "sweep.yaml"
    older.parent.mkdir(parents=True)
    older.write_text(OLDER)
    options = LaunchOptions("sub/mine.yaml", FEW, ["mine"], is_fresh=True)
    cluster = Cluster(tuple(nodes_now().values()), None)
    mask = os.umask(0o077)
    try:
        drawing = lambda *_: nullcontext(lambda: None)  # noqa: E731
        code = session._run(prepare_launch(options), lambda _: nullcontext(cluster), drawing, [])
    finally:
        os.umask(mask)
    said = capsys.readouterr().out
    assert code == 0, said
    assert "--fresh: what was in runs/mine is now in runs/mine.1\n" in said
    assert (folder / "runs" / "mine.1" / "sweep.yaml").read_text() == OLDER
    check_what_was_said(folder, said)
    monkeypatch.setattr(plugins, "_grants", [])
    monkeypatch.setattr(plugins, "_sources", {})
    del sys.modules["mine"]
    check_run(folder)
    assert replay([str(folder / "runs" / "mine"), "--orders", "1", "--jobs", "1"]) == 0  # from what it says of itself
    assert "2 trials on mine:digits" in capsys.readouterr().out
    assert "mine" not in sys.modules

    (folder / "sub" / "mine.py").write_text(PY + "\n# other\n")
    settings = [word for key in FEW for word in ("--set", key)]
    assert __main__.main(["launch", "sub/mine.yaml", "--allow-plugin", "mine", *settings, "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "holds results that are not comparable (" in err
    assert "model.sha256: " in err
    assert err.count("\n") == 1


@pytest.mark.slow  # above without a process and a Ray of its own
def test_the_command_of_the_docs_runs_where_it_lies(folder):
    settings = [word for key in FEW for word in ("--set", key)]
    line = [sys.executable, "-m", "qdtune.launch", "sub/mine.yaml", "--allow-plugin", "mine", "--no-dashboard"]
    done = subprocess.run([*line, *settings], cwd=folder, capture_output=True, encoding="utf-8", timeout=280)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    check_what_was_said(folder, done.stdout)
    check_run(folder)


def source_of(folder):
    """Path and digest of the module."""
    return folder / "sub" / "mine.py", hashlib.sha256(PY.encode()).hexdigest()


def check_what_was_said(folder, said):
    path, sha256 = source_of(folder)
    assert f"plugin mine: {path}, sha256 {sha256}" in said
    assert "not quantised" not in said


def check_run(folder):
    path, sha256 = source_of(folder)
    files = list((folder / "runs" / "mine" / "trials").glob("*.parquet"))
    assert len(files) == 2
    for file in files:
        table = pq.read_table(file)
        assert table["state"].to_pylist() == ["ok"] * 2
        assert table["model"].to_pylist() == ["mine:net"] * 2
        assert table["dataset"].to_pylist() == ["mine:digits"] * 2
        assert table.schema.metadata[b"qdtune.plugin.mine"].decode() == f"{path} sha256:{sha256}"
    front = pq.read_table(folder / "runs" / "mine" / "pareto.parquet")
    assert set(zip(front["model"].to_pylist(), front["other_bytes"].to_pylist(), strict=True)) == {("mine:net", 0)}
    assert max(front["val_accuracy"].to_pylist()) > 0.8
    check_that_the_exported_model_is_the_one_of_the_table(folder)


def check_that_the_exported_model_is_the_one_of_the_table(folder):
    run, out = folder / "runs" / "mine", folder / "models"
    assert __main__.main(["export", str(run), "--front", "--out", str(out)]) == 0
    code = {}
    exec(PY, code)
    *_, test_x, test_y = code["digits"](None)
    x = torch.from_numpy(test_x).float() / 127.5 - 1
    cards = [json.loads(path.read_text()) for path in out.glob("*.json")]
    assert cards
    for card in cards:
        loaded = qdtune.load_into(code["net"](64, [16], 10, seed=0), out / card["file"])
        with torch.no_grad():
            right = int((loaded(x).argmax(1).numpy() == test_y).sum())
        assert right / len(test_y) == card["accuracy"]["test"]
        assert "qdtune.load_into(module, file)(x)" in card["read_with"]
