"""Run folders as each released version of the tables has left them: read, finished and verified by this one.

They were made by the versions themselves, with the sweep in `tests/data/runs/v3/sweep.yaml`; from v5 on with weights.
A version that changes the tables adds a folder here, and changes none.
"""

import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qdtune.commands import launch, verify
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load
from qdtune.store.columns import SCHEMA_VERSION
from qdtune.store.parquet import VERSION_KEY
from qdtune.store.results import results
from qdtune.store.store import Store
from tests.schemas import HISTORY, TRIALS

RUNS = Path(__file__).parents[1] / "data" / "runs"
VERSIONS = sorted(path.name for path in RUNS.iterdir())


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
