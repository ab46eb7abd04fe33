"""Run folders as each released version of the tables has left them: read, finished and verified by this one.

They were made by the versions themselves, with the sweep in `tests/data/runs/v3/sweep.yaml`; from v5 on with weights.
A version that changes the tables adds a folder here, and changes none.
"""

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qdtune.analysis.run import load_run
from qdtune.commands import launch, verify
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load
from qdtune.store.columns import SCHEMA_VERSION
from qdtune.store.parquet import VERSION_KEY
from qdtune.store.results import results
from qdtune.store.store import Store
from tests.schemas import HISTORY, TRIALS

RUNS = Path(__file__).parents[1] / "data" / "runs"
VERSIONS = sorted((path.name for path in RUNS.iterdir()), key=lambda name: int(name[1:]))


@pytest.fixture(params=VERSIONS)
def run(request, tmp_path):
    return Path(shutil.copytree(RUNS / request.param, tmp_path / "runs" / "tiny"))


def test_every_version_has_its_folder():
    assert [f"v{n}" for n in range(1, SCHEMA_VERSION + 1)] == VERSIONS
    for version in VERSIONS:
        for path in (RUNS / version).glob("*/*.parquet"):
            assert pq.read_schema(path).metadata[VERSION_KEY.encode()].decode() == version[1:]


def test_results_of_every_version_stand(run):
    spec, store = load(run / "sweep.yaml"), Store(run)
    rows, history = store.trials(), store.history()
    assert (rows.schema.names, history.schema.names) == (TRIALS.names, HISTORY.names)
    assert store.damaged == []
    found = results(spec, rows, history)
    assert {r.trial.trial_id for r in found} == {t.trial_id for t in plan(spec).trials}
    assert {(r.state, len(r.curve)) for r in found} == {("ok", 2)}


def test_a_sweep_of_every_version_is_whole_and_done(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent.parent)
    assert verify.main([str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("4 trials, 8 rows, 24 epochs: all whole")
    assert launch.main([str(shutil.copy(run / "sweep.yaml", "tiny.yaml"))]) == 0
    told = capsys.readouterr().out
    assert "all done before" in told
    assert re.search(r"76 +1 +1 +24\.22% ± 0\.00 +25\.00% ± 0\.00 +2", told)


@pytest.mark.parametrize("version", ["v3", "v8"])
def test_other_objectives_draw_the_front_of_an_old_run_anew(version, tmp_path, monkeypatch, capsys):
    """A table of v3 has no column of multiplications: they are counted again."""
    run = Path(shutil.copytree(RUNS / version, tmp_path / "runs" / "tiny"))
    monkeypatch.chdir(tmp_path)
    shutil.copy(run / "sweep.yaml", "tiny.yaml")
    argv = ["tiny.yaml", "--set", "objectives=[val_accuracy, macs, size_bytes]"]
    assert launch.main(argv) == 0
    told = capsys.readouterr().out
    assert "the front is drawn anew, over MACs and bytes instead of bytes" in told
    assert "Pareto front on synthetic over MACs and bytes: " in told
    spec = load(run / "sweep.yaml")
    assert spec.objectives == ("val_accuracy", "macs", "size_bytes")
    table = pq.read_table(run / "pareto.parquet")
    macs = {trial.trial_id: trial.structure.macs(trial.depth) for trial in plan(spec).trials}
    assert dict(zip(table["trial_id"].to_pylist(), table["macs"].to_pylist(), strict=True)) == macs
    assert table.schema.metadata[b"qdtune.costs"] == b"macs,size_bytes"
    assert None not in table["pareto_rank"].to_pylist()
    assert "MACs" in (run / "report.html").read_text()
    assert load_run(run).front().num_rows == table["is_pareto"].to_pylist().count(True)
    assert verify.main([str(run)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("all whole")
    assert launch.main(argv) == 0
    assert "drawn anew" not in capsys.readouterr().out
    assert launch.main(["tiny.yaml"]) == 0
    assert "over bytes instead of MACs and bytes" in capsys.readouterr().out
    assert b"qdtune.costs" not in pq.read_schema(run / "pareto.parquet").metadata
