"""All benchmarks that need nothing but this machine, one after the other: `python tests/benchmarks --data-dir DIR`.

Each is a command of its own, with more options: replica.py, cnn.py, augment.py, sweep.py, overhead.py, memory.py.
gpu.py wants a GPU, and samplers.py the folder of a finished sweep.
"""

import subprocess
import sys
from pathlib import Path

for name in ("replica", "cnn", "augment", "overhead", "memory", "sweep"):
    print(f"\n## {name}\n", flush=True)
    subprocess.run([sys.executable, Path(__file__).parent / f"{name}.py", *sys.argv[1:]], check=True)
