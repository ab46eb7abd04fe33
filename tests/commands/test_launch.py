"""The command line as users run it: what is wrong ends as `error:` lines and exit code 2, and nothing is made."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qdtune import __main__, __version__, machine
from qdtune.commands import dry_run, launch
from qdtune.report.follow import drawing
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load
from qdtune.sweep import summary
from qdtune.sweep.cluster import RayAt
from qdtune.sweep.pace import Start
from qdtune.sweep.prepared import Prepared, Unread
from qdtune.terminal import console
from tests.sweep.test_resumed import keep

GOOD = """\
version: 1
name: a
parameters: {depth: {values: [1, 2]}, weight_bits: {values: [1, 2, 4]}, activation: {values: [identity, relu]}}
exclude: [{depth: 1, activation: relu}]
data: {dataset: digits, val_size: 100}
"""
DRIVER = """
import sys
from qdtune.__main__ import main
code = main(sys.argv[1:])
heavy = {"torch", "ray", "optuna", "torchvision", "sklearn"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else code)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(GOOD)
    return tmp_path


def command(folder: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DRIVER, *argv],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        encoding="utf-8",
    )


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = __main__.main(["launch", *argv])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("text", ["{dataset: mnsit}", "{dataset: digits, val_size: 010}", "[", "{<<: 1}", "\0"])
def test_bad_file_ends_with_2_and_makes_nothing(folder: Path, text: str) -> None:
    (folder / "bad.yaml").write_text(f"version: 1\nname: a\nparameters: {{}}\ndata: {text}\n")
    done = command(folder, "launch", "bad.yaml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert all(line.startswith("error: bad.yaml") for line in done.stderr.splitlines())
    assert sorted(os.listdir(folder)) == ["a.yaml", "bad.yaml"]


def test_bad_file_is_told_by_line(folder: Path) -> None:
    (folder / "a.yaml").write_text(GOOD.replace("[1, 2, 4]", "[0, 4.5]").replace("data:", "dta:"))
    right = "(a whole number, 1 to 16 or 32)"
    assert command(folder, "launch", "a.yaml").stderr.splitlines() == [
        f"error: a.yaml:3: parameters.weight_bits.values[0]: 0 is not allowed {right}",
        f"error: a.yaml:3: parameters.weight_bits.values[1]: 4.5 is not a whole number {right}",
        "error: a.yaml:5: unknown key 'dta'; did you mean 'data'? (version, name, description, method, run_cap,"
        " duplicates, parameters, exclude, seeds, data, model, train, early_terminate, replicate, objectives,"
        " constraints, resources, run, fallback)",
    ]


USAGE = f" (usage: {launch.USAGE})"
NAMES = "dry-run, all, time, runs-dir, data-dir, address, no-dashboard, fresh, allow-plugin, set"
OPTIONS = f"(-h, --help, --{NAMES.replace(', ', ', --')})"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], f"no sweep file given{USAGE}"),
        (["a.yaml", "b.yaml"], f"one argument too many: 'b.yaml'{USAGE}"),
        (["a.yaml", "--dry-rum"], f"unknown option '--dry-rum'; did you mean '--dry-run'? {OPTIONS}"),
        (["a.yaml", "--dry"], f"unknown option '--dry'; did you mean '--dry-run'? {OPTIONS}"),
        (["a.yaml", "--frehs=1"], f"unknown option '--frehs'; did you mean '--fresh'? {OPTIONS}"),
        (["a.yaml", "--set"], f"argument --set: expected one argument{USAGE}"),
        (["a.yaml", "--set", "x"], "--set: 'x' is not KEY=VALUE (such as train.batch_size=32)"),
        (["a.yaml", "--set", "seeds=[1]", "--set", "seeds=[1]"], "--set: seeds: is given twice"),
        (
            ["a.yaml", "--set", "parameters.depth={value: 0}", "--set", "exclude=[]"],
            "--set: parameters.depth: 0 is not allowed (a whole number, 1 to 64)",
        ),
        (["aa.yaml"], "no such file: aa.yaml (did you mean a.yaml?)"),
        (["b.yaml"], "no such file: b.yaml"),
        (["."], ". is a folder (give a .yaml file)"),
        (["-"], "no such file: -"),
        (
            ["a.yaml", "--dry-run", "--set", "resources.cpu=9000"],
            f"a.yaml: resources.cpu: 9000 CPUs per trial asked, largest node has {machine.count_cpus()}",
        ),
        (
            ["a.yaml", "--set", "constraints=[params < 1]"],
            "a.yaml: nothing is left to run: 3 of 12 points excluded, 9 left out by params < 1",
        ),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    line: str,
) -> None:
    monkeypatch.chdir(folder)
    assert run(capsys, *argv) == (2, "", f"error: {line}\n")
    assert os.listdir(folder) == ["a.yaml"]


def test_dry_run_says_what_would_run_and_loads_nothing_heavy(folder: Path) -> None:
    done = command(folder, "launch", "a.yaml", "--dry-run", "--set", "resources.cpu=1")
    assert (done.returncode, done.stderr) == (0, "")
    facts = [line.split("  ")[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert facts[:7] == ["sweep", "configurations", "seeds", "float warm-ups", "data", "one trial", "at once"]
    assert "9 (12 points, 3 excluded, 0 infeasible)" in done.stdout
    assert "3 by depth: 1, activation: relu" in done.stdout
    assert "digits: 1,337 samples to train on, 100 to judge by; on disk" in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert os.listdir(folder) == ["a.yaml"]


def test_dry_run_of_a_finished_sweep_has_nothing_left_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    golden = Path(__file__).parents[1] / "golden"
    argv = [str(golden / "eager.yaml"), "--dry-run", "--runs-dir", str(golden / "runs")]
    code, out, _ = run(capsys, *argv)
    assert code == 0
    assert ", nothing left to run (this machine:" in " ".join(out.split())
    assert "wave" not in out.partition("at once")[2]


def test_dry_run_of_a_begun_sweep_says_what_is_done_and_what_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = Path(__file__).parents[1] / "golden"
    run_folder = Path(shutil.copytree(golden / "runs" / "eager", tmp_path / "eager"))
    planned = plan(load(golden / "eager.yaml").resolve("digits")).trials
    one, other = planned[:2]
    for path in (run_folder / "trials").glob("*.parquet"):
        if path.stem != one.trial_id:
            path.unlink()
    keep(run_folder, other.trial_id, 3)
    keep(run_folder, one.trial_id, 2)  # of a trial that has a result
    code, out, _ = run(capsys, str(golden / "eager.yaml"), "--dry-run", "--runs-dir", str(tmp_path))
    said, epochs = " ".join(out.split()), load(golden / "eager.yaml").train.qat.epochs
    assert code == 0
    assert " done 1 has a result in " in said
    assert f" paused 1 trial goes on from its checkpoint, at epoch 3 of {epochs} " in said
    assert re.search(r" time about [0-9.]+ to [0-9.]+ seconds on this machine, \d+ at a time \(by the results ", said)
    code, out, _ = run_verify(capsys, str(run_folder))
    assert "2 checkpoints of trials that may go on: all whole" in " ".join(out.split())


def run_verify(capsys: pytest.CaptureFixture[str], folder: str) -> tuple[int, str, str]:
    code = __main__.main(["verify", folder])
    return code, *capsys.readouterr()


def test_dry_run_measures_the_time_where_it_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["train.qat.epochs=2", "train.warmup.epochs=1", "run.compile=never", "seeds=[0]", "resources.cpu=1"]
    settings = [word for one in short for word in ("--set", one)]
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run", *settings)
    assert "time not known before the first result; --time measures a few steps" in " ".join(out.split())
    code, out, err = run(capsys, str(folder / "a.yaml"), "--dry-run", "--time", *settings)
    said = " ".join(out.split())
    assert (code, err.count("measuring d")) == (0, 4)
    assert re.search(r" time about [0-9.]+ seconds on this machine, \d+ at a time \(by 4 configurations meas", said)
    assert os.listdir(folder) == ["a.yaml"]


def test_dry_run_cannot_measure_on_data_that_are_not_here(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--dry-run", "--time", "--data-dir", str(folder / "none"), "--set", "data.dataset=[mnist, kmnist]"]
    code, _, err = run(capsys, str(folder / "a.yaml"), *argv)
    assert (code, err.count("\n")) == (2, 1)
    assert "--time trains on mnist, which is not in " in err


def test_dry_run_measures_on_the_data_set_that_is_here(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the configurations, seeds and epochs that it has there."""
    path = folder / "a.yaml"
    path.write_text(path.read_text() + "fallback: {parameters: {depth: {value: 1}}, train: {qat: {epochs: 2}}}\n")
    short = ["train.warmup.epochs=1", "run.compile=never", "seeds=[0]", "resources.cpu=1", "exclude=[]"]
    settings = [word for one in ("data.dataset=[mnist, digits]", *short) for word in ("--set", one)]
    code, out, err = run(capsys, str(path), "--dry-run", "--time", "--data-dir", str(folder / "none"), *settings)
    said = " ".join(out.split())
    assert (code, err.count("measuring d1")) == (0, err.count("measuring d"))
    assert 0 < err.count("measuring d") < 5
    assert re.search(
        r"time not known on mnist, which is not in .* \(a launch downloads it\) time on digits about", said
    )
    assert re.search(r" time on digits about [0-9.]+ seconds on this machine, \d+ at a time \(by \d config", said)


@pytest.mark.parametrize("flag", ["--all", "--time"])
def test_options_of_a_dry_run_need_it(flag: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, str(folder / "a.yaml"), flag)
    assert (code, out) == (2, "")
    assert f"{flag} needs --dry-run" in err


@pytest.mark.parametrize(("widths", "told"), [("[8]", "all 2"), ("[16]", "1 of 2"), ("[64]", "")])
def test_dry_run_says_which_depths_have_no_partner_of_equal_size(
    folder: Path, capsys: pytest.CaptureFixture[str], widths: str, told: str
) -> None:
    axes = f"{{depth: {{values: [1, 3]}}, weight_bits: {{values: [1, 8]}}, hidden: {{values: {widths}}}}}"
    more = ["--set", f"parameters={axes}", "--set", "exclude=[]", "--set", "model.batch_norm=false"]
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run", *more)
    said = " ".join(out.split())
    assert (code, "comparisons of depths" in said) == (0, bool(told))
    assert f"{told} comparisons of depths find no network of depth 1 and equal size (within 5 %)" in said or not told
    assert ("see parameters.hidden" in said) is bool(told)


def test_dry_run_of_a_cnn_asks_for_other_blocks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axes = "{depth: {values: [1, 3]}, weight_bits: {value: 1}, blocks: {values: [[conv 8, mean]]}}"
    more = ["--set", f"parameters={axes}", "--set", "exclude=[]", "--set", "model={name: cnn, hidden: [8]}"]
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run", *more, "--set", "data.dataset=digits")
    said = " ".join(out.split())
    assert (code, "give depth 1 more widths, see parameters.blocks" in said) == (0, True)


@pytest.mark.parametrize(
    ("given", "is_named"), [([], False), (["resources.cpu=1"], False), (["resources.gpu=0.125"], True)]
)
def test_a_share_of_a_gpu_that_the_file_does_not_name_is_not_told_of(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    is_named: bool,
) -> None:
    monkeypatch.setattr("qdtune.sweep.prepare.count_gpus", lambda: 0)
    settings = [word for one in (*given, "train.qat.min_steps=100") for word in ("--set", one)]
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run", *settings)
    said = " ".join(out.split())
    assert (code, "no GPU here" in said, "resources.gpu" in said) == (0, True, is_named)


def test_dry_run_says_what_would_be_downloaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [str(folder / "a.yaml"), "--dry-run", "--data-dir", "nowhere", "--set", "data.dataset=[mnist, digits]"]
    code, out, _ = run(capsys, *argv)
    assert code == 0
    said = " ".join(out.split())
    assert "not in nowhere, so it would be downloaded, and if that fails digits taken instead" in said


def test_dry_run_tells_what_would_be_trained_on_the_data_set_that_may_stand_in(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "a.yaml"
    path.write_text(path.read_text() + "fallback: {parameters: {depth: {value: 1}}}\n")
    argv = [str(path), "--dry-run", "--data-dir", str(folder), "--set", "data.dataset=[mnist, digits]"]
    code, out, _ = run(capsys, *argv)
    assert (code, "fallback        on digits: 3 configurations of its own" in out) == (0, True)


@pytest.mark.parametrize(("most", "listed", "more"), [(4, 12, 0), (5, 6, 9)])
def test_dry_run_lists_up_to_twelve_configurations_with_their_bytes_and_of_more_the_ends(
    folder: Path, capsys: pytest.CaptureFixture[str], most: int, listed: int, more: int
) -> None:
    bits = ", ".join(map(str, range(1, most + 1)))
    many = (
        f"parameters={{depth: {{values: [1, 2, 3]}}, weight_bits: {{values: [{bits}]}}, activation: {{value: relu}}}}"
    )
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run", "--set", many, "--set", "exclude=[]")
    assert code == 0
    lines = re.findall(r"^  ([\d,]+) bytes +(d\d w\d)$", out, re.MULTILINE)  # all have relu
    sizes = [int(size.replace(",", "")) for size, _ in lines]
    assert (len(set(lines)), sizes) == (listed, sorted(sizes))
    assert (sizes[0], "sizes  " in out) == (366, bool(more))
    assert (f"{more} more" in out) == bool(more)
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run", "--all", "--set", many, "--set", "exclude=[]")
    assert len(re.findall(r"^  ([\d,]+) bytes +(d\d w\d)$", out, re.MULTILINE)) == 3 * most


def test_dry_run_names_what_two_configurations_of_one_label_differ_in(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    axes = "parameters={scale: {values: [lsq, minmax]}, weight_bits: {value: 2}, depth: {value: 1}}"
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run", "--set", axes, "--set", "exclude=[]")
    assert code == 0
    assert re.findall(r"^  [\d,]+ bytes +(.+)$", out, re.MULTILINE) == ["scale lsq", "scale minmax"]


def test_launch_and_dry_run_warn_of_what_would_be_trained_twice(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    warned = "3 configurations would repeat another one, for some of their axes"
    advice = "(add to exclude: {depth: 1, activation: relu})"
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run", "--set", "exclude=[]")
    said = " ".join(out.split())
    assert (code, warned in said, advice in said) == (0, True, True)
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run")
    assert (code, "warning" in out) == (0, False)
    for exclude, lines in (("[]", 1), ("[{depth: 1, activation: relu}]", 0)):
        found = load(folder / "a.yaml", [f"exclude={exclude}"]).resolve("digits")
        queue = SimpleNamespace(searching=False, total=12, left=12)
        data = SimpleNamespace(name="digits", train_x=[], val_x=[])
        summary.announce(found, data, plan(found), queue, Start(), [], console())  # type: ignore[arg-type]
        out = capsys.readouterr().out
        assert [line.startswith(f"warning: {warned}") for line in out.splitlines() if "warning" in line] == [
            True
        ] * lines


def test_dry_run_says_what_a_search_may_do_and_what_is_stopped(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["method=tpe", "run_cap=5", "early_terminate={type: pareto, margin: 0.02}", "replicate={front: 7}"]
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run", *(x for s in search for x in ("--set", s)))
    assert code == 0
    said = " ".join(out.split())
    assert "configurations up to 5, chosen by tpe while the sweep runs" in said
    assert "a sample 5 at random (" in said
    assert "3 per configuration, trained together in the end 7 for the front and what is within 0.005 of it" in said
    assert "stopped early by pareto: margin 0.02, signal best_so_far, min_epochs 2, patience 1" in said
    assert "fewer than run_cap" not in said
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run")
    assert not any(word in out for word in ("stopped early", "in the end", "a sample"))


@pytest.mark.parametrize(
    ("replicate", "told"),
    [
        ("until: decided", "at least 72 and at most 288 trainings in all"),
        ("until: decided, budget: 50", "at least 72 and at most 122 trainings in all"),
        (
            "until: decided, budget: {seconds: 90}",
            "at least 72 and at most 288 trainings in all, of which 90 s for further seeds",
        ),
    ],
)
def test_dry_run_says_how_many_trainings_decide(
    folder: Path, capsys: pytest.CaptureFixture[str], replicate: str, told: str
) -> None:
    more = ["exclude=[]", f"replicate={{{replicate}}}", "parameters.depth={values: [1, 2, 3]}"]
    more += ["parameters.weight_bits={values: [1, 2, 4, 8]}", "parameters.activation={values: [identity, relu]}"]
    code, out, err = run(capsys, str(folder / "a.yaml"), "--dry-run", *(x for s in more for x in ("--set", s)))
    assert code == 0, err
    said = " ".join(out.split())
    looked = "in the end more where they decide (depth, activation), looked at with 3, 6, 9 and 12 seeds"
    assert f"{looked}: {told} " in said


def test_dry_run_prints_user_text_as_it_is(folder: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    text = 'description="[red]\\u00e9[/] \\e[31m"'
    done = command(folder, "launch", "a.yaml", "--dry-run", "--set", text, **ascii_only)
    assert done.returncode == 0
    assert "a: [red]é[/]  [31m" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("most", [8, 12])
def test_excluded_points_of_rules_that_are_not_named_are_summed_up(
    most: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dry_run.MAX_RULES == 12
    monkeypatch.setattr(dry_run, "MAX_RULES", most)
    sweep = Path(__file__).parents[2] / "sweeps" / "depth.yaml"
    code, out, _ = run(capsys, str(sweep), "--dry-run")
    assert code == 0
    excluded = [int(line.split()[1]) for line in out.splitlines() if line.startswith("  excluded")]
    assert f"{sum(excluded)} excluded" in out
    assert ("by 5 more rules" in out) == (most == 8)


@pytest.mark.slow
def test_largest_grid_is_described_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    big = (
        f"parameters={{depth: {{values: {list(range(1, 51))}}}, weight_bits: {{values: {list(range(1, 11))}}},"
        f" qat_lr: {{values: {list(range(1, 201))}}}}}"
    )
    code, out, _ = run(capsys, str(folder / "a.yaml"), "--dry-run", "--set", big, "--set", "exclude=[]")
    assert code == 0
    assert "100,000 (100,000 points, 0 excluded, 0 infeasible)" in out


@pytest.mark.parametrize("flags", [[], ["-O"]])
def test_module_runs_by_either_name(folder: Path, flags: list[str]) -> None:
    for module in (["qdtune", "launch"], ["qdtune.launch"]):
        argv = [sys.executable, *flags, "-m", *module, "a.yaml", "--set", "seeds=[-1]"]
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == "error: --set: seeds[0]: -1 is not allowed (a whole number, 0 to 4,294,967,295)\n"


def test_reader_that_goes_away_is_no_mistake(folder: Path) -> None:
    argv = [sys.executable, "-m", "qdtune", "launch", "a.yaml", "--dry-run"]
    read_end, write_end = os.pipe()
    os.close(read_end)
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}  # so that nothing is written before the end
    done = subprocess.run(argv, cwd=folder, env=buffered, stdout=write_end, stderr=subprocess.PIPE, text=True)
    os.close(write_end)
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_output_is_no_mistake(folder: Path) -> None:
    shell = f"{sys.executable} -m qdtune launch a.yaml --dry-run >&-"
    done = subprocess.run(["sh", "-c", shell], cwd=folder, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_argument_that_is_not_text_is_told(folder: Path) -> None:
    argv = [sys.executable, "-m", "qdtune", "launch", "a.yaml", "--set", b"name=\xe9"]
    done = subprocess.run(argv, cwd=folder, capture_output=True)
    assert done.stderr == b"error: --set: name: not UTF-8 (byte 0xe9 at offset 0)\n"


def test_real_run_gets_the_spec_as_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def run(prepared: Prepared, **options: object) -> int:
        seen.update(options, prepared=prepared)
        return 3

    monkeypatch.setattr("qdtune.sweep.session.run_sweep", run)
    monkeypatch.delenv("QDTUNE_DATA", raising=False)
    path = str(folder / "a.yaml")
    assert launch.main([path, "--fresh", "--no-dashboard", "--set", "data.dataset=[digits, synthetic]"]) == 3
    prepared = seen.pop("prepared")
    assert prepared.asked == load(path, ["data.dataset=[digits, synthetic]"])
    assert prepared.spec == prepared.asked.resolve("digits")
    assert (prepared.options.runs_dir, prepared.data_dir, prepared.options.is_fresh) == ("runs", Path("data"), True)
    assert prepared.data == Unread(("digits", "synthetic"), on_disk="digits")
    assert seen == {"ray_at": RayAt(None, dashboard=False), "drawing": drawing}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"])
def test_a_signal_while_a_launch_prepares_is_one_line(folder: Path, name: str) -> None:
    kills = "import os, signal; from qdtune.sweep import preflight; from qdtune import __main__; "
    kills += f"preflight.check_surroundings = lambda *a: os.kill(os.getpid(), signal.{name}); "
    done = subprocess.run(
        [sys.executable, "-c", f"{kills} __main__.main(['launch', 'a.yaml'])"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.stderr == f"stopped by {name}; the same command goes on from here\n"
    assert done.returncode == 128 + getattr(signal, name)


def test_a_tilde_that_the_shell_left_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Prepared] = []
    monkeypatch.setattr("qdtune.sweep.session.run_sweep", lambda prepared, **options: seen.append(prepared) or 3)
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("QDTUNE_DATA", "~/data")
    monkeypatch.chdir(folder)
    assert launch.main(["a.yaml", "--runs-dir=~/results"]) == 3
    assert seen[0].options.runs_dir == str(folder / "home" / "results")
    assert seen[0].data_dir == folder / "home" / "data"
    assert launch.main(["a.yaml", "--data-dir=~"]) == 3
    assert seen[1].data_dir == folder / "home"


@pytest.mark.parametrize(
    ("argv", "code", "out", "err"),
    [
        ([], 2, "", "error: no command given ("),
        (["lanch"], 2, "", "error: unknown command 'lanch'; did you mean 'launch'? ("),
        (["--version"], 0, f"{__version__}\n", ""),
        (["--help"], 0, "usage: qdtune COMMAND", ""),
    ],
)
def test_command_is_known_or_told(
    capsys: pytest.CaptureFixture[str], argv: list[str], code: int, out: str, err: str
) -> None:
    assert __main__.main(argv) == code
    said = capsys.readouterr()
    assert said.out.startswith(out)
    assert said.err.startswith(err)
    assert said.err.count("\n") == (code == 2)


def test_gpus_are_counted_by_their_devices(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert machine.count_gpus(tmp_path) == 2


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        launch.main(["--help"])
    said = capsys.readouterr().out
    assert all(
        option in said
        for option in ("--dry-run", "--runs-dir", "--data-dir", "--address", "--fresh", "--allow-plugin", "--set")
    )


def test_end_of_a_sweep_says_what_is_best_and_a_failure_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a finished run, on one that is not, and on one that cannot be read."""
    monkeypatch.setattr("qdtune.sweep.session.run_sweep", lambda *args, **options: 0)
    golden = Path(__file__).parents[1] / "golden"
    run = tmp_path / "eager"
    shutil.copytree(golden / "runs" / "eager", run)
    argv = [str(golden / "eager.yaml"), "--runs-dir", str(tmp_path), "--no-dashboard"]
    assert launch.main(argv) == 0
    best, *questions, more = capsys.readouterr().out.splitlines()
    assert best.startswith("The best configuration is depth 1, 8 bits, levels symmetric (1,120")
    assert [line.partition(",")[0] for line in questions] == ["Depth", "Activation"]
    assert more == f"more: qdtune report {run}"
    next((run / "trials").glob("*.parquet")).unlink()
    assert launch.main(argv) == 0
    assert capsys.readouterr().out == ""

    def fail(*args: object) -> None:
        raise OSError("the disk\nis gone")

    monkeypatch.setattr("qdtune.analysis.run.load_run", fail)
    assert launch.main(argv) == 0
    assert capsys.readouterr().out == "no conclusions are printed: the disk\\nis gone\n"
