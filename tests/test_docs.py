"""What README and docs/ promise: tables from the code, links that lead somewhere, pages in the menu, a site."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from docs import tables
from docs.sweep_keys import attribute_words
from qdtune.store.front import print_front
from qdtune.store.pareto_table import table_front
from qdtune.store.parquet import complete_table
from tests.pages import DOCS, PAGES, ROOT
from tests.schemas import PARETO

REFERENCE = ROOT / "tests" / "benchmarks" / "reference.py"


@pytest.mark.parametrize("page", PAGES)
def test_tables_from_the_code_are_up_to_date(page):
    assert tables.filled_in(PAGES[page]) == PAGES[page], "run python -m docs.tables --write"


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
    assert len(made) == 13
    for table in made:
        assert table in PAGES["results.md"]


def test_front_of_the_grid_is_that_of_its_file():
    said = io.StringIO()
    pareto = complete_table(pq.read_table(ROOT / "sweeps" / "reference" / "grid.parquet"), PARETO)
    print_front(pareto, "mnist", Console(file=said, width=200))
    table = said.getvalue().partition("\n")[2].partition("accuracy:")[0]  # without the title
    assert table.count("\n") == 1 + table_front(pareto).num_rows == 12
    assert table in PAGES["README.md"]
    assert table in PAGES["quickstart.md"]


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


MADE_BY_THE_READER = {"mine.py", "mine.yaml", "sensors.py", "sensors.yaml", "sweep.yaml", "bad.yaml"}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    folders = (ROOT, ROOT / "qdtune", ROOT / "sweeps", ROOT / "tests" / "benchmarks")
    for name in re.findall(r"`([\w/.-]+\.(?:py|yaml|yml))`", PAGES[page]):
        assert (
            name in MADE_BY_THE_READER
            or any((folder / name).exists() for folder in folders)
            or any((ROOT / "qdtune").rglob(name))
        ), name


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


def test_the_words_of_a_key_go_on_in_the_lines_below_it() -> None:
    class Wrapped:
        """A group of keys.

        Attributes:
            first: words that are too long for
                one line, and
                for two
            second: one line
        """

    words = {"first": "words that are too long for one line, and for two", "second": "one line"}
    assert attribute_words(Wrapped) == words
