"""A verb added through its one place, a file in `commands/`: `qdtune --help` lists it and `qdtune` runs it."""

import importlib
import sys

import pytest

from qdtune.commands import verb
from qdtune.commands.verb import Verb, read_verbs
from tests.golden import trees
from tests.toy import copy_package, run

TOY = '''"""`qdtune toy`: adds two numbers."""

from qdtune.commands.parser import Parser, run_command
from qdtune.commands.verb import Verb

VERB = Verb(place=3, text="add two numbers")


def main(argv=None):
    parser = Parser("toy", "qdtune toy A B", "Adds two numbers.")
    parser.add_argument("numbers", type=int, nargs=2)
    return run_command(lambda: print(sum(parser.read(argv).numbers)) or 7)
'''
LINE = "  toy        add two numbers\n"
NAMES = "launch, report, toy, verify, export, submit, jobs, stop, fetch, replay"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package with one file more; no other file differs."""
    return copy_package(tmp_path_factory.mktemp("tree"), added={"commands/toy.py": TOY})


def test_help_lists_it_at_its_place(tree):
    before = (trees.WORDS / "help.txt").read_text().removesuffix("exit code 0\n")
    verify = "  verify  "
    assert run(tree, "-m", "qdtune", "--help").stdout == before.replace(verify, LINE + verify)


def test_help_imports_no_verb(tree):
    code = "import sys; from qdtune.__main__ import main; main(['--help'])"
    found = run(tree, "-c", f"{code}; print(*sys.modules)").stdout.split("\n")[-2].split()
    commands = [name.removeprefix("qdtune.commands.") for name in found if name.startswith("qdtune.commands.")]
    assert commands == ["output", "parser", "verb"]
    assert not {"torch", "pydantic", "numpy"} & set(found)


def test_it_runs_and_gives_its_exit_code(tree):
    assert run(tree, "-m", "qdtune", "toy", 20, 22, code=7).stdout == "42\n"


def test_its_mistakes_are_told_as_those_of_others(tree):
    told = run(tree, "-m", "qdtune", "toy", 20, code=2).stderr
    assert told == "error: the following arguments are required: numbers (usage: qdtune toy A B)\n"


def test_a_name_that_is_nearly_its_own_is_told(tree):
    told = run(tree, "-m", "qdtune", "tory", code=2).stderr
    assert told == f"error: unknown command 'tory'; did you mean 'toy'? ({NAMES})\n"


def test_what_is_read_is_what_the_files_declare():
    verbs = read_verbs()
    modules = {name: importlib.import_module(f"qdtune.commands.{name}") for name in verbs}
    assert verbs == {name: module.VERB for name, module in modules.items()}
    assert all(callable(module.main) for module in modules.values())


@pytest.mark.parametrize("name", ["parser", "job_parser", "dry_run", "on_head", "verb"])
def test_a_file_that_declares_no_verb_is_none(name, capsys):
    from qdtune.__main__ import main

    assert f"qdtune.commands.{name}" in sys.modules or importlib.import_module(f"qdtune.commands.{name}")
    assert main([name]) == 2
    assert capsys.readouterr().err.startswith(f"error: unknown command '{name}'")


@pytest.mark.parametrize(
    "declaration",
    [
        'VERB = Verb(1, "adds")',
        'VERB = Verb(place=1, text="a" * 3)',
        'VERB = Verb(\n    place=1,\n    text="a",\n)',
        'VERB: Verb = Verb(place=1, text="a")',
        "VERB = 1",
    ],
)
def test_a_declaration_that_cannot_be_read_is_told(declaration):
    told = r'^commands/toy.py must declare its verb as VERB = Verb\(place=N, text="..."\), on one line$'
    with pytest.raises(ValueError, match=told):
        verb._read_verb("toy", declaration)
    assert verb._read_verb("toy", '\nVERB = Verb(place=1, text="a")\n') == Verb(1, "a")
