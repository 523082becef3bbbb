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
    """For each role and phase the bytes of one process: tensors on its GPU, and on the host.

    A supervised command has one process on each GPU, whatever models are in it: all of its roles have the same.
    """
    roles = {model.role for model in plan.setup.models} if plan.setup.command != "rl" else set()
    found: dict[tuple[Role, Phase], tuple[int, int]] = {}
    for term in plan.memory.terms:
        if term.where == "gpu":
            size = (0 if term.name in NOT_TENSORS else term.bytes, 0)
        else:
            others = term.role == "driver" and term.name in NOT_THE_DRIVER
            size = (0, 0 if others else term.bytes // _processes(plan.setup, term))
        for role in roles or {term.role}:
            for phase in term.phases:
                gpu, host = found.get((role, phase), (0, 0))
                found[role, phase] = (gpu + size[0], host + size[1])
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
