"""The arrows between the files of qdtune point one way, and what must not be imported or called is not.

`RULES` is the order of the rooms: a file may import only those above it, and never what is written beside it.
A new file has to be given its place there.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qdtune

PACKAGE = Path(qdtune.__file__).parent
RULES: dict[str, set[str]] = {
    "names": {"torch", "ray", "optuna", "pydantic", "numpy"},
    "machine": {"torch", "ray", "optuna", "pydantic", "numpy"},
    "reader": {"torch", "ray", "optuna", "pyarrow", "pydantic", "safetensors", "qdtune"},
    "ledger": {"torch", "ray", "optuna", "pydantic"},
    "rules": {"torch", "ray", "optuna"},
    "cli": {"torch", "ray", "optuna"},
    "yamlfile": {"torch", "ray", "optuna"},
    "schema": {"torch", "ray", "optuna"},
    "configuration": {"torch", "ray", "optuna"},
    "spec": {"torch", "ray", "optuna"},
    "plan": {"torch", "ray", "optuna"},
    "placement": {"torch", "ray", "optuna"},
    "storage": {"torch", "ray", "optuna", "qdtune"},
    "archive": {"torch", "ray", "optuna"},
    "warmups": {"torch", "ray", "optuna"},
    "pareto": {"torch", "ray", "optuna", "qdtune"},
    "data": {"ray"},
    "plugins": {"torch", "ray", "optuna", "pyarrow"},
    "decompose": {"ray", "pydantic", "qdtune.quantize"},
    "quantizer": {"ray", "pydantic", "optuna", "pyarrow"},
    "quantize": {"ray", "pydantic"},
    "models": {"ray", "pydantic", "qdtune.quantize"},
    "packed": {"ray", "optuna", "pyarrow", "pydantic"},
    "step": {"ray", "pydantic", "optuna", "pyarrow"},
    "compiled": {"ray", "pydantic", "optuna", "pyarrow"},
    "augment": {"ray", "pydantic", "optuna", "pyarrow"},
    "cohort": {"ray", "pydantic", "optuna", "pyarrow"},
    "train": {"ray", "optuna", "pyarrow"},
    "foreign": {"ray", "optuna", "pyarrow"},
    "probe": {"ray", "optuna", "pyarrow"},
    "tables": {"torch", "ray", "optuna"},
    "paired": {"torch", "ray", "optuna"},
    "pairs": {"torch", "ray", "optuna"},
    "comparisons": {"torch", "ray", "optuna"},
    "answers": {"torch", "ray", "optuna"},
    "parts": {"torch", "ray", "optuna"},
    "store": {"torch", "ray"},
    "results": {"torch", "ray", "optuna"},
    "progress": {"torch", "ray", "optuna"},
    "published": {"torch", "ray", "optuna"},
    "sheet": {"torch", "ray", "optuna"},
    "axes": {"torch", "ray", "optuna"},
    "figures": {"torch", "ray", "optuna"},
    "run": {"torch", "ray", "optuna"},
    "__init__": {"torch", "ray", "optuna", "pyarrow"},
    "samplers": {"torch", "ray"},
    "pruning": {"torch", "ray"},
    "study": {"torch", "ray"},
    "feed": {"torch", "ray", "optuna"},
    "trial": {"optuna"},
    "cluster": {"torch", "optuna"},
    "preflight": {"torch", "ray", "optuna"},
    "metrics": {"torch", "optuna"},
    "replay": {"torch", "ray", "optuna"},
    "verify": {"torch", "ray", "optuna"},
    "graph": {"torch", "ray", "optuna", "pyarrow"},
    "export": {"torch", "ray", "optuna"},
    "summary": {"torch", "ray", "optuna"},
    "page": {"torch", "ray", "optuna"},
    "watch": {"torch", "ray", "optuna"},
    "recorder": {"torch", "optuna"},
    "sweep": {"torch"},
    "session": {"torch", "ray", "optuna"},
    "report": {"torch", "ray", "optuna"},
    "launch": set(),
    "head": {"torch", "ray", "optuna"},
    "jobs": {"torch", "optuna"},
    "submit": {"torch", "ray", "optuna"},
    "fetch": {"torch", "ray", "optuna"},
    "__main__": set(),
}
# Pickles run code when they are read; a torn Tuner state starts over silently; a torch.autograd.Function gives zero
# gradients silently under compile(vmap(grad)). Import by name would hide an arrow from this test; what users name is
# imported in one room.
NEVER = {
    "pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "torch.load",
    "torch.autograd.Function",
    "marshal",
    "shelve",
    "pandas.read_pickle",
    "ray.cloudpickle",
    "ruamel.yaml.unsafe_load",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
    "ray.tune.Tuner.restore",
    "importlib.import_module",
}
ONLY = {"importlib.import_module": "plugins"}
NEVER_KEYWORDS = {("weights_only", False), ("allow_pickle", True), ("typ", "unsafe"), ("shell", True)}


def imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """The (local name, dotted name) of every import, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            source = ".".join(filter(None, ["qdtune" if node.level else "", node.module]))
            for alias in node.names:
                yield alias.asname or alias.name, f"{source}.{alias.name}"


def used(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that starts at an import, spelled in full: with `import torch as t`, t.load is torch.load."""
    roots = {local: name if local != name.split(".")[0] else local for local, name in imported(tree)}
    yield from (name for _, name in imported(tree))
    for node in ast.walk(tree):
        parts = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in roots:
            yield ".".join([roots[node.id], *reversed(parts)])


def within(name: str, banned: str) -> bool:
    return f"{name}.".startswith(f"{banned}.")


def faults(module: str, source: str) -> list[str]:
    """What the file `module` must not do and does, sorted; empty where all is well."""
    if module not in RULES:
        return [f"{module} has no place in RULES"]
    tree = ast.parse(source)
    above = list(RULES)[: list(RULES).index(module)]
    found = set()
    for _, name in imported(tree):
        found |= {f"{module} imports {banned}" for banned in RULES[module] if within(name, banned)}
        ours = next((other for other in RULES if within(name, f"qdtune.{other}")), None)
        if ours is not None and ours not in above:
            found.add(f"{module} imports {ours}, which is not above it")
    never = {banned for banned in NEVER if ONLY.get(banned) != module}
    found |= {f"{module} uses {banned}" for name in used(tree) for banned in never if within(name, banned)}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            if (node.arg, node.value.value) in NEVER_KEYWORDS:
                found.add(f"{module} uses {node.arg}={node.value.value!r}")
        elif isinstance(node, ast.Name) and node.id == "__import__":
            found.add(f"{module} uses __import__")
    return sorted(found)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_file_keeps_the_rules(path: Path) -> None:
    assert path.parent == PACKAGE, "the package is flat"
    assert faults(path.stem, path.read_text(encoding="utf-8")) == []


BAD = [
    ("newroom", "", "newroom has no place"),
    ("spec", "import torch", "spec imports torch"),
    ("plan", "def f():\n    import ray.tune", "plan imports ray"),
    ("ledger", "from optuna import trial", "ledger imports optuna"),
    ("store", "import torch.nn as nn", "store imports torch"),
    ("cohort", "import pyarrow.parquet as pq", "cohort imports pyarrow"),
    ("trial", "if True:\n    from optuna.trial import Trial", "trial imports optuna"),
    ("sweep", "import os, torch", "sweep imports torch"),
    ("models", "from qdtune.quantize import codes", "models imports qdtune.quantize"),
    ("models", "from qdtune import quantize", "models imports qdtune.quantize"),
    ("models", "from .quantize import codes", "models imports qdtune.quantize"),
    ("pareto", "from qdtune import __version__", "pareto imports qdtune"),
    ("decompose", "import qdtune.quantize as q", "decompose imports quantize, which is not above"),
    ("spec", "from . import plan", "spec imports plan, which is not above"),
    ("store", "def f():\n    from qdtune.launch import main", "store imports launch, which is not above"),
    ("store", "import qdtune.store", "store imports store, which is not above"),
    ("results", "from qdtune.study import Study", "results imports study, which is not above"),
    ("study", "from qdtune.feed import Feed", "study imports feed, which is not above"),
    ("pruning", "import torch", "pruning imports torch"),
    ("feed", "from optuna import create_study", "feed imports optuna"),
    ("replay", "from ray import tune", "replay imports ray"),
    ("launch", "import pickle", "launch uses pickle"),
    ("launch", "from cloudpickle import loads", "launch uses cloudpickle"),
    ("launch", "import dill as json", "launch uses dill"),
    ("launch", "import joblib.externals", "launch uses joblib"),
    ("cohort", "import torch\ntorch.load(path)", "cohort uses torch.load"),
    ("cohort", "import torch as t\nx = t.load", "cohort uses torch.load"),
    ("cohort", "from torch import load", "cohort uses torch.load"),
    ("cohort", "import torch\nclass S(torch.autograd.Function): ...", "cohort uses torch.autograd.Function"),
    ("cohort", "from torch import autograd\nclass S(autograd.Function): ...", "cohort uses torch.autograd.Function"),
    ("cohort", "import torch.autograd as ag\nclass S(ag.Function): ...", "cohort uses torch.autograd.Function"),
    ("cohort", "from torch.autograd import Function", "cohort uses torch.autograd.Function"),
    ("yamlfile", "import yaml\nyaml.load(text)", "yamlfile uses yaml.load"),
    ("yamlfile", "from yaml import unsafe_load\nunsafe_load(text)", "yamlfile uses yaml.unsafe_load"),
    ("yamlfile", "from ruamel.yaml import YAML\nYAML(typ='unsafe')", "yamlfile uses typ='unsafe'"),
    ("tables", "import pandas as pd\npd.read_pickle(path)", "tables uses pandas.read_pickle"),
    ("recorder", "import subprocess\nsubprocess.run(line, shell=True)", "recorder uses shell=True"),
    ("recorder", "from ray import cloudpickle", "recorder uses ray.cloudpickle"),
    ("sweep", "from ray import tune\ntune.Tuner.restore(path)", "sweep uses ray.tune.Tuner.restore"),
    ("sweep", "from ray.tune import Tuner\nTuner.restore(path)", "sweep uses ray.tune.Tuner.restore"),
    ("launch", "f(path, weights_only=False)", "launch uses weights_only=False"),
    ("data", "import numpy as np\nnp.load(path, allow_pickle=True)", "data uses allow_pickle=True"),
    ("spec", "import importlib\nimportlib.import_module('torch')", "spec uses importlib.import_module"),
    ("spec", "__import__('torch')", "spec uses __import__"),
]


@pytest.mark.parametrize(("module", "source", "fault"), BAD)
def test_rules_are_seen_broken(module: str, source: str, fault: str) -> None:
    assert any(found.startswith(fault) for found in faults(module, source)), faults(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("spec", "from qdtune.ledger import Ledger\nfrom qdtune import __version__, yamlfile"),
        ("spec", "import torchlike, rays"),
        ("yamlfile", "from ruamel.yaml import YAML\nyaml = YAML(typ='safe')\nyaml.load(text)"),
        ("trial", "import importlib.metadata\nimport torch, ray\nfrom . import cohort"),
        ("cohort", "f(weights_only=True, retain=False)"),
        ("plugins", "import importlib\nimportlib.import_module(name)"),
    ],
)
def test_rules_allow_what_is_allowed(module: str, source: str) -> None:
    assert faults(module, source) == []


HEAVY = {"torch", "torchvision", "ray", "optuna", "sklearn", "scipy", "pandas", "pyarrow"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        *((name, HEAVY) for name in ("__init__", "ledger", "spec", "plan", "pareto", "data")),
        ("store", {"torch", "ray", "optuna"}),
        ("results", {"torch", "ray", "optuna"}),
        ("run", {"torch", "ray", "optuna"}),
        ("replay", {"torch", "ray"}),
        ("reader", HEAVY),
        ("export", {"torch", "ray", "optuna", "onnx"}),
    ],
)
def test_import_loads_nothing_heavy(module: str, heavy: set[str]) -> None:
    code = f"import sys, qdtune.{module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
