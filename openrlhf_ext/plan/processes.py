"""What the processes of a run take beside models and caches: contexts, communicators, the allocator, Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from openrlhf_ext.plan.engines import EVER
from openrlhf_ext.plan.types import ModelRun, Phase, Role, Setup, Term

WORKER = 900_000_000
ENGINE = 1_000_000_000
DRIVER = 700_000_000
SUPERVISED = 900_000_000
RAY = 350_000_000
REWARD = 60_000_000
CUDA_HOST = 500_000_000
TOKEN_IN_DRIVER = 120

CUBLAS_WORKSPACE = 32 << 20
CHANNELS_NVLINK, CHANNELS_PCIE = 24, 4
NVLINK = 100e9
CHANNEL_BYTES = 12 << 20
FRAGMENTATION = 0.04


def process_terms(setup: Setup) -> list[Term]:
    """Contexts and communicators on the GPUs, and what each process takes of its machine's memory."""
    terms = list(_on_gpus(setup)) if setup.hardware.on_gpu else []
    return [*terms, *_on_host(setup)]


def _on_gpus(setup: Setup) -> Iterator[Term]:
    card = setup.hardware.card
    assert card is not None, "contexts are of GPUs"
    channels = CHANNELS_NVLINK if card.link_bandwidth >= NVLINK else CHANNELS_PCIE
    groups: list[tuple[Role, str, int]] = [(run.role, run.pool, run.ranks) for run in with_process(setup)]
    for role, pool, _ in groups:
        yield Term(role, "cuBLAS workspace", CUBLAS_WORKSPACE, "gpu", pool, EVER)
    groups += [(run.role, run.pool, run.tensor_parallel) for run in setup.engines]
    for role, pool, ranks in groups:
        yield Term(role, "CUDA context", card.context, "gpu", pool, EVER)
        if ranks > 1:
            yield Term(role, "NCCL buffers", channels * CHANNEL_BYTES, "gpu", pool, EVER)


def with_process(setup: Setup) -> list[ModelRun]:
    """The models that have processes of their own: in a supervised command a second model lives with the first."""
    return [run for run in setup.models if setup.command == "rl" or run.role == "model"]


def _on_host(setup: Setup) -> Iterator[Term]:
    cuda = CUDA_HOST if setup.hardware.on_gpu else 0
    alone = setup.command != "rl"
    for run in with_process(setup):
        size = SUPERVISED if alone else WORKER
        yield Term(run.role, "Python and libraries", size + cuda, "host", run.pool, EVER)
    for engine in setup.engines:
        yield Term(engine.role, "Python and libraries", ENGINE + cuda, "host", engine.pool, EVER)


def driver_terms(setup: Setup) -> list[Term]:
    """The processes of rl that are there once: the driver with its rollouts, Ray's own, the reward's."""
    if setup.command != "rl":
        return []
    rollout, first = setup.config.rollout, setup.engines[0]
    tokens = rollout.batch_size * rollout.n_samples_per_prompt * first.tokens_each
    parts = [
        ("Python and libraries", DRIVER),
        ("Ray", RAY),
        ("reward processes", REWARD),
        ("rollouts", tokens * TOKEN_IN_DRIVER),
    ]
    return [Term("driver", name, size, "host", "", EVER) for name, size in parts]


def fragmentation(role: Role, pool: str, transient: Iterable[Term]) -> list[Term]:
    """What torch has reserved and cannot give out again, as a share of what comes and goes in each phase."""
    sizes: dict[Phase, int] = {}
    for term in transient:
        for phase in term.phases if term.where == "gpu" else ():
            sizes[phase] = sizes.get(phase, 0) + term.bytes
    phases: dict[int, set[Phase]] = {}
    for phase, size in sizes.items():
        phases.setdefault(int(size * FRAGMENTATION), set()).add(phase)
    name = "allocator rounding and fragmentation"
    return [Term(role, name, size, "gpu", pool, frozenset(where)) for size, where in phases.items()]
