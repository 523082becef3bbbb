"""A plan as one JSON object. GB are 1e9 bytes, rounded to three decimals; counts are exact."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from openrlhf_ext.errors import ResourceError
from openrlhf_ext.plan.disk import checkpoint_bytes, kept_bytes
from openrlhf_ext.plan.layout import SPOKEN, layout_of
from openrlhf_ext.plan.types import Plan, Setup


def as_json(plan: Plan) -> dict[str, Any]:
    memory, arithmetic, card = plan.memory, plan.arithmetic, plan.setup.hardware.card
    return {
        "command": plan.setup.command,
        "fits": memory.fits,
        "verdict": plan.verdict,
        "trainable_params": plan.trainable_params,
        "total_params": plan.total_params,
        "effective_batch": arithmetic.effective_batch,
        "steps_per_epoch": arithmetic.steps_per_epoch,
        "leftover_rows": arithmetic.leftover_rows,
        "steps_total": arithmetic.steps_total,
        "optimizer_steps": arithmetic.optimizer_steps,
        "warmup_steps": arithmetic.warmup_steps,
        "saves": arithmetic.saves,
        "evals": arithmetic.evals,
        "logs": arithmetic.logs,
        "tokens_per_step": arithmetic.tokens_per_step,
        "gpu": card.name if card is not None else None,
        "gpus": plan.setup.hardware.count * plan.setup.hardware.nodes,
        "gpu_peak_gb": _gb(memory.gpu_peak),
        "gpu_limit_gb": _gb(memory.gpu_limit),
        "host_peak_gb": _gb(memory.host_peak),
        "host_limit_gb": _gb(memory.host_limit),
        "states_gb_per_gpu": _gb(plan.states_bytes),
        "kv_tokens": memory.kv_tokens,
        "kv_sequences": memory.kv_sequences,
        "checkpoint_gb": _gb(checkpoint_bytes(plan.setup)),
        "checkpoints_gb": _gb(kept_bytes(plan.setup)),
        "misfits": list(memory.misfits),
        "placement": placement(plan.setup),
        "phases": [
            {"phase": p.phase, "pool": p.pool, "gpu_gb": _gb(p.gpu_bytes), "host_gb": _gb(p.host_bytes)}
            for p in memory.peaks
        ],
        "terms": [
            {
                "role": term.role,
                "name": term.name,
                "gb": _gb(term.bytes),
                "where": term.where,
                "pool": term.pool,
                "phases": sorted(term.phases),
            }
            for term in memory.terms
        ],
        "warnings": [{"code": warning.code, "text": warning.text} for warning in plan.warnings],
        "changes": [
            {
                "flag": change.flag,
                "value": change.value,
                "saves_gb": _gb(change.saves),
                "costs": change.costs,
                "same_result": change.same_result,
            }
            for change in plan.changes
        ],
        "time": asdict(plan.time) if plan.time is not None else None,
        "data": asdict(plan.setup.data),
    }


def placement(setup: Setup) -> list[dict[str, Any]] | None:
    """What sits on each device of each node, both counted from 0; None where it cannot be placed (see `misfits`)."""
    try:
        layout = layout_of(setup)
    except ResourceError:
        return None
    return [
        {
            "node": number,
            "device": device,
            "processes": [
                {"role": SPOKEN.get(role, role), "rank": rank} for role, rank in layout.sitting(number, device)
            ],
        }
        for number, node in enumerate(layout.nodes)
        for device in range(node.devices)
    ]


def _gb(count: int | None) -> float | None:
    return None if count is None else round(count / 1e9, 3)
