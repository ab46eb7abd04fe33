"""`qdtune report RUN ...`: prints what a sweep has found and draws it, as a page and as figures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdtune.analysis.run import Run, RunError, load_run
from qdtune.commands.parser import print_error, run_command
from qdtune.commands.report_arguments import read_arguments
from qdtune.commands.verb import Verb
from qdtune.messages import format_count, one_line, user_error
from qdtune.report.follow import LEAST_S, closed, follow
from qdtune.report.page import images, page
from qdtune.report.plot_data import sheet
from qdtune.report.published import CAVEAT
from qdtune.report.tables import Table, short_tables
from qdtune.report.words import (
    BESIDE,
    Question,
    beside,
    explain_nothing_beside,
    provisional,
    questions,
    questions_at,
    state,
    trouble,
)
from qdtune.store.disk_folder import DiskFolder
from qdtune.store.folder import ReadOnlyError
from qdtune.store.front import print_front
from qdtune.store.opened import open_run
from qdtune.store.releases import describe_releases
from qdtune.store.store import FAULTS, PAGE, Store
from qdtune.store.tables import rows_known
from qdtune.terminal import console, text_table, wrap_text

VERB = Verb(place=2, text="print and draw the results of a sweep")
TEXT_WIDTH = 80  # the most characters of a line
EXIT_CODES: dict[type[Exception], int] = {RunError: 2, **FAULTS}


def main(argv: Sequence[str] | None = None) -> int:
    """Reports one run folder, or several on one page; returns the exit code: 0, or what is wrong, as of `launch`.

    Args:
        argv: the arguments after `report`; those of the process if None.
    """
    return run_command(lambda: _report(read_arguments(argv)))


def _check_bits(runs: Sequence[Run], bits: Sequence[int]) -> None:
    """Raises if a run has nothing at one of these numbers of bits."""
    for run in runs:
        known = sorted(set(run.pareto["weight_bits"].to_pylist()))
        if missing := [n for n in bits if n not in known]:
            raise user_error(f"--bits {missing[0]}: {run.where} has {', '.join(map(str, known))}")


def _report(arguments: argparse.Namespace) -> int:
    try:
        if arguments.for_launch:
            return _follow_launch(arguments.runs[0])
        if arguments.watch:
            return _watch(arguments)
        runs = [_limit_size(load_run(run), arguments.budget) for run in arguments.runs]
        _check_metrics(runs)
        _check_bits(runs, arguments.bits)
        out = console()
        # A page of its own is written first, because nothing is printed if it cannot be written.
        lines = _write_files(runs, arguments.reference, arguments.out) if arguments.out else []
        for run in runs:
            _print(run, out, arguments.reference, arguments.all, arguments.bits)
        page_line, *figure_lines = lines or _write_files(runs, arguments.reference)
        out.print(page_line)
        _print_sentences(figure_lines, out)
        if not arguments.all:
            out.print("every comparison: the page, or `qdtune report --all`", style="dim")
        return 0
    except tuple(EXIT_CODES) as error:
        return print_error(error, EXIT_CODES)


def _check_metrics(runs: Sequence[Run]) -> None:
    """Raises if runs are judged by different metrics, because no page could compare them."""
    names = {run.spec.metric.name: run.where for run in runs}
    if len(names) > 1:
        each = ", ".join(f"{where} by {name}" for name, where in names.items())
        raise RunError(f"runs on one page must be judged by one metric, got {each}: report them one by one")


def _limit_size(run: Run, budget: int | None) -> Run:
    small = run.within(budget)
    if not small.finished:
        least = min(rows_known(run.pareto, "pareto_rank")["size_bytes"].to_pylist())
        nothing = f"{run.where} holds nothing within {format_count(budget or 0, 'byte')}"
        raise RunError(f"{nothing}: the smallest that has finished has {least:,}")
    return small


def draw_run(where: str) -> list[str]:
    """Draws the page and the figures of a run into its folder; a line each for where they are.

    Args:
        where: the run folder. If nothing in it has finished, nothing is drawn.

    Raises:
        StorageError: the files cannot be written.
    """
    try:
        run: Run = load_run(where)
    except RunError:
        return []
    return _write_files([run])


def _write_files(runs: Sequence[Run], reference: bool = False, out: str | None = None) -> list[str]:
    """Writes the page, and of a single run its figures; a line each for where they are."""
    sheets = [sheet(run) for run in runs]
    folder = Store(runs[0].where).folder
    live = not out and folder.is_in_use()  # its launch draws the page, too: it is to go on loading itself
    drawn = page(sheets, reference, int(LEAST_S) if live else 0)
    if out:
        target = Path(out)
        DiskFolder(target.parent).write_file(target.name, drawn)
        return [f"report: {one_line(str(target))}"]
    try:
        folder.write_file(PAGE, drawn)
    except ReadOnlyError:
        return [f"no page is written: {folder} is read-only (choose --out FILE.html)"]
    names = []
    for name, data in images(sheets[0], reference):
        folder.write_file(name, data)
        names.append(name.rpartition(".")[0])
    lines = [f"report: {folder.full_name(PAGE)}"]
    return [*lines, f"figures: {', '.join(dict.fromkeys(names))} (.svg, .png) beside it"] if names else lines


def _watch(arguments: argparse.Namespace) -> int:
    run = arguments.runs[0]
    out = console()
    _check_run_folder(run)
    said = None

    def draw(live: bool) -> bool:
        nonlocal said
        found = _draw_page(run, live, arguments.budget, arguments.reference)
        line = "nothing has finished yet" if found is None else f"{state(found)}: {Store(run).folder.full_name(PAGE)}"
        if line != said:
            out.print(line)
        said = line
        return found is not None and not found.left

    try:
        follow(run, draw, _sleep)
    except KeyboardInterrupt:
        _draw_page(run, False, arguments.budget, arguments.reference)
    return 0


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _follow_launch(run: str) -> int:
    """Follows a sweep for its launch: until that ends, whatever is left, without a word."""

    def draw(live: bool) -> bool:
        _draw_page(run, live)
        return False

    follow(run, draw, closed)
    return 0


def _check_run_folder(run: str) -> None:
    """Raises where this is no run folder; one in which nothing has finished is."""
    open_run(run)


def _draw_page(run: str, live: bool, budget: int | None = None, reference: bool = False) -> Run | None:
    """Writes the page of a run, which loads itself again while the sweep is `live`; None if nothing has finished."""
    try:
        found = _limit_size(load_run(run), budget)
    except RunError:  # nothing has finished yet
        return None
    reload_s = int(LEAST_S) if live and found.left else 0
    Store(run).folder.write_file(PAGE, page([sheet(found)], reference, reload_s))
    return found


def _print(run: Run, out: Any, reference: bool, is_long: bool, bits: Sequence[int] = ()) -> None:
    """Prints the front, what went wrong, and the questions with their answers; with `reference` published networks.

    Args:
        run: the run.
        out: the console.
        reference: whether published networks are shown.
        is_long: whether every comparison and best depth is printed, too.
        bits: print only the answers at these numbers of bits; none: all.
    """
    out.print(f"{run.name}: {state(run)}", style="bold")
    for line in run.damaged:
        out.print(f"damaged, left out: {line}", style="yellow")
    for line in run.left_out:
        out.print(f"left out: {line}", style="yellow")
    print_front(run.pareto, run.spec.data.names[0], out, budget=run.budget, width=_text_width(out))
    if releases := describe_releases(run.pareto):
        _print_sentences([f"{releases}."], out)
    _print_sentences(trouble(run), out, style="yellow")
    if warning := provisional(run):
        out.print()
        _print_sentences([warning], out, style="yellow")
    for question in questions_at(run, bits) if bits else questions(run):
        _print_question(question, out, is_long)
    out.print()
    if reference and (table := beside(run.pareto, run.spec.data.names[0])):
        out.print(table.title, style="bold")
        out.print(_format_table(table))
        _print_sentences([BESIDE, CAVEAT], out, style="dim")
        out.print()
    elif reference:
        _print_sentences([explain_nothing_beside(run.pareto, run.spec.data.names[0])], out)


def _print_question(question: Question, out: Any, is_long: bool) -> None:
    """Prints the conclusions, then the counts of verdicts and refusals; if `is_long` the details, too."""
    out.print()
    out.print(question.title, style="bold")
    _print_sentences(question.conclusions, out)
    if is_long:
        _print_sentences(question.best, out)
    if question.counts:
        _print_sentences([f"{question.counts}. {question.correction}".strip(), *question.advice], out)
    if is_long:
        tables, notes = short_tables(question.axis, question.found, _text_width(out))
        for table in tables:
            if table.title:
                out.print(table.title)
            out.print(text_table(table.heads, table.rows, left=["notes"]))
        _print_sentences(notes, out)


def _text_width(out: Any) -> int:
    return min(TEXT_WIDTH, out.width)


def _print_sentences(sentences: Sequence[str], out: Any, style: str | None = None) -> None:
    """Prints sentences as paragraphs of at most `TEXT_WIDTH` characters a line."""
    for sentence in sentences:
        for line in wrap_text(sentence, _text_width(out), "  "):
            out.print(line, style=style)


def _format_table(table: Table) -> Any:
    return text_table(table.heads, table.rows, folded=table.heads[-1:])
