"""The limit, second half: plain torch. Every forward the step needs, one backward, one optimizer step, on the tokens
that ours sampled. Rows of like length share a micro-batch, as in ours; padding is on the right, so no mask is needed.

B rows, T tokens, N sampled tokens.
"""

from __future__ import annotations

import time
from typing import Any

from measure import Turn

from sides.gate import Gate
from sides.workload import Workload


def serve(workload: Workload, gate: Gate) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(workload.threads)
    device = torch.device(workload.device)

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(workload.model, dtype=torch.float32).to(device)

    model, reference = load().train(), load().eval() if workload.kl_coef else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=workload.lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    precision = torch.autocast(workload.device, torch.bfloat16, enabled=workload.dtype == "bfloat16")
    clock = _Clock(workload.device)
    while (answers := gate.wait()) is not None:
        clock.start()
        with precision:
            micros = [_micro_batch(part, device) for part in _parts(answers, workload.micro_batch)]
            ref_logps: list[Any] = [None] * len(micros)
            if reference is not None:
                with torch.no_grad():
                    ref_logps = [_logps(reference, *micro) for micro in micros]
            clock.lap("infer")
            for micro, ref_logp_N in zip(micros, ref_logps, strict=True):
                logp_N = _logps(model, *micro)
                clock.lap("forward")
                _loss(logp_N, ref_logp_N, workload, len(answers)).backward()
                clock.lap("backward")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.lap("optimizer")
        gate.finish(Turn(sum(clock.laps.values()), clock.laps))


class _Clock:
    """Seconds by name; a GPU is waited for."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device != "cpu"

    def start(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self._on_gpu:
            import torch

            torch.accelerator.synchronize()
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def _parts(answers: list[tuple[list[int], int]], rows: int) -> list[list[tuple[list[int], int]]]:
    longest_first = sorted(answers, key=lambda answer: -len(answer[0]))
    return [longest_first[start : start + rows] for start in range(0, len(longest_first), rows)]


def _micro_batch(part: list[tuple[list[int], int]], device: Any) -> tuple[Any, Any]:
    """Tokens (B, T), and which of them were sampled (B, T)."""
    import torch

    tokens_BT = torch.zeros(len(part), len(part[0][0]), dtype=torch.int64)
    sampled_BT = torch.zeros(tokens_BT.shape, dtype=torch.bool)
    for row, (tokens, length) in enumerate(part):
        tokens_BT[row, : len(tokens)] = torch.tensor(tokens)
        sampled_BT[row, len(tokens) - length : len(tokens)] = True
    return tokens_BT.to(device), sampled_BT.to(device)


def _logps(model: Any, tokens_BT: Any, sampled_BT: Any) -> Any:
    """(N,) log-probs of the sampled tokens; the head sees their positions only."""
    hidden_BTH = model.base_model(tokens_BT, use_cache=False).last_hidden_state
    logits_NV = model.lm_head(hidden_BTH[:, :-1][sampled_BT[:, 1:]])
    return logits_NV.float().log_softmax(-1).gather(-1, tokens_BT[sampled_BT][:, None])[:, 0]


def _loss(logp_N: Any, ref_logp_N: Any, workload: Workload, rows: int) -> Any:
    """GRPO's form, on policy. What the advantages are makes no difference in time: here they are 1."""
    loss_N = -(logp_N - logp_N.detach()).exp()
    if ref_logp_N is not None:
        gap_N = ref_logp_N - logp_N
        loss_N = loss_N + workload.kl_coef * (gap_N.exp() - gap_N - 1.0)
    return loss_N.sum() / (rows * workload.max_new_tokens)
