"""What a plan says of single processes, to be held against what they measure of themselves."""

from __future__ import annotations

from openrlhf_ext.plan.types import Phase, Plan, Role, Setup, Term

NOT_TENSORS = frozenset(
    {"CUDA context", "NCCL buffers", "allocator rounding and fragmentation", "kept by torch's allocator"}
)
"""On the GPU, and none of what torch counts as allocated."""
NOT_THE_DRIVER = frozenset({"Ray", "reward processes"})
"""Of the driver's terms, those of other processes."""


def predicted(plan: Plan) -> dict[tuple[Role, Phase], tuple[int, int]]:
    """For each role and phase the bytes of one process: tensors on its GPU, and on the host."""
    found: dict[tuple[Role, Phase], tuple[int, int]] = {}
    for term in plan.memory.terms:
        if term.name in NOT_TENSORS or (term.role == "driver" and term.name in NOT_THE_DRIVER):
            continue
        size = term.bytes if term.where == "gpu" else term.bytes // _processes(plan.setup, term)
        for phase in term.phases:
            gpu, host = found.get((term.role, phase), (0, 0))
            found[term.role, phase] = (gpu + size, host) if term.where == "gpu" else (gpu, host + size)
    return found


def terms_of(plan: Plan, role: str, phase: str) -> list[Term]:
    """The terms of a role in a phase (of all roles, where the plan has none of this name), the largest first."""
    there = [term for term in plan.memory.terms if phase in term.phases]
    there = [term for term in there if term.role == role] or there
    return sorted(there, key=lambda term: -term.bytes)


def _processes(setup: Setup, term: Term) -> int:
    """How many processes of a machine share a term of its host."""
    processes: dict[str, int] = {run.role: run.ranks for run in setup.models}
    processes |= {run.role: run.count * run.tensor_parallel for run in setup.engines}
    hardware = setup.hardware
    if hardware.nodes == 1:
        return processes.get(term.role, 1)
    each = -(-processes.get(term.role, 1) // hardware.nodes)
    return min(processes.get(term.role, 1), max(hardware.count, each))
