"""How mistakes in arguments are told: in our words, without hidden options, before anything is done."""

from __future__ import annotations

import sys

import pytest

from qdtune import __main__
from qdtune.commands.verb import read_verbs


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("replay runs/a --orders x", "--orders must be a whole number, got 'x' (usage: qdtune replay "),
        ("replay runs/a --jobs 1.5", "--jobs must be a whole number, got '1.5' (usage: "),
        ("export runs/a --front --out o --seed x", "--seed must be a whole number, got 'x' (usage: "),
        ("export runs/a --front --out o --format x", "--format: unknown 'x' (packed, onnx, c) (usage: "),
        ("export runs/a --front --out o --format onx", "--format: unknown 'onx'; did you mean 'onnx'? (packed, "),
        ("report runs/a --out=", "--out must name a folder or file, got an empty name (usage: "),
        ("export runs/a --front --out=", "--out must name a folder or file, got an empty name (usage: "),
        ("launch a.yaml --runs-dir=", "--runs-dir must name a folder or file, got an empty name (usage: "),
        ("launch a.yaml --data-dir=", "--data-dir must name a folder or file, got an empty name (usage: "),
        ("launch a.yaml --dry-run --runs-dir=", "--runs-dir must name a folder or file, got an empty name (usage: "),
    ],
)
def test_a_wrong_value_is_told_in_our_words(argv: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(argv.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"error: {told}")


def test_hidden_options_are_not_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["report", "--nonsense"]) == 2
    err = capsys.readouterr().err
    assert "--watch" in err
    assert "--for-launch" not in err


@pytest.mark.parametrize("argv", ["nonsense", "report --nonsense", "export runs/a", "replay runs/not there"])
def test_an_error_is_wrapped_between_words_on_a_terminal_and_one_line_elsewhere(
    argv: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(argv.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    assert __main__.main(argv.split()) == 2
    first, *more = capsys.readouterr().err.splitlines()
    assert len(line) > 80
    assert max(len(one) for one in (first, *more)) <= 40
    assert all(one.startswith("  ") for one in more)
    assert " ".join([first, *(one.strip() for one in more)]) == line


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("launch", "SWEEP"),
        ("report", "RUN"),
        ("verify", "RUN"),
        ("export", "RUN (--front | --trial ID) --out DIR"),
        ("replay", "RUN"),
        ("submit", "SWEEP"),
        ("jobs", "--address http://HOST:8265"),
        ("stop", "ID|NAME"),
        ("fetch", "ID|NAME"),
    ],
)
def test_help_begins_with_what_a_command_needs_and_fits_the_terminal(
    command: str, needed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        __main__.main([command, "--help"])
    told = capsys.readouterr().out
    assert " ".join(told.split()).startswith(f"usage: qdtune {command} {needed}")
    assert max(map(len, told.splitlines())) <= 80
    assert "in order." not in told
    if command == "replay":
        assert "shuffled (default)" in told


def test_the_list_of_commands_says_where_their_options_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["--help"]) == 0
    *listed, empty, last = capsys.readouterr().out.splitlines()
    assert len(listed) == 2 + len(read_verbs())
    assert (empty, last) == ("", "qdtune COMMAND --help lists the options of a command")
