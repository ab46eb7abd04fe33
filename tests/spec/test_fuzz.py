"""Sweep files broken in every way a generator can think of: a dry run tells what it would do, or what is wrong.

Never a traceback, never anything but printable lines, never a file, never a grid beyond the limit.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from qdtune.commands import launch
from qdtune.messages import MAX_LINES
from qdtune.spec import plan
from qdtune.spec.disagreements import MAX_POINTS
from qdtune.spec.early_terminate import EarlyTerminate

ROOT = Path(__file__).parents[2]
EVERY_KEY = rb"""# every key that a sweep file knows
version: 1
name: every.key-1
description: "All of them, with \e[1mbold\e[0m and \u00e9"
method: tpe
run_cap: 12
duplicates: replicate
parameters:
  depth:       {min: 1, max: 3, distribution: int_uniform}
  weight_bits: {values: [1, 2, 4, 32]}
  activation:  {values: [identity, relu, gelu]}
  act_bits:    {values: [null, 4]}
  scale:       {values: [minmax, absmean, lsq]}
  factor_init: {value: orthogonal}
  granularity: {value: channel}
  levels:      {value: full}
  decompose:   {value: hidden}
  hidden:      {values: [8, [16, 8]]}
  warmup_lr:   {value: 1e-1}
  qat_lr:      {min: 1e-3, max: 0.1, distribution: log_uniform}
  augment:     {values: [none, shift]}
exclude:
  - {depth: 1, activation: relu}
  - {weight_bits: 32, act_bits: null, scale: lsq}
seeds: [0, 1, 2]
data: {dataset: [digits, synthetic], val_size: 128, task: classification, metric: accuracy, normalize: none}
model: {name: mlp, hidden: [16, 8], batch_norm: true}
train:
  batch_size: 32
  warmup: {epochs: 2, optimizer: adam, lr: 0.001, momentum: 0, schedule: cosine, plain_share: 0.5}
  qat: {epochs: 4, optimizer: sgd, lr: 0.01, momentum: 0.9, schedule: constant, min_steps: 9}
early_terminate: {type: pareto, margin: 0.02, signal: best_so_far, min_epochs: 2, patience: 1, risk: 0.1}
replicate: {front: 5, within: 0.005}
constraints: [size_bytes <= 8192, "params < 1e6"]
resources: {gpu: 1/3, cpu: 1}
run: {order: shuffled, max_concurrent_trials: 4, time_budget_s: 3600, max_failures: 2, trial_timeout_s: 1e3,
  stall_timeout_s: 60, compile: auto, loggers: [mlflow]}
"""
UNTIL = (
    EVERY_KEY.replace(b"duplicates: replicate", b"duplicates: resample")
    .replace(b"name: every.key-1", b"name: every.key-2")
    .replace(
        b"replicate: {front: 5, within: 0.005}",
        b"replicate: {until: decided, looks: [3, 6], alpha: 0.05, same_within: 0.01, budget: {seconds: 60},"
        b" questions: [activation]}",
    )
)
CNN = (
    EVERY_KEY.replace(b"name: every.key-1", b"name: every.key-3")
    .replace(b"[digits, synthetic]", b"digits")
    .replace(
        b"{name: mlp, hidden: [16, 8]", b"{name: cnn, blocks: [conv 8, dw, pool], padding: same, hidden: [16, 8]"
    )
)
FILES = [EVERY_KEY, UNTIL, CNN, *(path.read_bytes() for path in sorted((ROOT / "sweeps").glob("*.yaml")))]
NASTY = [
    *(b".inf", b"-.inf", b".nan", b"nan", b"1e999", b"-0.0", b"-1", b"0", b"010", b"0x1f", b"1_000", b"1:30", b"+.5"),
    *(b"yes", b"no", b"true", b"~", b"null", b"", b"''", b'""', b"[]", b"{}", b"[[]]", b"[{}]", b"{a: {b: [c]}}"),
    *(b"!!python/object/apply:os.system [touch marker]", b"!!int 3", b"!x y", b"&a *a", b"&a [*a]", b"*a", b"<<"),
    *(
        b"<<: {depth: 1}",
        b"\t",
        b"\0",
        b"\x1b]0;x\x07[bold]",
        b'"\\e[31m\\0\\a"',
        b"\xff\xfe",
        b"\xe9",
        b"\r",
        b"\x85",
    ),
    *(b"1" + b"0" * 30, b"9" * 5000, b"1e-400", b"x" * 5000, b"[" * 300, b"{a: " * 100, b"a\nb", b"---\n", b"...\n"),
    *("é\u202e\u2028\ufeff".encode(), "😀".encode(), b'"\\ud800"', b'"\\UFFFFFFFF"', b"%YAML 1.1", b"#", b"'", b'"'),
    *(
        b"2026-01-01",
        b"os:system",
        b"../../etc/passwd",
        b"4294967296",
        b"1000000",
        b"65536",
        b"|\n  text",
        b"? x",
        b":",
    ),
    *(b"{min: 1, max: 64}", b"{min: 5, max: 2}", b"{values: [" + b",".join(b"%d" % n for n in range(1, 65)) + b"]}"),
]
LIKELY = [
    *(b"1", b"2", b"3", b"16", b"32", b"64", b"1e-300", b"0.5", b"1.0", b"100000", b"5000", b"1436", b"59999"),
    *(b"grid", b"random", b"tpe", b"gp", b"qmc", b"adam", b"cosine", b"lsq", b"svd", b"median", b"wilcoxon", b"none"),
    *(b"auto", b"1/32", b"shuffled", b"replicate", b"cifar10", b"[mnist, synthetic]", b"[65536, 1, 65536]", b"null"),
    *(b"{value: 1}", b"{min: 1, max: 64}", b"{min: 1, max: 16}", b"{values: [1, 2, 3, 4, 5, 6, 7, 8, 32]}"),
    *(b"{min: 1e-300, max: 1e300, distribution: log_uniform}", b"[size_bytes == 1e30]", b"[depth >= 2]", b"true"),
]
SCALAR = re.compile(rb"(?<=[:\[,] )[^,\]}{\[\n#]+")  # what follows `key: `, or stands in a list
KEY = re.compile(rb"\w+(?=:)")


def nasty_value(text: bytes, r: random.Random) -> bytes:
    at = r.choice(list(SCALAR.finditer(text)) or [re.match(b"", text)])
    return text[: at.start()] + r.choice(NASTY) + text[at.end() :]


def other_value(text: bytes, r: random.Random) -> bytes:
    found = list(SCALAR.finditer(text)) or [re.match(b"", text)]
    at, other = r.choice(found), r.choice(found)
    return text[: at.start()] + other[0] + text[at.end() :]


def likely_value(text: bytes, r: random.Random) -> bytes:
    at = r.choice(list(SCALAR.finditer(text)) or [re.match(b"", text)])
    return text[: at.start()] + r.choice(LIKELY) + text[at.end() :]


def renamed_key(text: bytes, r: random.Random) -> bytes:
    at = r.choice(list(KEY.finditer(text)) or [re.match(b"", text)])
    letters = bytearray(at[0] or b"x")
    letters[r.randrange(len(letters))] = r.choice(b"abcxyz_01 -")
    return text[: at.start()] + r.choice([bytes(letters), r.choice(NASTY), at[0] * 2]) + text[at.end() :]


def flipped_byte(text: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(text))
    return text[:at] + bytes([text[at] ^ 1 << r.randrange(8)]) + text[at + 1 :]


def deleted(text: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(text))
    return text[:at] + text[at + r.randint(1, 30) :]


def doubled(text: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(text))
    return text[:at] + text[at : at + r.randint(1, 80)] * r.randint(2, 3) + text[at:]


def nasty_bytes(text: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(text))
    return text[:at] + r.choice(NASTY) + text[at:]


def lines_changed(text: bytes, r: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    i, j = r.randrange(len(lines)), r.randrange(len(lines))
    match r.randrange(4):
        case 0:
            lines[i], lines[j] = lines[j], lines[i]
        case 1:
            lines[i] = r.choice([b" ", b"  ", b"\t", b"- "]) + lines[i]
        case 2:
            lines[i] = lines[i].lstrip(b" ")
        case 3:
            lines.insert(i, lines[j])
    return b"".join(lines)


def truncated(text: bytes, r: random.Random) -> bytes:
    return text[: r.randrange(len(text))]


def spliced(text: bytes, r: random.Random) -> bytes:
    other = r.choice(FILES)
    return text[: r.randrange(len(text))] + other[r.randrange(len(other)) :]


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    *[nasty_value, likely_value] * 3,
    *[other_value] * 2,
    *[renamed_key, flipped_byte, deleted, doubled, nasty_bytes, lines_changed, truncated, spliced],
]


def mutated(seed: int) -> bytes:
    """A file with one to four faults, the same for the same seed."""
    r = random.Random(seed)
    text = r.choice(FILES)
    for _ in range(r.choice([1, 1, 1, 2, 2, 3, 4])):
        text = r.choice(MUTATIONS)(text or b"#", r)
    return text


@pytest.mark.parametrize(
    "seeds",
    [range(300), *(pytest.param(range(n, n + 100), marks=pytest.mark.slow) for n in range(300, 2000, 100))],
    ids=lambda seeds: f"{seeds.start}-{seeds.stop - 1}",
)
def test_mutated_file_gives_a_plan_or_lines(
    seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QDTUNE_DATA", str(tmp_path / "data"))
    points = count_points(monkeypatch)
    codes = []
    for seed in seeds:
        text = mutated(seed)
        (tmp_path / "a.yaml").write_bytes(text)
        points.clear()
        code = launch.main(["a.yaml", "--dry-run"])
        out, err = capsys.readouterr()
        told = f"seed {seed}: {code}\n{out}\n{err}\n{text!r}"
        lines = err.splitlines()
        assert code in (0, 2), told
        assert bool(out) == (code == 0), told
        assert bool(lines) == (code == 2), told
        assert all(line.startswith("error: ") and line.isprintable() for line in lines), told
        assert err.count("\n") == len(lines) <= MAX_LINES + 1, told
        assert all(line.isprintable() for line in out.split("\n")), told
        assert sum(points) <= 20 * MAX_POINTS, told
        assert os.listdir(tmp_path) == ["a.yaml"], told
        codes.append(code)
    assert set(codes) == {0, 2}  # both are seen, so that both are tested


def count_points(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that gets a 1 for each point of a search space that is looked at."""
    seen: list[int] = []
    points = plan.list_points

    def counted(spec: object) -> object:
        for point in points(spec):
            seen.append(1)
            yield point

    monkeypatch.setattr(plan, "list_points", counted)
    return seen


def test_unmutated_files_are_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for n, text in enumerate(FILES):
        (tmp_path / f"{n}.yaml").write_bytes(text)
        assert launch.main([f"{n}.yaml", "--dry-run"]) == 0, capsys.readouterr().err
    source = "".join((ROOT / "qdtune" / "spec" / f"{name}.py").read_text() for name in ("groups", "replicate"))
    known = {*re.findall(r"^    (\w+): ", source, re.MULTILINE), *EarlyTerminate.model_fields}
    optional = {"scope", "min_delta", "n_startup_trials", "n_warmup_steps", "interval_steps", "percentile"}
    optional |= {"min_resource", "reduction_factor", "lower", "p_threshold"}  # of other pruners
    optional |= {
        "factory",
        "sha256",
        "built",
        "shape",
        "image",
        "dtype",
        "content",
        "_found",
        "_name",
        "Augment",
    }  # of plugins, and a type
    assert known - optional - {"values"} <= {key.decode() for key in KEY.findall(EVERY_KEY + UNTIL + CNN)}
