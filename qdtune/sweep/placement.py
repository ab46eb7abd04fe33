"""How trials share machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qdtune.messages import Problem, SpecError
from qdtune.spec.groups import Resources

UNIT = 10_000  # Ray counts resources in 1/10000ths
MEMORY_SHARE = 0.9  # the share of a GPU's memory that its trials may fill together
MAX_SHARERS = 32  # of one GPU; each is a process with a CPU and about 0.5 GB of GPU memory


class Node(NamedTuple):
    """One machine: its CPUs and GPUs."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True)
class Placement:
    """How trials share one machine or many.

    Attributes:
        gpu, cpu: the GPUs and CPUs of one trial.
        per_gpu: how many trials share one GPU; 0 without GPUs, or if a trial takes several.
        concurrent: how many trials run at once.
        notes: lines for the user.
    """

    gpu: float
    cpu: float
    per_gpu: int
    concurrent: int
    notes: tuple[str, ...]

    def waves(self, trials: int) -> int:
        """How many times the machine is filled until `trials` of them have run."""
        return -(-trials // self.concurrent)

    def at_once(self, nodes: Sequence[Node]) -> int:
        """How many such trials have room on these machines."""
        return sum(_rooms(nodes, round(self.gpu * UNIT), round(self.cpu * UNIT)))


def check_fits(resources: Resources, nodes: Sequence[Node]) -> None:
    """Checks that one of these machines has room for a trial; a trial cannot span machines.

    Raises:
        SpecError: it asks for more than any node has.
    """
    gpu, cpu = _asked(resources, nodes)
    cpus, gpus = (max(each) for each in zip(*nodes, strict=True))
    problems = []
    if cpu > cpus * UNIT:
        problems.append(_too_much("cpu", resources.cpu, cpus))
    if gpu > UNIT and 0 < gpus * UNIT < gpu:
        problems.append(_too_much("gpu", gpu / UNIT, gpus))
    if not problems and not sum(_rooms(nodes, gpu, cpu)):
        what = f"{resources.cpu:g} CPUs and {gpu / UNIT:g} GPUs per trial asked, and no node has both"
        problems.append(Problem(None, ("resources",), what))
    if problems:
        raise SpecError(problems)


def place_trials(resources: Resources, nodes: Sequence[Node], max_concurrent: int | None = None) -> Placement:
    """How trials that ask for `resources` share some machines.

    If no machine has a GPU, trials run on CPUs, and a note says so. All sums are in whole 1/10000ths, as in Ray. The
    share `auto` counts as a whole GPU until it has been measured (`gpu_share`).

    Raises:
        SpecError: one trial asks for more than any node has.
    """
    check_fits(resources, nodes)
    gpu, cpu = _asked(resources, nodes)
    notes, per_gpu = [], 0
    if resources.gpu and not gpu:
        asked = "auto" if resources.gpu == "auto" else f"{resources.gpu:g}"
        is_named = "gpu" in resources.model_fields_set
        unused = f", and resources.gpu {asked} is not used" if is_named else ""
        notes.append(f"no GPU here: trials run on CPU only{unused}")
    rooms = _rooms(nodes, gpu, cpu)
    if gpu:
        per_gpu = UNIT // gpu
        by_gpu = [_by_gpu(node, gpu) for node in nodes]
        notes += _fraction_notes(gpu, per_gpu)
        if resources.gpu == "auto":
            notes.append("gpu: auto: how many trials share a GPU is measured on one of them when the sweep starts")
        if sum(rooms) < sum(by_gpu):
            there = sum(node.cpus for node in nodes if node.gpus)
            notes.append(f"{sum(by_gpu)} trials fit on the GPUs, but {there} CPUs let only {sum(rooms)} run at once")
    if idle := sum(not room and node.cpus > 0 for room, node in zip(rooms, nodes, strict=True)):
        share = f"{gpu / UNIT:g} GPU and {cpu / UNIT:g} CPU" if gpu else f"{cpu / UNIT:g} CPU"
        notes.append(f"{idle} of {len(nodes)} nodes take no trial, which holds {share}")
    concurrent = sum(rooms) if max_concurrent is None else min(sum(rooms), max_concurrent)
    return Placement(gpu / UNIT, cpu / UNIT, per_gpu, concurrent, tuple(notes))


def _asked(resources: Resources, nodes: Sequence[Node]) -> tuple[int, int]:
    """The GPUs and CPUs of one trial, in 1/10000ths; no GPU if no node has one."""
    gpu = UNIT if resources.gpu == "auto" else round(resources.gpu * UNIT)
    return (gpu if any(node.gpus for node in nodes) else 0), round(resources.cpu * UNIT)


def _rooms(nodes: Sequence[Node], gpu: int, cpu: int) -> list[int]:
    """How many trials have room on each node, given the 1/10000ths of a GPU and of a CPU that each takes."""
    by_cpu = [node.cpus * UNIT // cpu for node in nodes]
    return [min(n, _by_gpu(node, gpu)) for n, node in zip(by_cpu, nodes, strict=True)] if gpu else by_cpu


def _by_gpu(node: Node, gpu: int) -> int:
    return node.gpus * (UNIT // gpu) if gpu <= UNIT else node.gpus * UNIT // gpu


@dataclass(frozen=True)
class Need:
    """The need of one trial, measured alone on a GPU.

    Attributes:
        memory: bytes in use, including those of the process itself.
        total: bytes of the GPU.
        busy: share of the time in which the GPU worked, 0..1.
        most: trials per GPU that the CPUs suffice for.
    """

    memory: int
    total: int
    busy: float
    most: int = MAX_SHARERS

    @property
    def sharers(self) -> int:
        """How many such trials share a GPU: enough to keep it busy, few enough that their memory peaks fit."""
        by_memory = int(MEMORY_SHARE * self.total / self.memory)
        by_time = math.ceil(1 / max(self.busy, 1 / MAX_SHARERS))
        return max(1, min(by_memory, by_time, self.most, MAX_SHARERS))

    @property
    def gpu(self) -> float:
        """The share of each trial, as Ray counts it."""
        return UNIT // self.sharers / UNIT

    def __str__(self) -> str:
        share = f"1/{self.sharers}" if self.sharers > 1 else "1"
        took = f"{self.memory / 2**20:,.0f} of {self.total / 2**20:,.0f} MiB"
        return f"gpu: auto: one trial took {took} and kept the GPU busy {self.busy:.0%} of the time: {share} each"


def _too_much(kind: str, asked: float, there: int) -> Problem:
    what = f"{asked:g} {kind.upper()}s per trial asked, largest node has {there}"
    return Problem(None, ("resources", kind), what)


def _fraction_notes(gpu: int, per_gpu: int) -> list[str]:
    """A note if a fraction of a GPU leaves part of it idle, with a better fraction."""
    given = f"resources.gpu {gpu / UNIT:g}"
    if gpu >= UNIT or UNIT - gpu * per_gpu <= UNIT // 100:
        return []
    one_more = UNIT // (per_gpu + 1)
    if gpu <= 1.1 * one_more:  # just too large for one more trial
        return [f"{given} lets only {per_gpu} share a GPU; 1/{per_gpu + 1} lets {per_gpu + 1}"]
    idle = 100 - 100 * gpu * per_gpu // UNIT
    better = f"1/{per_gpu}" if per_gpu > 1 else "1"
    return [f"{given} leaves {idle} % of each GPU idle, with {per_gpu} trial(s) on it; {better} uses all of it"]
