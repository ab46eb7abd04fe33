"""The options of `qdtune report`: what they accept, and which go together."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from qdtune.commands.parser import Parser
from qdtune.messages import one_line, user_error
from qdtune.report.page import MARK
from qdtune.store.store import PAGE

USAGE = "qdtune report RUN [RUN ...] [--out FILE] [--budget BYTES] [--bits N] [--all] [--reference] [--watch]"
UNIT_BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "kib": 1024, "mib": 1024**2}


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a report, checked: sizes in bytes, bits as numbers.

    Args:
        argv: the arguments after `report`; those of the process if None.

    Raises:
        SpecError: what they must hold, and what they do.
    """
    parser = Parser("report", USAGE, "Prints and draws what a sweep has found.")
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run folders: paths or URLs")
    parser.add_argument("--out", metavar="FILE", help=f"write only the page, to FILE (default: RUN/{PAGE})")
    parser.add_argument(
        "--budget", metavar="BYTES", help="ignore larger configurations; a KB has 1,000 bytes, a KiB 1,024"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also print the answer at each bit width and size, and every comparison",
    )
    parser.add_argument(
        "--bits",
        metavar="N",
        help="print only the answers at N bits, such as 2 or 1,2; 32 is float. The page is whole",
    )
    parser.add_argument("--reference", action="store_true", help="draw published networks beside the run")
    parser.add_argument("--watch", action="store_true", help="redraw the page until the sweep is finished")
    parser.add_argument("--for-launch", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.read(argv)
    if not arguments.runs:
        parser.error("no run folder given")
    if len(arguments.runs) > 1 and not arguments.out:
        raise user_error(
            f"{len(arguments.runs)} runs have no page in common: say where it shall be, as --out FILE.html"
        )
    if arguments.watch and (len(arguments.runs) > 1 or arguments.out):
        raise user_error(f"--watch draws RUN/{PAGE} of one run: leave out --out and the other runs")
    if arguments.watch and arguments.bits:
        raise user_error("--bits limits the printed answers, and --watch prints none: leave out one of them")
    if arguments.out and not os.path.isdir(os.path.dirname(arguments.out) or "."):
        raise user_error(f"--out must be a file in a folder that is there, got {one_line(arguments.out)}")
    if arguments.out and os.path.isdir(arguments.out):
        raise user_error(f"--out must be a file, got a folder: {one_line(arguments.out)}")
    if arguments.out and not arguments.out.endswith(".html"):
        raise user_error(f"--out must be a page, FILE.html, got {one_line(arguments.out)}")
    if arguments.out and not _is_free_for_page(Path(arguments.out)):
        raise user_error(f"--out must be a new file, or a report: {one_line(arguments.out)} holds something else")
    arguments.budget = parse_size(arguments.budget)
    arguments.bits = parse_bits(arguments.bits)
    return arguments


def _is_free_for_page(file: Path) -> bool:
    """Whether a page may be written there: nothing is, or a page of ours."""
    try:
        with file.open("rb") as page:
            return MARK.encode() in page.read(1000)
    except FileNotFoundError:
        return True
    except OSError as error:
        raise user_error(f"--out cannot be read: {one_line(str(error))}") from None


def parse_size(text: str | None) -> int | None:
    """A size as users write it in bytes: `4096`, `4KB`, `4KiB`, `1.5 MiB`; None as it is.

    Raises:
        SpecError: it is no size, or 0.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?) ?([a-z]*)", text.strip().lower())
    if found is None or found[2] not in UNIT_BYTES or not float(found[1]):
        raise user_error(f"--budget must be bytes, KB or KiB, such as 4096, 4KB or 4KiB, got {one_line(text)!r}")
    return int(float(found[1]) * UNIT_BYTES[found[2]])


def parse_bits(text: str | None) -> tuple[int, ...]:
    """Numbers of bits as users write them: `2` or `1,2`; none of None.

    Raises:
        SpecError: it is none.
    """
    if text is None:
        return ()
    if not re.fullmatch(r"\d{1,2}(,\d{1,2})*", text.strip()):
        raise user_error(
            f"--bits must be whole numbers with commas between, such as 2 or 1,2, got {one_line(text)!r}"
        )
    return tuple(sorted({int(part) for part in text.split(",")}))
