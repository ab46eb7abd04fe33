"""`python -m qdtune.launch SWEEP` is `qdtune launch SWEEP`, for ever."""

import sys

from qdtune.commands.launch import main

if __name__ == "__main__":
    sys.exit(main())
