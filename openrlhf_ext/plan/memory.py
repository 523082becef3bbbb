"""All terms of memory of a setup, and what they come to: for each phase on one GPU of each pool, and on a machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from openrlhf_ext.errors import ResourceError
from openrlhf_ext.plan.answers import answer_terms
from openrlhf_ext.plan.engines import EVER, bucket_terms, engine_memory, engine_terms, misfit
from openrlhf_ext.plan.layout import layout_of
from openrlhf_ext.plan.moments import transient_terms
from openrlhf_ext.plan.parameters import adapter_parameters
from openrlhf_ext.plan.processes import driver_terms, fragmentation, kept_by_torch, process_terms
from openrlhf_ext.plan.setup_supervised import reference_strategy
from openrlhf_ext.plan.states import state_terms
from openrlhf_ext.plan.types import BYTES, Memory, ModelRun, Phase, PhasePeak, Role, Setup, Term

PHASES: dict[str, tuple[Phase, ...]] = {
    "rl": ("load", "generate", "score", "train", "publish", "save"),
    "sft": ("load", "train", "save", "evaluate"),
    "rm": ("load", "train", "save", "evaluate"),
    "dpo": ("load", "train", "save", "evaluate"),
}


def memory_of(setup: Setup) -> Memory:
    """Every term, the peaks they add up to, and what the engines' cache has room for.

    Raises nothing: what does not fit is told by `Memory.fits` and `Memory.misfits`.
    """
    hardware = setup.hardware
    phases = PHASES[setup.command]
    own = [*_model_terms(setup), *_engine_terms(setup)]
    terms = _on_a_machine(setup, [*own, *kept_by_torch(setup, own), *process_terms(setup)])
    terms = [replace(term, phases=term.phases.intersection(phases)) for term in (*terms, *driver_terms(setup))]
    terms = [term for term in terms if term.bytes and term.phases]
    peaks = []
    for phase in phases:
        here = [term for term in terms if phase in term.phases]
        host = sum(term.bytes for term in here if term.where == "host")
        for pool in setup.pools:
            gpu = sum(term.bytes for term in here if term.where == "gpu" and term.pool == pool)
            peaks.append(PhasePeak(phase, pool, gpu, host))
    engine = next((run for run in setup.engines if run.role == "engines"), None)
    room = engine_memory(engine, hardware) if engine is not None else None
    return Memory(
        terms=tuple(terms),
        peaks=tuple(peaks),
        gpu_limit=hardware.card.bytes if hardware.card is not None else None,
        host_limit=hardware.host_bytes,
        kv_tokens=room.tokens if room else None,
        kv_sequences=room.sequences if room else None,
        misfits=tuple(_misfits(setup)),
    )


def _model_terms(setup: Setup) -> Iterator[Term]:
    for run in setup.models:
        transient = _transient(setup, run)
        yield from (*state_terms(run), *transient)
        if run.answers is not None:
            yield from answer_terms(run, run.answers, setup.config.eval.max_new_tokens)
        if setup.hardware.on_gpu:
            yield from fragmentation(run.role, run.pool, transient)
    if setup.command == "dpo" and reference_strategy(setup.config) == "adapter":
        run = setup.models[0]
        assert run.lora is not None, "a frozen copy of adapters is one of adapters"
        copy = sum(weight.numel for weight in adapter_parameters(run.shape, run.lora, run.kind)) * BYTES[run.dtype]
        yield Term("reference", "adapters", copy, "gpu", run.pool, EVER)


def _transient(setup: Setup, run: ModelRun) -> list[Term]:
    """What a model's computing takes while it computes.

    A frozen model gives it back after each answer (`cluster.train_worker`). Beside roles that sleep it answers while
    they have reserved no more than their own answers took, and that is less than when they train.
    """
    terms = [replace(term, phases=term.phases & run.awake) for term in transient_terms(run)]
    trained = [other for other in setup.models if other.pool == run.pool and other.trainable]
    if setup.command == "rl" and not run.trainable and trained and all(other.sleeps for other in trained):
        answering = _bytes(terms) + sum(_bytes(_asked(other)) for other in trained)
        if answering <= sum(_bytes(transient_terms(other)) for other in trained):
            return [replace(term, phases=term.phases - {"train"}) for term in terms]
    return terms


def _asked(run: ModelRun) -> list[Term]:
    return transient_terms(replace(run, passes=tuple(one for one in run.passes if not one.backward)))


def _bytes(terms: Iterable[Term]) -> int:
    return sum(term.bytes for term in terms if "train" in term.phases)


def _engine_terms(setup: Setup) -> Iterator[Term]:
    for run in setup.engines:
        yield from engine_terms(run, setup.hardware)
        if run.role == "engines":
            policy = next(model for model in setup.models if model.role == "policy")
            yield from bucket_terms(run, policy, setup.hardware)


def _on_a_machine(setup: Setup, terms: Iterable[Term]) -> list[Term]:
    """Terms of one process, with those on the host times the processes on the fullest machine.

    Without GPUs everything is on the host.
    """
    terms = list(terms)
    if not setup.hardware.on_gpu:
        terms = [replace(term, where="host") for term in terms]
    processes = _processes(setup)
    slots = _slots(setup, terms, processes)

    def there(term: Term) -> int:
        return min(processes[term.role], slots[term.pool])

    return [term if term.where == "gpu" else replace(term, bytes=term.bytes * there(term)) for term in terms]


def _processes(setup: Setup) -> dict[Role, int]:
    # A frozen copy of adapters is dpo's reference too, and lives with them.
    processes: dict[Role, int] = {"reference": setup.models[0].ranks}
    processes |= {run.role: run.ranks for run in setup.models}
    return processes | {run.role: run.count * run.tensor_parallel for run in setup.engines}


def _slots(setup: Setup, terms: Iterable[Term], processes: dict[Role, int]) -> dict[str, int]:
    """Bundles of each pool on the machine that holds most: what takes most of the host comes first."""
    hardware, wanted = setup.hardware, sum(setup.pools.values())
    free = hardware.count if hardware.on_gpu and hardware.nodes > 1 else -(-wanted // hardware.nodes)
    load = dict.fromkeys(setup.pools, 0.0)
    for term in terms:
        if term.where == "host":
            load[term.pool] += term.bytes * processes[term.role] / setup.pools[term.pool]
    slots = {}
    for pool in sorted(setup.pools, key=lambda pool: -load[pool]):
        slots[pool] = min(setup.pools[pool], free)
        free -= slots[pool]
    return slots


def _misfits(setup: Setup) -> Iterator[str]:
    try:
        layout_of(setup)
    except ResourceError as raised:
        yield str(raised)
    for run in setup.engines:
        if sentence := misfit(run, setup.hardware):
            yield sentence
