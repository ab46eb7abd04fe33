"""Every block of code in README and docs/ works as it stands; one that is run elsewhere says where."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from sklearn.datasets import load_digits

import qdtune
from docs import tables
from qdtune import reader
from qdtune.commands.launch import main as launch
from qdtune.messages import SpecError
from qdtune.model.c.program import to_c
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec, load, loads
from qdtune.store.pareto_table import table_front
from qdtune.store.store import Store
from tests.pages import BLOCKS, PAGES, ROOT, TESTED_ELSEWHERE, Block, blocks

OTHER_PROGRAMS = (  # in sh blocks, beside ours
    "python3", "pip", ".", "export", "ssh", "install", "chmod", "docker", "ray", "docker/pin", "docker/certs",
    "pytest", "ruff", "mypy", "optuna-dashboard", "nvidia-cuda-mps-control", "echo",
    "mlflow", "wandb", "tensorboard", "kubectl", "sbatch",
)  # fmt: skip


def test_every_block_says_its_language():
    assert [str(block) for block in BLOCKS if block.language not in ("sh", "python", "yaml", "text", "c")] == []


@pytest.mark.parametrize("page", TESTED_ELSEWHERE)
def test_pages_that_are_tested_elsewhere_are(page):
    assert page in (ROOT / TESTED_ELSEWHERE[page]).read_text()


def rows(trial, accuracy):
    now = datetime.now(timezone.utc)
    common = trial.columns | {"state": "ok", "epochs": 15, "finished_at": now, "test_accuracy": 0.5}
    return [common | {"seed": seed, "val_accuracy": accuracy + 0.01 * seed} for seed in trial.seeds]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as a reader has it: runs/grid, an exported model with its reader, the user's own module."""
    folder = tmp_path_factory.mktemp("place")
    spec = load(ROOT / "sweeps" / "grid.yaml").resolve("mnist")
    store = Store(folder / "runs" / "grid")
    trials = plan(spec).trials
    for n, trial in enumerate(trials):
        store.write(trial.trial_id, rows(trial, 0.4 + (7 * n % len(trials)) / 100), [], {})
    store.write_pareto()
    store.create(spec.to_yaml())
    shutil.copy(reader.__file__, folder / "reader.py")
    (folder / "TRIAL_ID.safetensors").write_bytes(packed_model())
    (own,) = [block for block in blocks("python") if block.marker == "own"]
    (folder / "mine.py").write_text(own.text)
    (folder / "OWN_ID.safetensors").write_bytes(packed_own_model(own.text))
    return folder


def packed_model(depth: int = 2, act_bits: int | None = None) -> bytes:
    from torch import nn

    from qdtune.model.factored import decompose
    from qdtune.model.formats.packed import one_seed
    from qdtune.model.packed import pack_replicas
    from qdtune.model.quantize import quantize

    model = nn.Sequential(nn.Linear(784, 24), nn.ReLU(), nn.Linear(24, 10))
    quantize(decompose(model, depth=depth), weight_bits=2, act_bits=act_bits)
    return one_seed(pack_replicas({0: model}, "TRIAL_ID", 784, 10), 0)


def packed_own_model(text: str) -> bytes:
    from qdtune.model.factored import decompose
    from qdtune.model.formats.packed import one_seed
    from qdtune.model.packed import pack_replicas
    from qdtune.model.quantize import quantize

    code: dict[str, Any] = {}
    exec(text, code)
    model = quantize(decompose(code["net"](64, [16], 10, seed=0), depth=2), weight_bits=2)
    return one_seed(pack_replicas({0: model}, "OWN_ID", 64, 10, "mine:net"), 0)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_blocks_run(block, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    found: dict[str, object] = {"__name__": "block"}
    exec(compile(block.text, str(block), "exec"), found)  # as a reader would
    out = capsys.readouterr().out
    assert out or block.marker in ("own", "sensors"), "a block prints something, so that this test sees it work"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc here to compile the example in C")
def test_the_c_program_gives_the_logits_of_the_reader(tmp_path):
    block, _ = blocks("c")  # the other one is the sketch of `to-the-device.md`
    (tmp_path / "net.c").write_text(block.text)
    strict = ["-std=c99", "-O1", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    subprocess.run(["gcc", *strict, "net.c", "-o", "net"], cwd=tmp_path, check=True)
    blob = packed_model(depth=1)
    (tmp_path / "model.safetensors").write_bytes(blob)
    for pixels in np.random.default_rng(0).integers(0, 256, (3, 784), np.uint8):
        command = ["./net", "model.safetensors"]
        done = subprocess.run(command, cwd=tmp_path, input=pixels.tobytes(), stdout=subprocess.PIPE, check=True)
        logits = reader.load(blob).logits(pixels[None])[0]
        assert np.ptp(logits) > 0.01
        assert np.allclose([float(word) for word in done.stdout.split()], logits, rtol=1e-4, atol=1e-5)
    (tmp_path / "model.safetensors").write_bytes(blob + bytes(96))  # the data of a larger network
    assert subprocess.run(command, cwd=tmp_path, input=pixels.tobytes(), stdout=subprocess.DEVNULL).returncode == 1


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc here to compile the example in C")
def test_the_sketch_answers_with_the_class_of_the_reader(tmp_path):
    _, block = blocks("c")
    blob = packed_model(depth=1, act_bits=8)
    made = to_c(reader.load(blob), "TRIAL_ID")
    (tmp_path / "TRIAL_ID.h").write_text(made.header)
    (tmp_path / "TRIAL_ID.c").write_text(made.source)
    board = "#include <stdio.h>\nvoid setup(void); void loop(void);\nint serial_read(void) { return getchar(); }\n"
    board += 'void serial_print(int32_t n) { printf("%d\\n", (int)n); }\n'
    board += "int main(void) { setup(); for (int n = 0; n < 3 * 784; n++) { loop(); } return 0; }\n"
    (tmp_path / "sketch.c").write_text(block.text + board)
    strict = ["-std=c99", "-O1", "-Wall", "-Wextra", "-pedantic", "-Werror"]
    subprocess.run(["gcc", *strict, "sketch.c", "TRIAL_ID.c", "-o", "sketch"], cwd=tmp_path, check=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 784), np.uint8)
    done = subprocess.run(["./sketch"], cwd=tmp_path, input=pixels.tobytes(), stdout=subprocess.PIPE, check=True)
    assert [int(line) for line in done.stdout.split()] == reader.load(blob).logits(pixels).argmax(1).tolist()


def test_the_split_of_digits_is_that_of_the_page(monkeypatch, tmp_path):
    (block,) = [block for block in blocks("python") if block.marker == "digits"]
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, str(block), "exec"), names)
    x, y = load_digits(return_X_y=True)
    test = np.random.RandomState(0).permutation(1797)[1437:]
    assert np.array_equal(names["samples"].test_x, np.rint(x[test] * 255 / 16))
    assert np.array_equal(names["samples"].test_y, y[test])
    assert (len(names["samples"].train_x), len(names["samples"].val_x)) == (1437 - 287, 287)
    assert not list(tmp_path.iterdir())


def test_blocks_that_query_a_run_give_the_printed_front(place, monkeypatch, capsys):
    front = table_front(Store(place / "runs" / "grid").write_pareto())
    assert 2 <= front.num_rows <= 10
    queries = [block for block in blocks("python") if "runs/grid/pareto.parquet" in block.text]
    assert [block.text.split()[1] for block in queries] == ["duckdb", "duckdb", "pandas", "polars"]
    monkeypatch.chdir(place)
    for block in queries:
        exec(compile(block.text, str(block), "exec"), {})
        out = capsys.readouterr().out
        sizes = [int(m) for m in re.findall(r"^[^\n]*?\b(\d{4,5})\b", out, re.MULTILINE)]
        assert sizes == front["size_bytes"].to_pylist(), out


def test_queries_read_the_depth_of_the_rows_in_a_folder_that_names_another(place, tmp_path, monkeypatch, capsys):
    table = Store(place / "runs" / "grid").write_pareto()
    depths = sorted(set(table_front(table)["depth"].to_pylist()))
    (tmp_path / "runs" / "depth=63").mkdir(parents=True)
    shutil.copytree(place / "runs" / "grid", tmp_path / "runs" / "depth=63" / "grid")
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr("duckdb.DuckDBPyRelation.show", lambda relation: seen.append(relation.df()))
    for block in blocks("python"):
        if "duckdb" in block.text:
            exec(compile(block.text.replace("runs/grid", "runs/depth=63/grid"), str(block), "exec"), {})
    assert len(seen) == 2
    assert [sorted(set(frame.depth)) for frame in seen if "depth" in frame] == [depths]


def test_block_that_loads_a_run_gives_its_front_and_answers(place, monkeypatch, capsys):
    front = table_front(Store(place / "runs" / "grid").write_pareto())
    (block,) = [block for block in blocks("python") if block.marker == "load"]
    monkeypatch.chdir(place)
    exec(compile(block.text, str(block), "exec"), {})
    out = capsys.readouterr().out
    small = [size for size in front["size_bytes"].to_pylist() if size <= 8192]
    assert [int(m) for m in re.findall(r"^\d+ +(\d{4}) ", out, re.MULTILINE)] == small
    n = len(plan(load(ROOT / "sweeps" / "grid.yaml").resolve("mnist")).trials)
    assert f"finished: {n} ok; {5 * n} rows, 0 epochs" in out
    answers = qdtune.load("runs/grid").answers(budget=8192).sentences
    assert {"best", "depth", "activation"} <= set(answers)
    for question, sentences in answers.items():
        assert "\n  ".join([question, *sentences]) in out
    assert len(answers["depth"]) > 1


SMALLEST = """\
version: 1
name: page
parameters: {depth: {values: [1, 2]}, activation: {values: [identity, relu]}}
data: {dataset: mnist}
"""


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if block.marker != "mistakes"], ids=str)
def test_yaml_blocks_are_sweep_files_or_parts_of_one(block):
    keys = YAML(typ="safe").load(block.text)
    if "scrape_configs" in keys:  # of Prometheus: tests/test_docker.py
        return
    assert set(keys) <= set(Spec.model_fields)
    if "version" in keys:
        assert loads(block.text.encode(), str(block)).name == keys["name"]
    else:
        ours = [line for line in SMALLEST.splitlines() if line.partition(":")[0] not in keys]
        loads("\n".join([*ours, block.text]).encode(), str(block))


def test_mistakes_are_told_as_the_page_says(tmp_path, monkeypatch, capsys):
    (n,) = [n for n, block in enumerate(BLOCKS) if block.marker == "mistakes"]
    file, said = BLOCKS[n : n + 2]
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text(file.text)
    assert launch(["bad.yaml"]) == 2
    assert capsys.readouterr().err == said.text


def lines_of(block: Block) -> Iterator[list[str]]:
    """The commands of a sh block in words, without comments, variables and output files."""
    text = block.text.replace("\\\n", " ").replace("&&\n", "&& ")
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = next((n for n, word in enumerate(words) if word in ("&&", "|")), len(words))
            command, words = words[:end], words[end + 1 :]
            while command and re.match(r"[A-Z_]+=", command[0]):
                command = command[1:]
            yield command


def qdtune_arguments(words: list[str]) -> list[str] | None:
    """What follows `qdtune` in a command, the name of the command first; None for another program."""
    program = words[0].removeprefix(".venv/bin/")
    if program == "qdtune":
        return words[1:]
    if program == "python" and words[1:2] == ["-m"] and words[2].partition(".")[0] == "qdtune":
        return [*words[2].split(".")[1:], *words[3:]]
    return None


@pytest.mark.parametrize("block", blocks("sh"), ids=str)
def test_sh_blocks_name_commands_options_and_files_that_exist(block, tmp_path, capsys):
    for words in lines_of(block):
        ours = qdtune_arguments(words)
        if ours is None:
            check_other(words)
            continue
        parser = tables.parser_of(ours[0])
        arguments = parser.read(ours[1:])  # raises SpecError for an option that there is not
        sweep = getattr(arguments, "sweep", None)
        if sweep and (ROOT / sweep).parent != ROOT:  # mine.yaml is the reader's own
            settings = [word for override in arguments.set for word in ("--set", override)]
            assert launch([str(ROOT / sweep), "--dry-run", "--runs-dir", str(tmp_path), *settings]) == 0, words
            assert "configurations" in capsys.readouterr().out


def check_other(words: list[str]) -> None:
    program = words[0].removeprefix(".venv/bin/")
    if program in ("python", "pytest") and len(words) > 1 and not words[1].startswith("-"):
        assert (ROOT / words[1]).exists(), words
    else:
        assert program in OTHER_PROGRAMS, words
    for word in words:
        if found := re.fullmatch(r"\.\[([\w,]+)\]", word):
            declared = (ROOT / "pyproject.toml").read_text()
            assert all(re.search(rf"^{extra} = \[", declared, re.MULTILINE) for extra in found[1].split(",")), word


def test_an_option_that_does_not_exist_is_noticed():
    with pytest.raises(SpecError, match="unknown option"):
        tables.parser_of("launch").read(["sweeps/grid.yaml", "--dry"])


def test_every_command_is_shown_in_a_block():
    shown = {ours[0] for block in blocks("sh") for words in lines_of(block) if (ours := qdtune_arguments(words))}
    assert shown >= set(tables.commands()) - {"verify"}
    assert "qdtune verify RUN" in PAGES["reliability-and-security.md"]
