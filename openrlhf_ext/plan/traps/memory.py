"""Traps of memory and disk."""

from __future__ import annotations

from openrlhf_ext.plan.disk import GIB, checkpoint_bytes, kept_bytes
from openrlhf_ext.plan.traps.case import Case, Trap, gb

NEARLY = 0.97
"""Of a limit: fragmentation and a longer batch take the rest."""
MUCH_DISK = 500_000_000_000


def gpu_nearly_full(case: Case) -> str | None:
    limit, peak = case.memory.gpu_limit, case.memory.gpu_peak
    if limit is None or not NEARLY * limit < peak <= limit:
        return None
    return (
        f"The peak of {gb(peak)} leaves {gb(limit - peak)} of the GPU's {gb(limit)}; give a smaller "
        "--train.micro_batch_size or --ds.logprob_chunk_size to be safe."
    )


def gpu_mostly_free(case: Case) -> str | None:
    limit, peak, train = case.memory.gpu_limit, case.memory.gpu_peak, case.config.train
    if limit is None or peak > limit / 2 or case.config.memory.auto or (case.rl and train.dynamic_batch_enable):
        return None
    parts = train.batch_size // (train.micro_batch_size * case.trained.ranks)
    if parts < 2:
        return None
    return (
        f"The peak of {gb(peak)} leaves more than half of the GPU's {gb(limit)} free, and a step is cut into {parts} "
        f"micro-batches; give a larger --train.micro_batch_size than {train.micro_batch_size}, or --memory.auto."
    )


def host_nearly_full(case: Case) -> str | None:
    limit, peak = case.memory.host_limit, case.memory.host_peak
    if limit is None or not NEARLY * limit < peak <= limit:
        return None
    return f"The processes take {gb(peak)} of the machine's {gb(limit)} of memory; close others, or offload less."


def offload_for_nothing(case: Case) -> str | None:
    """The optimizer's state would fit beside everything else."""
    limit, peak, model = case.memory.gpu_limit, case.memory.gpu_peak, case.trained
    if limit is None or not model.adam_offload:
        return None
    saved = sum(
        term.bytes
        for term in case.memory.terms
        if term.role == model.role and term.where == "host" and ("optimizer" in term.name or "master" in term.name)
    )
    saved //= max(min(model.ranks, case.setup.hardware.count), 1)
    if not saved or peak + saved > 0.8 * limit:
        return None
    return (
        f"--ds.adam_offload keeps {gb(saved)} out of {gb(limit - peak)} that are free, and every step waits for the "
        "host; leave it out."
    )


def activations_kept(case: Case) -> str | None:
    limit, model = case.memory.gpu_limit, case.trained
    if limit is None or model.gradient_checkpointing:
        return None
    activations = max(
        (term.bytes for term in case.memory.terms if term.role == model.role and "activations" in term.name), default=0
    )
    if activations < 0.4 * limit:
        return None
    return (
        f"Activations take {gb(activations)} of the GPU's {gb(limit)}; --{case.section}.gradient_checkpointing_enable "
        "keeps a small part of them for about a third more time."
    )


def cache_in_waves(case: Case) -> str | None:
    room = case.memory.kv_sequences
    wanted = max((run.sequences for run in case.setup.engines if run.role == "engines"), default=0)
    if not room or 4 * room > wanted:
        return None
    return (
        f"The engines' cache has room for {room} of {wanted} sequences at their longest, which are then written in "
        f"waves; {_more_cache(case)}."
    )


def checkpoints_pruned_by_size(case: Case) -> str | None:
    ckpt, each = case.config.ckpt, checkpoint_bytes(case.setup)
    most = ckpt.max_mem * GIB
    if not each or each * ckpt.max_num <= most:
        return None
    kept = max(int(most // each), 1)
    return (
        f"--ckpt.max_mem {ckpt.max_mem:g} holds {kept} checkpoint{'' if kept == 1 else 's'} of {gb(each)}, and "
        f"--ckpt.max_num asks for {ckpt.max_num}: older ones go; give --ckpt.max_mem {-(-each * ckpt.max_num // GIB)}."
    )


def checkpoints_fill_the_disk(case: Case) -> str | None:
    kept = kept_bytes(case.setup)
    if kept < MUCH_DISK or not case.arithmetic.saves:
        return None
    return (
        f"Checkpoints of {gb(checkpoint_bytes(case.setup))} take {gb(kept)} under {case.config.ckpt.path}; give a "
        f"smaller --ckpt.max_num than {case.config.ckpt.max_num}."
    )


def _more_cache(case: Case) -> str:
    if case.card is None:
        return "raise --vllm.kv_cache_gb"
    return "raise --vllm.gpu_memory_utilization, or lower --data.max_len"


MEMORY: tuple[Trap, ...] = (
    gpu_nearly_full,
    gpu_mostly_free,
    host_nearly_full,
    offload_for_nothing,
    activations_kept,
    cache_in_waves,
    checkpoints_pruned_by_size,
    checkpoints_fill_the_disk,
)
