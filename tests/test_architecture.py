"""The house: which package may import which, where each heavy dependency lives, and what must not be called at all.

`PACKAGES` is the list of floors, the highest first: a package may import from those that its entry names, and there
is no other arrow. A test holds the table of `docs/architecture.md` to these lists.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import qdtune

PACKAGE = Path(qdtune.__file__).parent
ROOT = PACKAGE.parent
# `sweep` and `search` make a run, `analysis` and `report` read one: they share what is below both and nothing else.
READING, MAKING = {"store", "spec", "ground"}, {"training", "model", "store", "spec", "ground"}
PACKAGES: dict[str, set[str]] = {
    "commands": {"remote", "report", "analysis", "sweep", "search", *MAKING},
    "remote": {"sweep", "store", "ground"},
    "report": {"analysis", *READING},
    "analysis": READING,
    "sweep": {"search", *MAKING},
    "search": {"store", "spec", "ground"},
    "training": {"model", "spec", "ground"},
    "model": {"spec", "ground"},
    "store": {"spec", "ground"},
    "spec": {"ground"},
    "ground": set(),
}
# The ground: files beside the packages, and the data sets. The last three are doors to what is above.
GROUND = {"messages", "terminal", "machine", "plugins", "shadows", "reader", "pareto", "reach", "datasets"}
DOORS = {"__init__", "__main__", "launch"}
# The only packages that import them, wherever in a file; where one uses another, both are its home.
HOMES = {
    "torch": {"training", "model"},
    "ray": {"sweep", "remote"},
    "optuna": {"search"},
    "pyarrow": {"store"},
    "altair": {"report"},
    "vl_convert": {"report"},
    "pydantic": {"spec"},
    "pydantic_core": {"spec"},
    "ruamel": {"spec"},
    "scipy": {"analysis", "store"},
    "onnx": {"model"},
    "safetensors": {"model", "training"},
    "rich": {"terminal"},
    "torchvision": {"datasets"},
    "sklearn": {"datasets"},
    "mlflow": {"sweep"},
    "wandb": {"sweep"},
    "tensorboardX": {"sweep"},
    "aiohttp": {"remote"},
    "requests": {"remote"},
}
# Of single files: what they must do without beyond that. `reader` is copied to where models go.
ALONE = {"reader": {"numpy"}, "pareto": {"numpy"}}
# Pickles run code when they are read; a torn Tuner state starts over silently; a torch.autograd.Function gives zero
# gradients silently under compile(vmap(grad)), but not in steps that are not compiled, where `gradients` has them.
# Import by name would hide an arrow from this test; what users name is imported in one room, and verbs in another, to
# which nothing points.
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
    "pkgutil.resolve_name",
}
ONLY = {
    "importlib.import_module": "qdtune.plugins",
    "pkgutil.resolve_name": "qdtune.__main__",
    "torch.autograd.Function": "qdtune.training.gradients",
}
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


def dotted(path: Path) -> str:
    """The name under which a file of the package is imported."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def floor(module: str) -> str:
    """The package of a module of ours: `ground` for those on it, `door` for the three that are above all."""
    first = module.split(".")[1] if "." in module else "__init__"
    return "ground" if first in GROUND else "door" if first in DOORS else first


def home(module: str) -> str:
    """As `floor`, but each part of the ground is a home of its own."""
    first = module.split(".")[1] if "." in module else "__init__"
    return first if first in GROUND else floor(module)


def ours(name: str) -> str | None:
    """The module of ours that an imported name is, or is in; None where it is somebody else's."""
    parts = name.split(".")
    if parts[0] != "qdtune":
        return None
    for n in range(len(parts), 1, -1):
        path = ROOT.joinpath(*parts[:n])
        if path.with_suffix(".py").is_file() or (path / "__init__.py").is_file():
            return ".".join(parts[:n])
    return "qdtune"


def faults(module: str, source: str) -> list[str]:
    """What the file `module` must not do and does, sorted; empty where all is well."""
    here = floor(module)
    if here not in (*PACKAGES, "door"):
        return [f"{module} has no place in PACKAGES"]
    tree = ast.parse(source)
    found = set()
    for _, name in imported(tree):
        root = name.split(".")[0]
        if root in HOMES and home(module) not in HOMES[root]:
            found.add(f"{module} imports {root}, whose home is {' and '.join(sorted(HOMES[root]))}")
        if home(module) in ALONE and root not in {*ALONE[home(module)], *sys.stdlib_module_names}:
            found.add(f"{module} imports {root}")
        target = ours(name)
        there = (
            "door" if target == "qdtune" and not name.endswith("__version__") else floor(target or "qdtune.messages")
        )
        if name == "qdtune.__version__" or target is None or here == "door":
            continue
        if there != here and there not in PACKAGES[here]:
            found.add(f"{module} imports {target}: no arrow from {here} to {there}")
    never = {banned for banned in NEVER if ONLY.get(banned) != module}
    found |= {f"{module} uses {banned}" for name in used(tree) for banned in never if within(name, banned)}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            if (node.arg, node.value.value) in NEVER_KEYWORDS:
                found.add(f"{module} uses {node.arg}={node.value.value!r}")
        elif isinstance(node, ast.Name) and node.id == "__import__":
            found.add(f"{module} uses __import__")
    return sorted(found)


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=dotted)
def test_file_keeps_the_rules(path: Path) -> None:
    assert faults(dotted(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", sorted((ROOT / "tests" / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_use_what_is_public(path: Path) -> None:
    """They run seldom, so that no test tells when something private that they use is gone."""
    names = {name for name in used(ast.parse(path.read_text())) if within(name, "qdtune")}
    assert [name for name in sorted(names) if any(part.startswith("_") for part in name.split("."))] == []


def test_packages_are_few_and_their_arrows_make_no_cycle() -> None:
    assert len([name for name in PACKAGES if name != "ground"] + ["datasets"]) <= 11
    order = list(TopologicalSorter(PACKAGES).static_order())  # raises where there is a cycle
    assert order[0] == "ground"
    floors = list(PACKAGES)
    assert all(floors.index(below) > floors.index(name) for name, those in PACKAGES.items() for below in those)


def test_packages_are_empty_at_their_door() -> None:
    """What stands in an `__init__` is imported with every file beside it, and light imports were light no longer."""
    for path in PACKAGE.rglob("*/__init__.py"):
        assert path.read_text() == "", path


def test_files_within_a_package_import_each_other_one_way() -> None:
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_once = ast.Module([node for node in tree.body if not isinstance(node, ast.If)], [])
        targets = {ours(name) for _, name in imported(at_once)} - {None, "qdtune", dotted(path)}
        arrows[dotted(path)] = {target for target in targets if target}
    list(TopologicalSorter(arrows).static_order())


BAD = [
    ("newroom.file", "", "newroom.file has no place"),
    ("spec.plan", "import torch", "spec.plan imports torch"),
    ("spec.plan", "def f():\n    import ray.tune", "spec.plan imports ray"),
    ("spec.sizes", "from optuna import trial", "spec.sizes imports optuna"),
    ("store.store", "import torch.nn as nn", "store.store imports torch"),
    ("training.cohort", "import pyarrow.parquet as pq", "training.cohort imports pyarrow"),
    ("sweep.driver", "if True:\n    from optuna.trial import Trial", "sweep.driver imports optuna"),
    ("sweep.driver", "import os, torch", "sweep.driver imports torch"),
    ("search.study", "import torch", "search.study imports torch"),
    ("analysis.run", "import altair", "analysis.run imports altair"),
    ("model.packed", "import pydantic", "model.packed imports pydantic"),
    ("messages", "import rich.console", "messages imports rich"),
    ("terminal", "import torchvision", "terminal imports torchvision"),
    ("reader", "import safetensors", "reader imports safetensors"),
    ("reader", "from qdtune.spec import sizes", "reader imports qdtune"),
    ("pareto", "from qdtune import __version__", "pareto imports qdtune"),
    ("spec.plan", "from qdtune.store.store import Store", "spec.plan imports qdtune.store.store: no arrow"),
    ("store.store", "def f():\n    from qdtune import load", "store.store imports qdtune: no arrow"),
    ("model.packed", "from qdtune.training import train", "model.packed imports qdtune.training.train: no"),
    ("model.packed", "import qdtune.store.folder", "model.packed imports qdtune.store.folder: no arrow"),
    ("analysis.run", "from qdtune.search.study import Study", "analysis.run imports qdtune.search.study"),
    ("report.page", "from qdtune.sweep import progress", "report.page imports qdtune.sweep.progress: no"),
    ("sweep.session", "from qdtune.report.page import page", "sweep.session imports qdtune.report.page"),
    ("search.study", "from qdtune.training.step import Shape", "search.study imports qdtune.training.step"),
    ("remote.archive", "from qdtune.commands import launch", "remote.archive imports qdtune.commands.laun"),
    ("messages", "from qdtune.spec.axes import AXES", "messages imports qdtune.spec.axes: no arrow"),
    ("launch", "import pickle", "launch uses pickle"),
    ("launch", "from cloudpickle import loads", "launch uses cloudpickle"),
    ("launch", "import dill as json", "launch uses dill"),
    ("launch", "import joblib.externals", "launch uses joblib"),
    ("training.cohort", "import torch\ntorch.load(path)", "training.cohort uses torch.load"),
    ("training.cohort", "import torch as t\nx = t.load", "training.cohort uses torch.load"),
    ("training.cohort", "from torch import load", "training.cohort uses torch.load"),
    ("model.q", "import torch\nclass S(torch.autograd.Function): ...", "model.q uses torch.autograd.Func"),
    ("model.q", "from torch import autograd\nclass S(autograd.Function): ...", "model.q uses torch.autog"),
    ("model.q", "import torch.autograd as ag\nclass S(ag.Function): ...", "model.q uses torch.autograd"),
    ("model.q", "from torch.autograd import Function", "model.q uses torch.autograd.Function"),
    ("spec.yaml_reader", "import yaml\nyaml.load(text)", "spec.yaml_reader uses yaml.load"),
    ("spec.yaml_reader", "from yaml import unsafe_load\nunsafe_load(t)", "spec.yaml_reader uses yaml.un"),
    ("spec.yaml_reader", "from ruamel.yaml import YAML\nYAML(typ='unsafe')", "spec.yaml_reader uses typ"),
    ("store.parquet", "import pandas as pd\npd.read_pickle(path)", "store.parquet uses pandas.read_pickle"),
    ("sweep.recorder", "import subprocess\nsubprocess.run(x, shell=True)", "sweep.recorder uses shell=Tr"),
    ("sweep.recorder", "from ray import cloudpickle", "sweep.recorder uses ray.cloudpickle"),
    ("sweep.driver", "from ray import tune\ntune.Tuner.restore(p)", "sweep.driver uses ray.tune.Tuner.res"),
    ("sweep.driver", "from ray.tune import Tuner\nTuner.restore(p)", "sweep.driver uses ray.tune.Tuner.res"),
    ("launch", "f(path, weights_only=False)", "launch uses weights_only=False"),
    ("datasets.load", "import numpy as np\nnp.load(p, allow_pickle=True)", "datasets.load uses allow_pic"),
    ("spec.plan", "import importlib\nimportlib.import_module('x')", "spec.plan uses importlib.import_mod"),
    ("spec.plan", "__import__('torch')", "spec.plan uses __import__"),
    ("spec.plan", "from pkgutil import resolve_name", "spec.plan uses pkgutil.resolve_name"),
]


@pytest.mark.parametrize(("module", "source", "fault"), BAD)
def test_rules_are_seen_broken(module: str, source: str, fault: str) -> None:
    found = faults(f"qdtune.{module}", source)
    assert any(one.startswith(f"qdtune.{fault}") for one in found), found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("qdtune.spec.plan", "from qdtune.spec.sizes import Sizes\nfrom qdtune import __version__, messages"),
        ("qdtune.spec.plan", "import torchlike, rays"),
        ("qdtune.spec.yaml_reader", "from ruamel.yaml import YAML\nyaml = YAML(typ='safe')\nyaml.load(text)"),
        ("qdtune.sweep.driver", "import importlib.metadata\nimport ray\nfrom qdtune.search import study"),
        ("qdtune.training.cohort", "f(weights_only=True, retain=False)"),
        ("qdtune.plugins", "import importlib\nimportlib.import_module(name)"),
        ("qdtune.commands.report", "from qdtune.report import page\nfrom qdtune.sweep import session"),
    ],
)
def test_rules_allow_what_is_allowed(module: str, source: str) -> None:
    assert faults(module, source) == []


HEAVY = {"torch", "torchvision", "ray", "optuna", "sklearn", "scipy", "pandas", "pyarrow"}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        *((name, HEAVY) for name in ("qdtune", "qdtune.messages", "qdtune.reader", "qdtune.pareto")),
        *((f"qdtune.spec.{name}", HEAVY) for name in ("axes", "sizes", "sweep_file", "plan")),
        ("qdtune.datasets.load", HEAVY),
        ("qdtune.commands.launch", HEAVY),
        ("qdtune.model.signed_file", HEAVY),
        ("qdtune.store.store", {"torch", "ray", "optuna"}),
        ("qdtune.store.results", {"torch", "ray", "optuna"}),
        ("qdtune.analysis.run", {"torch", "ray", "optuna", "altair"}),
        ("qdtune.commands.replay", {"torch", "ray"}),
        ("qdtune.commands.api", {"torch", "ray", "optuna", "altair"}),
        ("qdtune.commands.export", {"torch", "ray", "optuna", "onnx"}),
        ("qdtune.sweep.trainable", {"torch", "optuna"}),
    ],
)
def test_import_loads_nothing_heavy(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_map_in_the_docs_is_these_lists():
    rows = {}
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].strip("`/") in PACKAGES:
            rows[cells[0].strip("`/")] = cells
    assert list(rows) == list(PACKAGES)
    for package, (_, _, imports, libraries) in rows.items():
        named = set(re.findall(r"\w+", imports))
        below = set(list(PACKAGES)[list(PACKAGES).index(package) + 1 :])
        assert (below if imports == "all below" else named) == PACKAGES[package]
        files = {"terminal", "datasets"} if package == "ground" else {package}
        homes = {library for library, where in HOMES.items() if where & files}
        assert set(re.findall(r"\w+", libraries)) == homes
