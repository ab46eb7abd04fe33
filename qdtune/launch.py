"""`python -m qdtune.launch SWEEP` is `qdtune launch SWEEP`, for ever."""

from qdtune.shadows import stop_if_hidden

if __name__ == "__main__":
    stop_if_hidden()  # before an import that a file in the current folder could hide

import sys

from qdtune.commands.launch import main

if __name__ == "__main__":
    sys.exit(main())
