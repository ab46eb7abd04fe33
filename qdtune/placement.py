"""How trials share a machine, and what the machine has for them."""

from __future__ import annotations

from dataclasses import dataclass

from qdtune.rules import Problem, SpecError
from qdtune.schema import Resources

UNIT = 10_000  # Ray counts resources in these parts of one


@dataclass(frozen=True)
class Placement:
    """How trials share a machine.

    Attributes:
        gpu, cpu: what one trial holds.
        per_gpu: how many trials share one GPU; 0 without GPUs, or where a trial takes several.
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


def placement(resources: Resources, cpus: int, gpus: int, max_concurrent: int | None = None) -> Placement:
    """How trials that ask for `resources` share `cpus` cores and `gpus` GPUs.

    Without a GPU they run on the CPU alone, and a note says so. All sums are in whole 1/10000ths, as Ray's are.

    Raises:
        SpecError: one trial asks for more than there is.
    """
    gpu, cpu = round(resources.gpu * UNIT), round(resources.cpu * UNIT)
    notes = []
    problems = []
    if cpu > cpus * UNIT:
        problems.append(_too_much("cpu", resources.cpu, cpus))
    if gpu > UNIT and 0 < gpus * UNIT < gpu:
        problems.append(_too_much("gpu", resources.gpu, gpus))
    if problems:
        raise SpecError(problems)
    by_cpu = cpus * UNIT // cpu
    concurrent, per_gpu = by_cpu, 0
    if gpu and not gpus:
        notes.append(f"no GPU here: trials run on CPU only, and resources.gpu {resources.gpu:g} is not used")
        gpu = 0
    elif gpu:
        per_gpu = UNIT // gpu
        by_gpu = gpus * per_gpu if per_gpu else gpus * UNIT // gpu
        concurrent = min(by_cpu, by_gpu)
        notes += _fraction_notes(gpu, per_gpu)
        if by_cpu < by_gpu:
            notes.append(f"{by_gpu} trials fit on the GPUs, but {cpus} CPUs let only {by_cpu} run at once")
    if max_concurrent is not None:
        concurrent = min(concurrent, max_concurrent)
    return Placement(gpu / UNIT, cpu / UNIT, per_gpu, concurrent, tuple(notes))


def _too_much(kind: str, asked: float, there: int) -> Problem:
    what = f"{asked:g} {kind.upper()}s per trial asked, largest node has {there}"
    return Problem(None, ("resources", kind), what)


def _fraction_notes(gpu: int, per_gpu: int) -> list[str]:
    """Says so where a fraction of a GPU leaves some of it idle, and which would not."""
    given = f"resources.gpu {gpu / UNIT:g}"
    if gpu >= UNIT or UNIT - gpu * per_gpu <= UNIT // 100:
        return []
    one_more = UNIT // (per_gpu + 1)
    if gpu <= 1.1 * one_more:  # just too large for one more trial
        return [f"{given} lets only {per_gpu} share a GPU; 1/{per_gpu + 1} lets {per_gpu + 1}"]
    idle = 100 - 100 * gpu * per_gpu // UNIT
    better = f"1/{per_gpu}" if per_gpu > 1 else "1"
    return [f"{given} leaves {idle} % of each GPU idle, with {per_gpu} trial(s) on it; {better} uses all of it"]
