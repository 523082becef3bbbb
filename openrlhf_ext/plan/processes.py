"""What the processes of a run take beside models and caches: contexts, communicators, the allocator, Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from openrlhf_ext.plan.engines import EVER
from openrlhf_ext.plan.types import ModelRun, Phase, Role, Setup, Term

# Bytes of one process on the host with nothing of a model in it: proportional set size (`/proc/*/smaps_rollup`) at
# its largest over runs of tests/e2e's scenario (a model of 0.1 M weights, two ranks a role, torch 2.13 without CUDA,
# ray 2.55, vllm 0.29, deepspeed 0.19.6, Python 3.11), sampled every 0.3 s, model and cache taken off.
SUPERVISED = 440_000_000
WORKER = 420_000_000
ENGINE = 570_000_000
DRIVER = 590_000_000
REWARD = 190_000_000
"""A file of rewards that imports torch (`rewards.child`)."""
RAY = 430_000_000
"""Its seven processes on a machine: gcs, raylet, monitor, log monitor, and the agents of the dashboard and the rest."""
DRIVER_ON_HOST = 500_000_000
"""What CUDA's libraries add to a process. Not measured (no GPU was at hand): an estimate."""
TOKEN_IN_DRIVER = 240
"""Of one token of a step's rollouts: 91 in Python's tuples and 28 in the padded batch (both measured over 512 rollouts
of 1,024 tokens); the rest is counted from the types: columns, micro-batches, and their copies in the object store."""

CUBLAS_WORKSPACE = 32 << 20
"""Of a process that multiplies matrices, at the most (`getChosenWorkspaceSize` in torch's CUDABlas: Hopper)."""
CHANNELS_NVLINK, CHANNELS_PCIE = 24, 4
NVLINK = 100e9
"""Bytes/s of a link that no PCIe x16 reaches."""
CHANNEL_BYTES = 12 << 20
"""A ring's channel has 10 MiB to receive in and 2 MiB to send from (github.com/NVIDIA/nccl issue 1685); memory grows
with the channels, and those with the links' bandwidth, not with the number of GPUs (issue 986)."""
FRAGMENTATION = 0.04
"""Of what comes and goes. torch rounds tensors up to 512 bytes and large segments to 2 MiB (`CUDACachingAllocator.h`),
which is nothing beside gigabytes; holes between blocks of unequal lives are what is left. It gives cached segments
back before it gives up, so holes inside segments alone count. An assumption, to be held against max_memory_reserved."""


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
        # Weights that do not go by handle are broadcast, in a group of the policy and its engines.
        if groups_of_ranks := (ranks > 1) + (role in ("policy", "engines") and broadcasts(setup)):
            yield Term(role, "NCCL buffers", groups_of_ranks * channels * CHANNEL_BYTES, "gpu", pool, EVER)


def broadcasts(setup: Setup) -> bool:
    """Whether the engines get their weights over a link, from GPUs that are not theirs."""
    policy = {run.pool for run in setup.models if run.role == "policy"}
    return any(run.role == "engines" and run.pool not in policy for run in setup.engines)


def with_process(setup: Setup) -> list[ModelRun]:
    """The models that have processes of their own: in a supervised command a second model lives with the first."""
    return [run for run in setup.models if setup.command == "rl" or run.role == "model"]


def _on_host(setup: Setup) -> Iterator[Term]:
    of_driver = DRIVER_ON_HOST if setup.hardware.on_gpu else 0
    alone = in_one_process(setup)
    for run in with_process(setup):
        size = SUPERVISED if alone else WORKER
        yield Term(run.role, "Python and libraries", size + of_driver, "host", run.pool, EVER)
    for engine in setup.engines:
        yield Term(engine.role, "Python and libraries", ENGINE + of_driver, "host", engine.pool, EVER)


def in_one_process(setup: Setup) -> bool:
    """A supervised command on one rank needs neither workers nor Ray."""
    return setup.command != "rl" and sum(setup.pools.values()) == 1


def driver_terms(setup: Setup) -> list[Term]:
    """The processes that are there once: the driver, with its rollouts in rl, Ray's own, the reward's."""
    if in_one_process(setup):
        return []
    parts = [("Python and libraries", DRIVER), ("Ray", RAY), *_rewards_and_rollouts(setup)]
    return [Term("driver", name, size, "host", "", EVER) for name, size in parts]


def _rewards_and_rollouts(setup: Setup) -> Iterator[tuple[str, int]]:
    if setup.command != "rl":
        return
    config = setup.config
    sources = [part.strip() for part in (config.reward.remote_url or "").split(",") if part.strip()]
    files = sum(not source.startswith(("http://", "https://")) for source in sources)
    prompts = max(config.rollout.vllm_generate_batch_size or 0, config.rollout.batch_size)
    ahead = config.train.async_queue_size if config.train.async_enable else 0
    rollouts = prompts * config.rollout.n_samples_per_prompt * (1 + ahead)
    yield "reward processes", REWARD * files
    yield "rollouts", rollouts * setup.engines[0].tokens_each * TOKEN_IN_DRIVER


def kept_by_torch(setup: Setup, terms: Iterable[Term]) -> Iterator[Term]:
    """What a process in training holds on its GPU between its peaks, where other processes want the same GPU.

    torch keeps what it has reserved. A model gives it back when it falls asleep, a frozen one after each answer
    (`cluster.train_worker`).
    """
    if setup.command != "rl" or not setup.hardware.on_gpu:
        return
    terms = list(terms)
    for run in setup.models:
        if run.trainable and not run.sleeps:
            live = _by_phase(term for term in terms if term.role == run.role)
            most = max(live.values(), default=0)
            for phase in sorted(EVER - {"load"}):
                rest = most - live.get(phase, 0)
                yield Term(run.role, "kept by torch's allocator", rest, "gpu", run.pool, frozenset({phase}))


def fragmentation(role: Role, pool: str, transient: Iterable[Term]) -> Iterator[Term]:
    """What torch has reserved and cannot give out again, as a share of what comes and goes in each phase."""
    for phase, size in _by_phase(transient).items():
        name = "allocator rounding and fragmentation"
        yield Term(role, name, int(size * FRAGMENTATION), "gpu", pool, frozenset({phase}))


def _by_phase(terms: Iterable[Term]) -> dict[Phase, int]:
    """Bytes on a GPU."""
    sizes: dict[Phase, int] = {}
    for term in terms:
        for phase in term.phases if term.where == "gpu" else ():
            sizes[phase] = sizes.get(phase, 0) + term.bytes
    return sizes
