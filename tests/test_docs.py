"""What README and docs/ promise: tables from the code, links that lead somewhere, blocks that work as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from docs import tables
from qdtune import reader
from qdtune.commands.launch import main as launch
from qdtune.messages import SpecError
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec, load, loads
from qdtune.store.pareto_table import table_front
from qdtune.store.store import Store

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))}
REFERENCE = ROOT / "tests" / "benchmarks" / "reference.py"
# Pages whose blocks have a test of their own, which starts Ray.
TESTED_ELSEWHERE = {"own-tuner.md": "tests/sweep/test_own_tuner.py"}
OTHER_PROGRAMS = (  # in sh blocks, beside ours
    "python3", "pip", ".", "export", "ssh", "install", "chmod", "docker", "ray", "docker/pin", "docker/certs",
    "pytest", "ruff", "mypy", "optuna-dashboard", "nvidia-cuda-mps-control", "echo",
    "mlflow", "wandb", "tensorboard", "kubectl", "sbatch",
)  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the comment line before it."""

    page: str
    line: int
    language: str
    text: str
    marker: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> Iterator[Block]:
    text = PAGES[page]
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        before = text[: found.start()]
        marker = re.search(r"<!-- ([\w ]+) -->\n$", before)
        yield Block(page, before.count("\n") + 1, found[1], found[2], marker[1] if marker else "")


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def blocks(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language and block.page not in TESTED_ELSEWHERE]


# --- Tables, links, form.


@pytest.mark.parametrize("page", PAGES)
def test_tables_from_the_code_are_up_to_date(page):
    assert tables.filled_in(PAGES[page]) == PAGES[page], "run python docs/tables.py --write"


def test_every_table_has_a_page():
    marked = re.findall(r"<!-- table: (\w+) -->", "".join(PAGES.values()))
    assert set(marked) == {table.name for table in tables.TABLES}


def test_a_changed_table_is_noticed_and_written_again(tmp_path, monkeypatch, capsys):
    page = tmp_path / "sweep-file.md"
    page.write_text(PAGES["sweep-file.md"].replace("| `depth` |", "| `deepth` |"))
    monkeypatch.setattr(tables, "DOCS", tmp_path)  # without README.md above
    assert tables.main([]) == 1
    assert "sweep-file.md: out of date" in capsys.readouterr().out
    assert tables.main(["--write"]) == 0
    assert page.read_text() == PAGES["sweep-file.md"]
    assert tables.main([]) == 0


def test_tables_of_the_reference_fronts_are_those_of_their_files():
    found = subprocess.run([sys.executable, REFERENCE], capture_output=True, text=True, check=True).stdout
    made = found.strip().split("\n\n")
    assert len(made) == 6
    for table in made:
        assert table in PAGES["results.md"]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as Zensical and GitHub make them."""
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    folder = ROOT if page == "README.md" else DOCS
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        assert not path or (folder / path).is_file(), link
        assert page == "README.md" or (folder / path).resolve().is_relative_to(DOCS), f"{link} is outside the site"
        if anchor:
            assert anchor in anchors(Path(path).name or page), link


def test_every_page_is_in_the_menu_once():
    menu = re.findall(r": ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(menu) == sorted(path.name for path in DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_lines_have_at_most_120_characters_but_those_of_tables_and_output(page):
    prose = re.sub(r"^```text\n.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    long = [line for line in prose.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert [line for line in long if not line.startswith("python3 -m venv .venv && ")] == []  # on one line, to copy


MADE_BY_THE_READER = {"mine.py", "mine.yaml", "sweep.yaml", "bad.yaml"}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    folders = (ROOT, ROOT / "qdtune", ROOT / "sweeps", ROOT / "qdtune" / "model", ROOT / "tests" / "benchmarks")
    for name in re.findall(r"`([\w/.-]+\.(?:py|yaml|yml))`", PAGES[page]):
        assert name in MADE_BY_THE_READER or any((folder / name).exists() for folder in folders), name


@pytest.mark.skipif(not shutil.which("zensical", path=str(Path(sys.executable).parent)), reason="zensical is missing")
def test_site_is_built_without_a_warning_and_a_dead_link_breaks_it(tmp_path):
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))

    def build() -> subprocess.CompletedProcess[str]:
        line = [Path(sys.executable).parent / "zensical", "build", "--strict"]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = build()
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    assert {path.stem for path in site.glob("*.html")} == {path.stem for path in DOCS.glob("*.md")} | {"404"}
    for path in site.glob("*.html"):  # and nothing is asked of the network
        asked = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?(https?:[^\"' >]+)", path.read_text())
        assert asked == [], path.name
    with open(tmp_path / "docs" / "index.md", "a", encoding="utf-8") as page:
        page.write("\n[nowhere](nowhere.md)\n")
    assert build().returncode != 0


# --- Blocks of code.


def test_every_block_says_its_language():
    assert [str(block) for block in BLOCKS if block.language not in ("sh", "python", "yaml", "text")] == []


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
    for n, trial in enumerate(plan(spec).trials):
        store.write(trial.trial_id, rows(trial, 0.5 + (7 * n % 35) / 100), [], {})
    store.write_pareto()
    store.create(spec.to_yaml())
    shutil.copy(reader.__file__, folder / "reader.py")
    (folder / "TRIAL_ID.safetensors").write_bytes(packed_model())
    return folder


def packed_model() -> bytes:
    from torch import nn

    from qdtune.model.factored import decompose
    from qdtune.model.formats.packed import one_seed
    from qdtune.model.packed import pack_replicas
    from qdtune.model.quantize import quantize

    model = nn.Sequential(nn.Linear(784, 24), nn.ReLU(), nn.Linear(24, 10))
    quantize(decompose(model, depth=2), weight_bits=2)
    return one_seed(pack_replicas({0: model}, "TRIAL_ID", 784, 10), 0)


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_blocks_run(block, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    found: dict[str, object] = {"__name__": "block"}
    exec(compile(block.text, str(block), "exec"), found)  # as a reader would
    out = capsys.readouterr().out
    assert out or block.marker == "own", "a block prints something, so that this test sees it work"


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


def test_block_that_loads_a_run_gives_its_front_and_answers(place, monkeypatch, capsys):
    front = table_front(Store(place / "runs" / "grid").write_pareto())
    (block,) = [block for block in blocks("python") if block.marker == "load"]
    monkeypatch.chdir(place)
    exec(compile(block.text, str(block), "exec"), {})
    out = capsys.readouterr().out
    small = [size for size in front["size_bytes"].to_pylist() if size <= 8192]
    assert [int(m) for m in re.findall(r"^\d+ +(\d{4}) ", out, re.MULTILINE)] == small
    assert "finished: 35 ok; 105 rows, 0 epochs" in out
    assert out.count("At 2 bits (absmean, orthogonal) depth 2") == 1
    assert "best\n  Within 8,192 bytes the best is depth" in out


SMALLEST = "version: 1\nname: page\nparameters: {depth: {value: 1}}\ndata: {dataset: mnist}\n"


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
        if sweep and sweep.startswith("sweeps/"):
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
