"""A tiny real sweep, trained without Ray, exported front to end; and what cannot be exported, told in one line."""

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

from qdtune import __main__, reader
from qdtune.analysis.run import load_run
from qdtune.commands import export, trained_models, verify
from qdtune.commands.loaded_run import LoadedRun
from qdtune.datasets.load import load
from qdtune.messages import SpecError
from qdtune.model.c.device import Flash, Measured
from qdtune.model.c.host import Comparison, CompileError, find_compiler
from qdtune.model.formats import c as c_format
from qdtune.model.formats import onnx as onnx_format
from qdtune.model.formats.known import FORMAT_NAMES, FORMATS
from qdtune.model.formats.packed import one_seed
from qdtune.model.signed_file import sign_file, split_file
from qdtune.spec.axes import GRANULARITY, LEVELS, OVERHEAD, SCALE
from qdtune.spec.plan import make_trial, plan
from qdtune.spec.sweep_file import loads
from qdtune.spec.tasks import ACCURACY
from qdtune.store import disk_folder
from qdtune.store.pareto_table import table_front
from qdtune.store.store import Store
from qdtune.sweep.held_run import hold_run
from qdtune.terminal import console
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration as train
from tests.store.test_store import row as stored_row
from tests.trained import train_one
from tests.training.test_cohort import CPU
from tests.training.test_train import Kept

SWEEP = """\
version: 1
name: tiny
parameters:
  depth: {values: [1, 2]}
  weight_bits: {values: [1, 4, 32]}
  act_bits: {values: [null, 8]}
exclude: [{depth: 2, weight_bits: 32}, {depth: 1, act_bits: 8}, {depth: 1, weight_bits: 4}]
seeds: [0, 1]
data: {dataset: digits, val_size: 200}
model: {name: mlp, hidden: [12]}
train:
  batch_size: 48
  warmup: {epochs: 4, lr: 0.4}
  qat: {epochs: 1, lr: 0.02}
early_terminate: {type: none}
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep on digits, one of its configurations with more seeds, and the data."""
    home = tmp_path_factory.mktemp("export")
    loaded, _ = load(["digits"], home, 200)
    data = Tensors.of(loaded, CPU)
    spec, warmups = loads(SWEEP.encode(), "tiny.yaml").resolve("digits"), Kept()
    store = Store(home / "runs" / "tiny")
    store.create(spec.to_yaml())
    trials = plan(spec).trials
    for trial in [*trials, make_trial(spec, trials[0].cells, (2, 3, 4))]:
        train_one(store, trial, data, warmups)
    store.write_pareto()
    return store, data


@pytest.fixture
def run(swept, tmp_path):
    """The run folder, to be spoilt."""
    return shutil.copytree(swept[0].root, tmp_path / "runs" / "tiny")


def told(capsys, *argv):
    code = export.main([str(word) for word in argv])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, out, *argv):
    """The one line that a mistake is answered with, after which nothing is there."""
    before = sorted(out.iterdir()) if out.is_dir() else out.exists()
    code, printed, err = told(capsys, *argv, "--out", out)
    assert (code, printed) == (2, "")
    assert len(err.splitlines()) == 1
    assert (sorted(out.iterdir()) if out.is_dir() else out.exists()) == before
    return err.removeprefix("error: ").rstrip()


def rows_of(store, entry):
    """All rows of a configuration, best first."""
    axes = ("depth", "weight_bits", "act_bits")
    rows = [r for r in store.trials().to_pylist() if all(r[a] == entry[a] for a in axes)]
    return sorted(rows, key=lambda r: (-r["val_accuracy"], r["seed"]))


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_front_is_exported_and_gives_the_tested_accuracy_to_the_last_sample(swept, tmp_path, capsys):
    store, data = swept
    x, y = data.test_x.numpy(), data.test_y.numpy()
    front = table_front(store.write_pareto()).to_pylist()
    assert len(front) >= 2
    names, out = {"reader.py"}, tmp_path / "out"  # both formats lie side by side
    for kind, suffix, end in (("packed", ".safetensors", ".json"), ("onnx", ".onnx", ".onnx.json")):
        code, printed, err = told(capsys, store.root, "--front", "--out", out, "--format", kind)
        assert (code, err) == (0, "")
        assert max(map(len, printed.splitlines()[:-1])) <= 80
        assert "h12" not in printed, "all configurations of the sweep have it"
        names |= {f"{e['trial_id']}{last}" for e in front for last in (suffix, end)}
        assert {p.name for p in out.iterdir()} == names
        for entry in front:
            best = rows_of(store, entry)[0]
            card = json.loads((out / f"{entry['trial_id']}{end}").read_text())
            assert card["format"] == kind
            assert card["seed"] == best["seed"]
            assert (card["batch_norm"], card["training"]["qat"]["epochs"]) == (False, 1)
            assert card["accuracy"] == {"validation": best["val_accuracy"], "test": best["test_accuracy"]}
            assert card["accuracy_of_the_configuration"]["seeds"] == entry["n_seeds"]
            assert card["accuracy_of_the_configuration"]["test"]["mean"] == entry["test_accuracy"]
            file = out / card["file"]
            assert card["file_bytes"] == file.stat().st_size
            assert set(card["made_with"]) == {
                *(f"version.{n}" for n in ("qdtune", "torch", "ray", "pyarrow")),
                "git_commit",
            }
            if kind == "packed":
                assert len(split_file(file.read_bytes())[1]) == entry["size_bytes"] == card["size_bytes"]
                answers = reader.load(file).logits(x)
            else:
                answers = session(file).run(None, {"pixels": x})[0]
            assert (answers.argmax(1) == y).mean() == best["test_accuracy"]


def test_every_trial_and_seed_gives_its_own_row(swept, tmp_path, capsys):
    store, data = swept
    x, y = data.test_x.numpy(), data.test_y.numpy()
    for entry in store.write_pareto().to_pylist():
        for row in rows_of(store, entry):
            out = tmp_path / f"{row['trial_id']}-{row['seed']}"
            code, *_ = told(capsys, store.root, "--trial", row["trial_id"], "--seed", row["seed"], "--out", out)
            assert code == 0
            model = reader.load(out / f"{entry['trial_id']}.safetensors")
            # With quantised inputs a last bit may round to another code: one sample of 360 is what we allow.
            off = 0 if row["act_bits"] is None else 1 / len(y)
            assert abs((model.logits(x).argmax(1) == y).mean() - row["test_accuracy"]) <= off


def test_all_seeds_of_a_configuration_count(swept, tmp_path, capsys):
    store, _ = swept
    entry = next(e for e in store.write_pareto().to_pylist() if e["n_seeds"] == 5)
    for k, trial_id in enumerate({r["trial_id"] for r in rows_of(store, entry)}):  # either of its two trials
        assert told(capsys, store.root, "--trial", trial_id, "--out", tmp_path / str(k))[0] == 0
        card = json.loads((tmp_path / str(k) / f"{entry['trial_id']}.json").read_text())
        best = rows_of(store, entry)[0]
        assert (card["seed"], card["trained_by"]) == (best["seed"], best["trial_id"])


def test_of_equal_seeds_the_lowest_is_taken():
    rows = [stored_row(seed=s, val_accuracy=a, state=z) for s, a, z in
            ((4, 0.9, "ok"), (1, 0.9, "ok"), (3, 0.8, "ok"), (0, 0.99, "diverged"))]  # fmt: skip
    assert trained_models._best_row({}, rows, None, ACCURACY)["seed"] == 1


def test_the_copied_reader_needs_nothing_of_ours(swept, tmp_path, capsys):
    store, _ = swept
    (trial_id, *_) = sorted(store.ids())
    assert told(capsys, store.root, "--trial", trial_id, "--out", tmp_path)[0] == 0
    code = (
        "import sys; sys.path.insert(0, '.'); import glob, numpy as np, reader; "
        "m = reader.load(glob.glob('*.safetensors')[0]); print(m.logits(np.zeros((3, 64), np.uint8)).shape); "
        "print([n for n in sys.modules if n.split('.')[0] in ('qdtune', 'torch', 'safetensors')])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout.split("\n"), done.stderr) == (["(3, 10)", "[]", ""], "")


def test_the_same_command_again_changes_nothing_and_other_files_are_never_overwritten(swept, tmp_path, capsys):
    store, _ = swept
    out = tmp_path / "out"
    argv = (store.root, "--front", "--out", out)
    assert told(capsys, *argv)[0] == 0
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()}
    assert told(capsys, *argv)[0] == 0
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.iterdir()} == before
    victim = sorted(before)[0]
    victim.write_text("mine")
    next(p for p in before if p != victim).unlink()
    line = refused(capsys, out, store.root, "--front")
    assert line == f"{victim} holds something else, and nothing is overwritten: choose another --out, or move it away"
    assert victim.read_text() == "mine"


def test_what_cannot_be_exported_is_told_in_one_line(run, tmp_path, capsys):
    store, out = Store(run), tmp_path / "out"
    a, b, *_ = sorted(e["trial_id"] for e in store.write_pareto().to_pylist() if e["n_seeds"] == 2)
    file = run / "weights" / f"{a}.safetensors"
    assert refused(capsys, out, run, "--trial", "x" * 99).startswith(f"{run} holds no trial 'xxx")
    assert f"did you mean {a}" in refused(capsys, out, run, "--trial", a[1:])
    assert refused(capsys, out, run, "--trial", "").startswith("say which models: ")
    assert refused(capsys, out, run, "--trial", a, "--seed", "9").startswith("--seed must be one of ")
    assert refused(capsys, out, tmp_path, "--front").endswith("is no run folder: it holds no sweep.yaml")
    assert "--format: unknown 'tflite'" in refused(capsys, out, run, "--front", "--format", "tflite")
    assert refused(capsys, out, run).startswith("say which models: --front or --trial ID (usage: ")
    assert "not allowed with argument" in refused(capsys, out, run, "--front", "--trial", a)
    assert refused(capsys, run / "sweep.yaml", run, "--front").startswith("--out must be a folder on this machine")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "are damaged: the numbers do not fit" in refused(capsys, out, run, "--trial", a)
    shutil.copy(run / "weights" / f"{b}.safetensors", file)  # under another name
    assert f"the weights of trial {a} are damaged" in refused(capsys, out, run, "--trial", a)
    header, data = split_file(whole)
    for entry in [e for name, e in header.items() if name[0] == "0"]:
        entry["data_offsets"][1] += 2**40
    file.write_bytes(sign_file(header, data))
    assert f"the weights of trial {a} are damaged" in refused(capsys, out, run, "--trial", a)
    file.unlink()
    assert refused(capsys, out, run, "--trial", a).startswith(f"the weights of trial {a} are lost: launch its sweep")
    shutil.rmtree(run / "weights")  # as of a version that kept none
    told = refused(capsys, out, run, "--trial", a)
    assert told.startswith(f"no weights are kept of trial {a}")
    assert told.endswith("(launch its sweep again with --fresh)")


def test_trial_is_found_by_how_its_id_begins(swept, tmp_path, capsys):
    store = swept[0]
    for trial_id in (ids := sorted(store.ids())):
        short = next(s for k in range(1, 13) if sum(t.startswith(s := trial_id[:k]) for t in ids) == 1)
        assert told(capsys, store.root, "--trial", short, "--out", tmp_path / trial_id)[0] == 0
        cards = [json.loads(path.read_text()) for path in (tmp_path / trial_id).glob("*.json")]
        rows = [row for row in store.trials().to_pylist() if row["trial_id"] == trial_id]
        assert [card["configuration"]["weight_bits"] for card in cards] == [rows[0]["weight_bits"]]
    ours = dict.fromkeys(["ab1", "ab", "ac2", *(f"d{n}" for n in range(7, 0, -1))])
    assert [trained_models._find_trial(given, ours, "run") for given in ("ab", "ab1", "ac")] == ["ab", "ab1", "ac2"]
    with pytest.raises(ValueError, match=r"--trial must name one trial of run, got 'a': ab, ab1, ac2$"):
        trained_models._find_trial("a", ours, "run")
    with pytest.raises(ValueError, match=r"got 'd': d1, d2, d3, d4, d5 and 2 more$"):
        trained_models._find_trial("d", ours, "run")


def test_results_without_an_end_are_not_exported(run, tmp_path, capsys):
    store, out = Store(run), tmp_path / "out"
    for trial_id in store.ids():
        rows = store.trials([trial_id]).to_pylist()
        (run / "trials" / f"{trial_id}.parquet").unlink()
        store.write(trial_id, [r | {"state": "pruned", "pruned_by": "abc"} for r in rows], [], {})
    assert not any((run / "weights").iterdir())  # gone with the result they belonged to
    assert " was stopped early: only a finished trial can be exported" in refused(
        capsys, out, run, "--trial", sorted(store.ids())[0]
    )
    assert refused(capsys, out, run, "--front").startswith(f"{run} has no front yet")


def test_rows_that_cannot_be_read_are_told(run, tmp_path, capsys):
    """Without them the front is another one."""
    first, *others = sorted((run / "trials").iterdir())
    first.write_bytes(b"no Parquet")
    code, said, err = told(capsys, run, "--front", "--out", tmp_path / "some")
    assert (code, err) == (0, "")
    assert said.startswith(f"damaged, left out: {first}: unreadable")
    for path in others:
        path.write_bytes(b"no Parquet")
    out = tmp_path / "out"
    assert refused(capsys, out, run, "--front").startswith(f"{run} has no front that can be read: {first}: unread")
    assert refused(capsys, out, first, "--front") == f"{first} must be a run folder, such as runs/NAME, got a file"


def spoil_weights(run, trial_id):
    file = run / "weights" / f"{trial_id}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    return file


def test_damaged_weights_do_not_stop_the_export_of_the_others(run, tmp_path, capsys):
    front = [
        entry["trial_id"] for entry in table_front(Store(run).write_pareto()).to_pylist() if entry["n_seeds"] == 2
    ]
    victim, out = front[0], tmp_path / "out"
    spoil_weights(run, victim)
    code, printed, err = told(capsys, run, "--front", "--out", out)
    assert code == 3
    assert re.fullmatch(
        f"error: the weights of trial {victim} are damaged: .* "
        rf"\(run `qdtune verify {run}`, then launch its sweep, which trains it again\)\n",
        err,
    )
    assert victim not in printed
    written = {path.stem for path in out.glob("*.safetensors")}
    assert written
    assert written == {e["trial_id"] for e in table_front(Store(run).write_pareto()).to_pylist()} - {victim}
    assert verify.main([str(run)]) == 3
    capsys.readouterr()
    code, _, err = told(capsys, run, "--front", "--out", out)
    assert (code, err) == (
        3,
        f"error: the weights of trial {victim} are lost: launch its sweep, which trains it again\n",
    )
    with pytest.raises(SpecError, match="are lost"):  # in Python
        load_run(run, LoadedRun).export(front=True, out=out)


def test_lost_weights_are_trained_again_and_nothing_else(swept, run, tmp_path, capsys):
    _, data = swept
    store = Store(run)
    spec = loads(store.sweep_yaml(), "tiny.yaml")
    victim = next(entry["trial_id"] for entry in store.write_pareto().to_pylist() if entry["n_seeds"] == 2)
    file = spoil_weights(run, victim)
    assert load_run(run).left == 0
    assert verify.main([str(run)]) == 3
    assert load_run(run).left == 1
    rows, whole = store.trials().to_pylist(), (swept[0].root / "weights" / file.name).read_bytes()
    capsys.readouterr()
    held = hold_run(spec, plan(spec), store, tmp_path, console())
    assert f"1 trial lost the weights and will be trained again: {victim}" in capsys.readouterr().out
    trial = held.queue.next()
    assert (trial.trial_id, held.queue.next()) == (victim, None)
    assert not held.queue.study.live[victim].judged  # or a pruner might stop it before it has weights
    *_, last = train(trial, data, Kept(), "never")
    again = [row | {"attempt": 2} for row in last["rows"]]
    assert store.write(victim, again, [e | {"trial_id": victim} for e in last["history"]], {}, last["weights"])
    assert file.read_bytes() == whole
    assert store.trials().to_pylist() == rows  # the same numbers, so the rows stay as they were
    assert load_run(run).left == 0
    held.queue.study.close()


def test_a_model_whose_warmup_ended_at_chance_is_exported_with_a_warning(run, tmp_path, capsys):
    store = Store(run)
    front = table_front(store.write_pareto()).to_pylist()
    dead, *_ = (entry["trial_id"] for entry in front if entry["n_seeds"] == 2)
    weights = run / "weights" / f"{dead}.safetensors"
    kept, rows = weights.read_bytes(), store.trials([dead]).to_pylist()
    (run / "trials" / f"{dead}.parquet").unlink()
    store.write(dead, [row | {"error": "the warm-up ended at chance (9.8%)"} for row in rows], [], {})
    weights.write_bytes(kept)
    code, printed, err = told(capsys, run, "--front", "--out", tmp_path / "out")
    what = f"1 model started from a warm-up that ended at chance and may know nothing: {dead}"
    assert (code, err, printed.splitlines()[-1]) == (0, "", f"warning: {what}")
    other = next(entry["trial_id"] for entry in front if entry["trial_id"] != dead)
    assert "warning" not in told(capsys, run, "--trial", other, "--out", tmp_path / "other")[1]


@pytest.mark.parametrize("command", [["export", "--front"], ["report"]], ids=lambda words: words[0])
def test_an_out_that_cannot_be_written_is_one_line_of_why(swept, tmp_path, capsys, monkeypatch, command):
    def read_only(path, mode):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(disk_folder, "open", read_only, raising=False)
    name, *options = command
    out = tmp_path / "out.html"
    assert __main__.main([name, str(swept[0].root), *options, "--out", str(out)]) == 4
    printed, err = capsys.readouterr()
    assert printed == ""  # nothing is reported before it is known that the page can be written
    assert re.fullmatch(rf"error: {out}\S* must be readable and writable, got Read-only file system\n", err), err


@pytest.mark.parametrize(
    ("form", "what"),
    [("packed", "must read back as it was written, got a damaged"), ("onnx", "must pass ONNX's own")],
)
def test_a_file_that_is_wrong_once_written_is_told(swept, tmp_path, capsys, monkeypatch, form, what):
    """A disk that loses the end of what was written."""
    write, (trial_id, *_) = disk_folder.DiskFolder.write_file, sorted(swept[0].ids())
    monkeypatch.setattr(disk_folder.DiskFolder, "write_file", lambda self, name, data: write(self, name, data[:-9]))
    code, printed, err = told(capsys, swept[0].root, "--trial", trial_id, "--out", tmp_path, "--format", form)
    assert (code, printed) == (4, "")
    assert re.fullmatch(rf"error: {tmp_path}/\S* {what}.*\n", err), err


def test_what_is_said_of_all_models_is_said_once():
    alike = {"a": "equal", "b": "equal", "c": "equal"}
    assert [*export.group_notes(alike, 3)] == [("each of 3 models", "equal")]
    assert [*export.group_notes(alike, 4)] == [("a, b, c", "equal")]  # nothing is said of the fourth
    assert [*export.group_notes(alike | {"b": "not compiled"}, 3)] == [("a, c", "equal"), ("b", "not compiled")]
    assert [*export.group_notes({"a": "equal"}, 1)] == [("a", "equal")]
    assert [*export.group_notes({}, 2)] == []


@pytest.mark.skipif(find_compiler() is None, reason="no C compiler")
def test_c_is_compiled_and_compared_over_the_test_set(swept, tmp_path, capsys, monkeypatch):
    store, _ = swept
    by_bits = {t.act_bits: t.trial_id for t in plan(loads(SWEEP.encode(), "tiny.yaml").resolve("digits")).trials}
    out = tmp_path / "out"
    code, printed, err = told(capsys, store.root, "--trial", by_bits[8], "--out", out, "--format", "c")
    assert (code, err) == (0, "")
    compiler = find_compiler()[0]
    line = "0 of 3,600 logits differ from those of reader.py (360 test rows of digits, compiled by "
    assert f"{by_bits[8]}: {line}{compiler})" in " ".join(printed.split())
    names = {f"{by_bits[8]}{end}" for end in (".c", ".h", ".c.json")}
    assert {path.name for path in out.iterdir()} == names
    card = json.loads((out / f"{by_bits[8]}.c.json").read_text())
    assert (card["format"], card["file"]) == ("c", f"{by_bits[8]}.c")
    assert card["file_bytes"] == (out / card["file"]).stat().st_size
    code, printed, err = told(capsys, store.root, "--trial", by_bits[None], "--out", out, "--format", "c")
    assert (code, err) == (0, "")
    assert ": 0 of 360 classes differ from those of reader.py, logits by up to" in " ".join(printed.split())

    (out / f"{by_bits[8]}.h").write_text("// mine")
    code, printed, err = told(capsys, store.root, "--trial", by_bits[8], "--out", out, "--format", "c")
    assert (code, printed) == (2, "")
    assert "holds something else, and nothing is overwritten" in err


@pytest.mark.parametrize(
    ("found", "code", "line"),
    [
        (Comparison(10, 3, 0.1, 1, 1), 4, "must give the logits of reader.py, got 3 others of 100 (10 rows"),
        (Comparison(10, 0, 0.0, 1, 1), 4, "must find the classes of reader.py, got 1 others of 10 (10 rows"),
        (Comparison(10, 0, 0.0, 1, 0), 0, "0 of 100 logits differ from those of reader.py (10 rows"),
        (CompileError("gcc: no"), 4, "must compile and run, got gcc: no"),
        (None, 0, "not compiled: there is no C compiler here"),
    ],
)
def test_what_a_check_of_c_finds_is_told(swept, tmp_path, capsys, monkeypatch, found, code, line):
    def compare(*_):
        if isinstance(found, Exception):
            raise found
        return found

    trials = plan(loads(SWEEP.encode(), "tiny.yaml").resolve("digits")).trials
    trial_id = next(trial.trial_id for trial in trials if trial.act_bits == 8)
    monkeypatch.setattr(c_format, "find_compiler", lambda: None if found is None else ["gcc"])
    monkeypatch.setattr(c_format, "find_rows", lambda *_: (np.zeros((10, 64), np.uint8), "10 rows"))
    monkeypatch.setattr(c_format, "compare", compare)
    ended, printed, err = told(capsys, swept[0].root, "--trial", trial_id, "--out", tmp_path, "--format", "c")
    assert ended == code
    assert line in " ".join((printed + err).split())


def test_what_is_measured_is_in_the_card(swept, tmp_path, capsys, monkeypatch):
    counts = iter([1000.0, 2000.0, 1500.0, 1500.0])

    def measure(target, program, rows):
        flash = {"class": Flash(300, 400), "logits": Flash(310, 900)}
        return Measured(target.name, flash, 40, 60, np.array([next(counts)]), 0)

    trials = plan(loads(SWEEP.encode(), "tiny.yaml").resolve("digits")).trials
    trial_id = next(trial.trial_id for trial in trials if trial.act_bits == 8)
    monkeypatch.setattr(c_format, "find_compiler", lambda: ["gcc"])
    monkeypatch.setattr(c_format, "compare", lambda *_: Comparison(10, 0, 0.0, 0, 0))
    monkeypatch.setattr(c_format, "missing_tools", lambda target: [])
    monkeypatch.setattr(c_format, "measure", measure)
    card = tmp_path / f"{trial_id}.c.json"

    def export_again(*options):
        code, printed, err = told(
            capsys, swept[0].root, "--trial", trial_id, "--out", tmp_path, "--format", "c", *options
        )
        assert (code, err) == (0, "")
        return printed, json.loads(card.read_text()).get("measured")

    assert export_again()[1] is None
    printed, found = export_again("--measure")
    assert "\n  RAM, static              40 bytes\n  stack                    60 bytes\n" in printed
    assert {name: one["instructions"]["mean"] for name, one in found.items()} == {"cortex-m3": 1000}
    assert found["cortex-m3"]["flash_class"] == {"model_bytes": 300, "kernel_bytes": 400}
    found = export_again("--measure", "--target", "rv32")[1]
    assert {name: one["instructions"]["mean"] for name, one in found.items()} == {"cortex-m3": 1000, "rv32": 2000}
    found = export_again("--measure")[1]
    assert found["cortex-m3"]["instructions"]["mean"] == 1500
    modified = card.stat().st_mtime_ns
    assert export_again("--measure")[1] == found
    assert export_again()[1] == found, "an export without a measurement leaves the figures"
    assert card.stat().st_mtime_ns == modified

    card.write_text(card.read_text().replace('"seed": ', '"seed": 1'))
    code, printed, err = told(capsys, swept[0].root, "--trial", trial_id, "--out", tmp_path, "--format", "c")
    assert (code, printed) == (2, "")
    assert "holds something else, and nothing is overwritten" in err


def test_options_of_c_go_with_no_other_format(swept, tmp_path, capsys):
    line = refused(capsys, tmp_path / "out", swept[0].root, "--front", "--measure")
    assert line.startswith("--measure does not go with --format packed")


def test_no_two_formats_share_a_name_or_a_file():
    assert len(set(FORMAT_NAMES)) == len(FORMATS)
    ends = [end for form in FORMATS for end in (form.suffix, form.card_suffix)]
    assert len(set(ends)) == len(ends)
    assert FORMAT_NAMES[0] == "packed"


@pytest.mark.parametrize("argv", [["--help"], ["export", "--help"]], ids=lambda argv: argv[0])
def test_help_loads_nothing_heavy(argv):
    code = f"import sys; from qdtune.__main__ import main\ntry: main({argv})\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'onnx', 'ray', 'optuna'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("[]", "")


def test_a_missing_onnx_is_told_and_how_to_get_it(swept, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    line = refused(capsys, tmp_path / "out", swept[0].root, "--front", "--format", "onnx")
    assert line == "--format onnx needs the package onnx: pip install onnx"


def test_command_is_one_of_qdtunes(capsys):
    assert __main__.main(["export"]) == 2
    assert capsys.readouterr().err.startswith("error: no run folder given")


# --- ONNX


def random_model(bits, act_bits, activation, norm=True, depth=2, quantised=(), widths=(9, 7, 5)):
    """A packed mlp of random codes, 9-7-5 unless told, read; `quantised`: scale, levels, granularity and overhead."""
    import torch
    from torch import nn

    from qdtune.model import factored, packed, quantize

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(bits)
        i, h, o = widths
        model = nn.Sequential(
            nn.Linear(i, h, bias=not norm), *([nn.BatchNorm1d(h)] if norm else []), nn.ReLU(), nn.Linear(h, o)
        )
        factored.decompose(model, depth, activation)
        quantize.quantize(model, bits, act_bits, *quantised)
        quantize.calibrate(model, torch.rand(64, i) * 2 - 1)
        if norm:
            model[1].running_mean.uniform_(-1, 1)
            model[1].running_var.uniform_(0.5, 2)
        return reader.load(one_seed(packed.pack_replicas({0: model}, "t", i, o), 0))


@pytest.mark.parametrize("bits", [*range(1, 17), 32])
def test_onnx_holds_the_codes_and_gives_the_readers_logits(bits):
    act_bits = (None, 1, 4, 8, 16, 2)[bits % 6]
    activation = list(reader.ACTIVATIONS)[bits % 6]
    levels = LEVELS.names[bits % 3]
    quantised = (SCALE.names[bits // 3 % 3], levels, GRANULARITY.names[bits // 2 % 2], OVERHEAD.names[bits // 3 % 4])
    model = random_model(bits, act_bits, activation, bits % 2 == 0, 1 + bits % 4, quantised)
    blob = onnx_format.to_onnx(model, "t")
    x = np.random.default_rng(bits).integers(0, 256, (500, 9), np.uint8)
    for rows in (x, x[:1]):  # the batch is free
        answers, expected = session(blob).run(None, {"pixels": rows})[0], model.logits(rows)
        close = np.isclose(answers, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()).all(1)
        assert close.mean() >= (1 if act_bits is None else 0.99)  # a last bit may round to another code
    if bits < 32:
        kinds = {t.name: t.data_type for t in onnx.load_from_string(blob).graph.initializer}
        wanted = (
            onnx.TensorProto.INT4 if bits <= 4 else onnx.TensorProto.INT8 if bits <= 8 else onnx.TensorProto.INT16
        )
        assert kinds["0.factors.0.weight"] == wanted


@pytest.mark.parametrize("overhead", OVERHEAD.names)
def test_onnx_of_a_network_without_biases_gives_the_readers_logits(overhead):
    from qdtune.model import networks, packed, quantize

    network = networks.build_mlp(9, (7,), 5, batch_norm=True, bias="none", seed=0)
    quantize.quantize(network, 2, None, overhead=overhead)
    model = reader.load(one_seed(packed.pack_replicas({0: network}, "t", 9, 5), 0))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 9), np.uint8)
    answers = session(onnx_format.to_onnx(model, "t")).run(None, {"pixels": pixels})[0]
    assert np.allclose(answers, model.logits(pixels), rtol=1e-5)
    assert {op[key] for op in model.program["ops"] for key in ("bias", "shift") if key in op} == {None}


@pytest.mark.parametrize(("bits", "container"), [(1, 4), (4, 4), (5, 8), (8, 8), (9, 16), (16, 16), (32, 32)])
def test_onnx_is_as_long_as_its_codes_and_little_more(bits, container):
    model = random_model(bits, 8, "leaky_relu", widths=(199, 23, 7))
    linear = [op for op in model.program["ops"] if op["op"] == "linear"]
    weights = sum(-(-math.prod(op["shape"]) * container // 8) for op in linear)
    others = sum(tensor.nbytes for name, tensor in model.stored.items() if not name.endswith("weight"))
    over = len(onnx_format.to_onnx(model, "t")) - weights - others
    assert 0 < over < 2560  # names and nodes; as lists of numbers even the codes of 4 bits take more


@pytest.mark.parametrize("levels", ["symmetric", "unsigned"])
@pytest.mark.parametrize("act_bits", [2, 3, 4, 8, 9, 16])
def test_onnx_rounds_halves_to_even_and_has_no_lowest_code(act_bits, levels):
    q, step = 2 ** (act_bits - 1) - 1, np.float32(1)
    weight = np.eye(3, dtype=np.float32)
    op = {"op": "linear", "shape": [3, 3], "bits": 32, "weight": "w", "step": None, "bias": None}
    op |= {"act_bits": act_bits, "input_step": "s", "input_levels": levels}
    ops = [{"op": "affine", "scale": "k", "shift": "z"}, op]
    stored = {
        "w": weight,
        "s": np.array(step),
        "k": np.full(3, 127.5, np.float32),
        "z": np.array([0.5, 1, -0.5], np.float32),
    }
    program = {"model": "mlp", "inputs": 3, "outputs": 3, "ops": ops}
    model = reader.Model(program, stored, stored)
    x = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)  # pixels become -127.5 to 127.5, in steps of 1
    expected = model.logits(x)
    assert np.array_equal(session(onnx_format.to_onnx(model, "t")).run(None, {"pixels": x})[0], expected)
    assert expected.min() >= (-q * step if levels == "symmetric" else 0)
    assert expected[127:129, 1].tolist() == [0, min(2, reader.GRIDS[act_bits, levels][1])]  # of 0.5 and 1.5


def test_a_forward_pass_in_own_code_is_had_as_onnx_from_python_alone():
    model = reader.Model({"model": "mine:net", "inputs": 1, "outputs": 1, "ops": []}, {}, {})
    with pytest.raises(ValueError, match=r"the forward pass of 'mine:net' is in its own code.*: export it as packed"):
        onnx_format.to_onnx(model, "t")
