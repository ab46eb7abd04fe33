"""What the golden tests look at: everything by way of commands and files, so that no move of a file changes them."""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
IDS, NUMBERS, WORDS, RUN = HERE / "ids.txt", HERE / "numbers.json", HERE / "words", HERE / "runs" / "eager"
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
EARLIER = [ROOT / "tests" / "data" / "recorded.yaml"]  # sweeps/grid.yaml as it was first
CLOCK = {"started_at", "finished_at", "seconds", "device"}  # columns that another run fills otherwise


def ids() -> list[str]:
    """`SWEEP DATASET TRIAL_ID WARMUP_ID` of every configuration of every sweep file, on each of its data sets."""
    lines = []
    for path in (*SWEEPS, *EARLIER):
        spec = load(path)
        for dataset in spec.data.names:
            found = plan(spec.resolve(dataset)).trials
            lines += [f"{path.stem} {dataset} {one.trial_id} {one.warmup_id}" for one in found]
    return lines


# Commands as `python -m qdtune` runs them, one after the other: most of a command's time is its imports. Of figures
# beside the page their names are told; to draw them takes as long as all the rest, and tests/report look at them.
COMMANDS = """
import json, os, runpy, sys, vl_convert
vl_convert.vegalite_to_svg, vl_convert.svg_to_png = lambda *given, **named: "<svg/>", lambda *given, **named: b""
for place, argv in json.loads(sys.argv[1]):
    sys.argv[1:], code = argv, 0
    os.chdir(place)
    try:
        runpy.run_module("qdtune", run_name="__main__")
    except SystemExit as end:
        code = end.code
    sys.stderr.flush()
    print(f"exit code {code}\\n\\0", end="", flush=True)
"""


def qdtune(*commands: tuple[Path, list[object]]) -> list[str]:
    """What commands print, stdout and stderr, with their exit codes; each has its folder, all run in one process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "QDTUNE_DATA": "/nowhere", "COLUMNS": "80"}
    environment.pop("RAY_ADDRESS", None)
    lists = json.dumps([[str(place), list(map(str, argv))] for place, argv in commands])
    command = [sys.executable, "-c", COMMANDS, lists]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    *texts, rest = done.stdout.split("\0")
    assert (done.returncode, rest, len(texts)) == (0, "", len(commands)), done.stdout
    return texts


def sweep(name: str, runs: Path) -> Path:
    """The run folder of a golden sweep, trained now."""
    (told,) = qdtune((ROOT, ["launch", HERE / f"{name}.yaml", "--runs-dir", runs, "--no-dashboard"]))
    assert told.endswith("exit code 0\n"), told
    return runs / name


def numbers(run: Path) -> dict[str, list[list[object]]]:
    """Every cell of the tables of a run but those of the clock, floats to the last bit, by table; heads first."""
    found = {}
    for kind in ("trials", "history", "pareto"):
        table = pq.read_table(run / kind if kind != "pareto" else run / "pareto.parquet")
        order = [name for name in ("trial_id", "seed", "phase", "epoch") if name in table.column_names]
        kept = [name for name in table.column_names if name not in CLOCK]
        rows = table.sort_by([(name, "ascending") for name in order]).select(kept).to_pylist()
        found[kind] = [kept, *([_cell(row[name]) for name in kept] for row in rows)]
    return found


def _cell(value: object) -> object:
    return value.hex() if isinstance(value, float) else value


def packed(run: Path) -> dict[str, str]:
    """The sha256 of what each trial's weights hold, by trial; safetensors lays its header out in any order."""
    found = {}
    for path in sorted(run.glob("weights/*")):
        blob = path.read_bytes()
        end = 8 + int.from_bytes(blob[:8], "little")
        header = json.dumps(json.loads(blob[8:end]), sort_keys=True).encode()
        found[path.stem] = hashlib.sha256(header + blob[end:]).hexdigest()
    return found


def machine() -> str:
    """What the last bits of a number depend on."""
    import torch  # which ids need not: a toy test asks for them in a process of its own

    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    digest = hashlib.sha256(flags.encode()).hexdigest()[:8]
    return f"torch {torch.__version__}, {model} {digest}"


def record_runs() -> None:
    """Trains the golden run folder anew."""
    shutil.rmtree(RUN, ignore_errors=True)
    sweep("eager", RUN.parent)
    for name in ("warmup", "study.journal", "report.html"):
        path = RUN / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def numbers_here() -> dict[str, object]:
    """What `numbers.json` holds: the numbers of both sweeps on this machine."""
    found: dict[str, object] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as runs:
        for name in ("eager", "compiled"):
            run = sweep(name, Path(runs))
            found[name] = numbers(run) | {"packed": packed(run)}
    return found


def words() -> dict[str, str]:
    """What commands print, by a name for each: dry runs of all sweep files, then what they say of the golden run."""
    with tempfile.TemporaryDirectory() as folder:
        sound, damaged = Path(folder) / "sound", Path(folder) / "damaged"
        for place in (sound, damaged):
            shutil.copytree(RUN, place / "runs" / "eager")
        trials = damaged / "runs" / "eager" / "trials"
        (trials / sorted(os.listdir(trials))[0]).write_bytes(b"spoilt")
        runs = f"{folder}/nowhere/runs"  # a dry run refuses a place that cannot be made
        options = ["--dry-run", "--runs-dir", runs, "--data-dir", "/nowhere"]
        commands: dict[str, tuple[Path, list[object]]] = {
            f"dry-run-{path.stem}": (ROOT, ["launch", path, *options])
            for path in (*SWEEPS, HERE / "eager.yaml", HERE / "compiled.yaml")
        }
        commands |= {
            "dry-run-again": (sound, ["launch", HERE / "eager.yaml", "--dry-run"]),
            "verify": (sound, ["verify", "runs/eager"]),
            "report": (sound, ["report", "runs/eager"]),
            "report-budget": (sound, ["report", "runs/eager", "--budget", "700"]),
            "export": (sound, ["export", "runs/eager", "--front", "--out", "out"]),
            "export-onnx": (sound, ["export", "runs/eager", "--front", "--out", "out", "--format", "onnx"]),
            "help": (sound, ["--help"]),
            "verify-damaged": (damaged, ["verify", "runs/eager"]),
            "report-damaged": (damaged, ["report", "runs/eager"]),
        }
        texts = [text.replace(runs, "/nowhere/runs") for text in qdtune(*commands.values())]
        found = dict(zip(commands, texts, strict=True))
        made = sorted(
            path for path in (sound / "out").iterdir() if "onnx" not in path.name and path.name != "reader.py"
        )
        found["exported"] = "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()} {p.name}\n" for p in made)
    return {name: _here_left_out(text) for name, text in found.items()}


def _here_left_out(told: str) -> str:
    """Without what depends on the machine: its CPUs and GPUs, and how many trials run on them."""
    told = re.sub(r"^(one trial|at once|note) .*\n(  .*\n)*", "", told, flags=re.MULTILINE)
    return re.sub(r"[^\s']*/tests/golden/", "", told)
