"""What each rule of early stopping saves and loses on the recorded sweeps in `tests/data`.

    python tests/benchmarks/rules.py [--orders 300] [--recording mnist ...] [--rule RULE ...] [--jobs 2]

For each recording and rule, simulated sweeps with 2, 4 and 8 trials at a time, each in as many shuffled orders. Saved
is the share of QAT epochs that are not trained, if released trials go on where they stopped (in brackets: if they
start again); lost are members of the front that are not trained to their end. Both are means over all sweeps; the
worst is the mean of the worst of the three numbers of trials at a time. Kept is the smallest hypervolume.
"""

from __future__ import annotations

import argparse
import statistics
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from behind import AT_ONCE, RECORDINGS
from common import machine, publish, table

from qdtune.commands.replay import with_pruner
from qdtune.search.simulation import Score, score

RULES = (
    "{type: pareto, margin: 0.005, risk: 0.1}",
    "{type: pareto, margin: 0.01, risk: null}",
    "{type: pareto, margin: 0.02, risk: null}",
    "{type: pareto, margin: 0, risk: 0.1}",
    "{type: pareto, margin: 0, risk: 0.3}",
    "{type: pareto, margin: 0, risk: 0.05}",
    "{type: successive_halving, scope: size}",
    "{type: hyperband, scope: size}",
    "{type: median, scope: size}",
    "{type: median, scope: all}",
)
CHUNK = 20  # simulated sweeps of one task of a process


def judge(recording: str, rule: str, at_once: int, orders: range) -> Score:
    """The results of a rule in some orders of a recording.

    Args:
        recording: a key of `RECORDINGS`.
        rule: as in `early_terminate`.
        at_once: trials at a time.
        orders: the numbers of the orders.
    """
    read, dataset, *_ = RECORDINGS[recording]
    spec, found = read(dataset)
    return score(with_pruner(spec, rule), found, at_once, orders, "shuffled")


def cells(scores: list[Score]) -> list[str]:
    """The cells of a rule, of its scores for each number of trials at a time."""
    whole = Score()
    for one in scores:
        whole += one
    return [
        f"{statistics.mean(whole.resumed):.1%} ({statistics.mean(whole.saved):.1%})",
        f"{statistics.mean(whole.lost):.2f}",
        f"{max(statistics.mean(one.lost) for one in scores):.2f}",
        f"{sum(lost > 0 for lost in whole.lost) / len(whole.lost):.0%}",
        f"{min(whole.kept):.2%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--orders", type=int, default=300, help="shuffled orders for each number of trials at a time")
    parser.add_argument("--recording", nargs="+", default=list(RECORDINGS), choices=list(RECORDINGS))
    parser.add_argument("--rule", nargs="+", default=list(RULES), help="as in early_terminate")
    parser.add_argument("--jobs", type=int, default=2, help="number of processes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder for the JSON file")
    given = parser.parse_args()
    about, rows = machine(), []
    with ProcessPoolExecutor(given.jobs) as pool:
        parts = {
            (recording, rule, n): [
                pool.submit(judge, recording, rule, n, range(i, min(i + CHUNK, given.orders)))
                for i in range(0, given.orders, CHUNK)
            ]
            for recording in given.recording
            for rule in given.rule
            for n in AT_ONCE
        }
        for recording in given.recording:
            for rule in given.rule:
                scores = []
                for n in AT_ONCE:
                    whole = Score()
                    for part in parts[recording, rule, n]:
                        whole += part.result()
                    scores.append(whole)
                rows.append([recording, rule, *cells(scores)])
                print(*rows[-1], sep=" | ", flush=True)
    header = ["recording", "rule", "saved", "lost", "at worst", "orders that lose", "kept, least"]
    publish("rules", given.out, {"orders": given.orders, "rows": rows}, table(header, rows), about)


if __name__ == "__main__":
    main()
