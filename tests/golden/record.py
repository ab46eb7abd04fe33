"""Records what the golden tests hold: `python -m tests.golden.record [WHAT ...]`, WHAT being ids, words or numbers.

To be run where a difference is wanted, and committed with the change that makes it.
"""

import json
import sys

from tests.golden import trees


def main(argv: list[str]) -> None:
    for what in argv or ["ids", "numbers", "words"]:
        if what == "ids":
            trees.IDS.write_text("\n".join(trees.ids()) + "\n")
        elif what == "numbers":
            trees.record_runs()
            trees.NUMBERS.write_text(json.dumps(trees.numbers_here(), indent=1) + "\n")
        elif what == "words":
            trees.WORDS.mkdir(exist_ok=True)
            for name, text in trees.words().items():
                (trees.WORDS / f"{name}.txt").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
