"""What the ranks of tests/contract/test_engine.py do, and the plain torch loop they are compared with.

A scenario runs in spawned processes (DeepSpeed keeps state of its own per process), all of them in one
spawn per world size, because each process takes seconds to import DeepSpeed.
"""

from __future__ import annotations

import gc
import math
import multiprocessing
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from openrlhf_ext.batch.types import Denominators, MicroBatch
from openrlhf_ext.device import Device, choose_device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.errors import DataError
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.types import Metric, merge_reports

VOCAB, STEPS, LR, TEMPERATURE = 64, 3, 1e-2, 0.7
SPEC = EngineSpec(
    dtype="fp32", lr=LR, lr_scheduler="cosine_with_min_lr", warmup_ratio=0.3, min_lr_ratio=0.1, total_steps=STEPS,
    weight_decay=0.1, max_norm=0.5,
)  # fmt: skip


def build_model(folder: Path, *, tied: bool) -> None:
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, tie_word_embeddings=tied,
        initializer_range=0.2, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w3"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", pad_token="w2").save_pretrained(folder)


@dataclass(frozen=True, slots=True)
class Weighted:
    """A policy gradient with an entropy bonus: reads everything a model says."""

    temperature: float = TEMPERATURE
    needs_entropy: bool = True

    def __call__(self, output: Any, micro: MicroBatch, denominators: Denominators) -> tuple[Tensor, dict[str, Metric]]:
        advantage_BA = micro.columns["advantages"]
        loss = -(advantage_BA * output.logp_BA + 0.01 * output.entropy_BA).sum() / denominators.tokens
        return loss, {"loss": Metric(float(loss.detach()), reduction="sum")}


def rows(step: int, count: int = 8) -> MicroBatch:
    """One optimizer step's rows as one micro-batch; some rows have no action at all."""
    random = torch.Generator().manual_seed(100 + step)
    lengths_B = torch.randint(4, 13, (count,), generator=random)
    tokens_BT = torch.randint(3, VOCAB, (count, 12), generator=random)
    position_T = torch.arange(12)
    tokens_BT[position_T >= lengths_B[:, None]] = 2
    prompt_B = torch.randint(1, 5, (count,), generator=random)
    action_BA = (position_T[1:] >= prompt_B[:, None]) & (position_T[1:] < lengths_B[:, None])
    advantage_BA = torch.randn(count, 11, generator=random) * action_BA
    return MicroBatch(tuple(range(count)), tokens_BT, lengths_B, action_BA, {"advantages": advantage_BA})


def cut(batch: MicroBatch, start: int, end: int) -> MicroBatch:
    """Rows start..end at their own length; a dummy of one row where there are none."""
    if start >= end:
        dummy = cut(batch, 0, 1)
        none = torch.zeros_like(dummy.action_BA)
        return replace(dummy, rows=(), action_BA=none, columns={"advantages": none.float()})
    longest = int(batch.lengths_B[start:end].max())
    return MicroBatch(
        batch.rows[start:end],
        batch.tokens_BT[start:end, :longest],
        batch.lengths_B[start:end],
        batch.action_BA[start:end, : longest - 1],
        {name: column[start:end, : longest - 1] for name, column in batch.columns.items()},
    )


def micro_batches(batch: MicroBatch, rank: int, world_size: int, size: int = 2) -> list[MicroBatch]:
    """Unequal shares (5 and 3 rows of 8 on two ranks): the last rank ends with a dummy."""
    count = len(batch.rows)
    first = count if world_size == 1 else 5 * count // 8
    bounds = [(0, first), (first, count)][rank]
    number = math.ceil(first / size)
    return [cut(batch, bounds[0] + i * size, min(bounds[0] + (i + 1) * size, bounds[1])) for i in range(number)]


def denominators(batch: MicroBatch) -> Denominators:
    return Denominators(float(batch.action_BA.sum()), float(batch.action_BA.any(1).sum()))


def plain_logprobs(model: Any, batch: MicroBatch, temperature: float = TEMPERATURE) -> tuple[Tensor, Tensor]:
    mask_BT = torch.arange(batch.tokens_BT.shape[1]) < batch.lengths_B[:, None]
    logits_BAV = model(input_ids=batch.tokens_BT, attention_mask=mask_BT.long()).logits[:, :-1].float() / temperature
    logp_BAV = logits_BAV.log_softmax(-1)
    logp_BA = logp_BAV.gather(-1, batch.tokens_BT[:, 1:, None]).squeeze(-1)
    return logp_BA * batch.action_BA, -(logp_BAV.exp() * logp_BAV).sum(-1) * batch.action_BA


def plain_training(path: Path) -> dict[str, Any]:
    """The reference: full logits, one batch per step, torch's AdamW, the schedule and clipping written out."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    kept = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": SPEC.weight_decay}, {"params": kept, "weight_decay": 0.0}],
        lr=LR, betas=SPEC.betas, eps=SPEC.eps,
    )  # fmt: skip
    losses, norms, lrs = [], [], []
    for step in range(STEPS):
        warmup = 1  # ceil(3 x 0.3)
        progress = (step - warmup) / (STEPS - warmup)
        factor = 0.0 if step < warmup else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
        lrs.append(LR * factor)
        for group in optimizer.param_groups:
            group["lr"] = lrs[-1]
        batch = rows(step)
        logp_BA, entropy_BA = plain_logprobs(model, batch)
        loss = -(batch.columns["advantages"] * logp_BA + 0.01 * entropy_BA).sum() / denominators(batch).tokens
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), SPEC.max_norm)))
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        logp_BA = plain_logprobs(model, rows(0), 1.0)[0]
    return {"losses": losses, "grad_norms": norms, "lrs": lrs, "weights": model.state_dict(), "logp": logp_BA}


def spawn(world_size: int, scenario: Any, folder: Path, *arguments: Any, device: str = "cpu") -> list[Any]:
    """Run `scenario(rank, world_size, device, *arguments)` on fresh processes; what each rank returned."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_rank_main, args=(scenario, device, rank, world_size, port, folder, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    stuck = [process for process in processes if process.is_alive()]
    for process in stuck:
        process.kill()
    assert not stuck and all(p.exitcode == 0 for p in processes), f"exit codes {[p.exitcode for p in processes]}"
    return [torch.load(folder / f"answer-{world_size}-{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank_main(
    scenario: Any, requested: Any, rank: int, world_size: int, port: int, folder: Path, arguments: Sequence[Any]
) -> None:
    from openrlhf_ext.engine.process import init_process

    torch.set_num_threads(1)
    device = choose_device(requested)
    init_process(device, rank, world_size, 0, "127.0.0.1", port)
    import openrlhf_ext.engine.deepspeed_engine  # noqa: F401

    gc.freeze()  # DeepSpeed collects garbage at every turn: let it pass over what the imports left
    answer = scenario(rank, world_size, device, *arguments)
    torch.save(answer, folder / f"answer-{world_size}-{rank}.pt")
    torch.distributed.destroy_process_group()


def train_step(engine: Any, step: int, size: int = 2, count: int = 8) -> dict[str, Metric]:
    batch = rows(step, count)
    micros = micro_batches(batch, engine.rank, engine.world_size, size)
    reports = [engine.forward_backward(micro, Weighted(), denominators(batch)) for micro in micros]
    return merge_reports([*reports, engine.step()])


def full_weights(engine: Any, bucket_bytes: int = 1 << 20) -> dict[str, Tensor]:
    return {
        name: tensor.to("cpu", copy=True) for bucket in engine.export_weights(bucket_bytes) for name, tensor in bucket
    }


def train(engine: Any) -> dict[str, Any]:
    reports = [train_step(engine, step) for step in range(STEPS)]
    return {
        "losses": [report["loss"].value for report in reports],
        "grad_norms": [report["grad_norm"].value for report in reports],
        "lrs": [report["lr"].value for report in reports],
        "weights": full_weights(engine),
        "logp": engine.forward(rows(0)),
    }


def sum_of_many(path: Path, device: Device, accumulated: str | None, parts: int = 700) -> float:
    """The norm of a gradient that comes in so many equal parts, over that of the gradient in one."""
    norms = []
    for count in (1, parts):
        engine = engine_of(path, device, replace(SPEC, dtype="bf16", zero_stage=2, grad_accum_dtype=accumulated))
        micro = rows(0)
        whole = denominators(micro)
        share = Denominators(whole.tokens * count, whole.sequences * count)
        for _ in range(count):
            engine.forward_backward(micro, Weighted(), share)
        norms.append(engine.step()["grad_norm"].value)
    return norms[1] / norms[0]


def engine_of(path: Path, device: Device, spec: EngineSpec = SPEC, **model: Any) -> Any:
    from openrlhf_ext.engine.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(ModelSpec(str(path), dtype=spec.dtype, logprob_chunk=7, **model), spec, device)


def every_stage(rank: int, world_size: int, device: Device, path: Path, folder: Path) -> dict[str, Any]:
    """Both world sizes: three steps at each stage, resume, sleep, frozen models."""
    answer: dict[str, Any] = {"stages": {}, "resumed": {}, "slept": {}, "frozen": {}}
    sleeper = replace(device, capabilities=device.capabilities | {"sleep"})
    for stage in (0, 1, 2, 3):
        spec = replace(SPEC, zero_stage=stage)
        engine = engine_of(path, device, spec)
        answer["stages"][stage] = train(engine)
        if stage == 3:
            answer["buckets"] = [
                [(name, tensor.clone()) for name, tensor in bucket] for bucket in engine.export_weights(9000)
            ]
            engine.export(folder / f"export-{world_size}")
        answer["resumed"][stage] = resume(path, device, spec, folder / f"state-{world_size}-{stage}")
        if world_size == 1 or stage == 3:
            answer["slept"][stage] = sleep_between(engine_of(path, sleeper, spec))
    for stage in (0, 3):
        frozen = engine_of(path, sleeper, replace(SPEC, zero_stage=stage, trainable=False))
        frozen.sleep()
        frozen.wake()
        answer["frozen"][stage] = frozen.forward(rows(0))
    return answer


def resume(path: Path, device: Device, spec: EngineSpec, folder: Path) -> dict[str, Any]:
    engine = engine_of(path, device, spec)
    for step in range(2):
        train_step(engine, step)
    engine.save(folder, {"step": 2})
    drawn = torch.rand(3)
    report = train_step(engine, 2)
    through = {"weights": full_weights(engine), "report": report, "drawn": drawn}
    engine = engine_of(path, device, replace(spec, seed=7))
    client = engine.load(folder)
    drawn = torch.rand(3)
    report = train_step(engine, client["step"])
    return {"through": through, "again": {"weights": full_weights(engine), "report": report, "drawn": drawn}}


def sleep_between(engine: Any) -> list[float]:
    losses = []
    for step in range(STEPS):
        losses.append(train_step(engine, step)["loss"].value)
        if step == 0:
            engine.sleep()
            engine.wake()
    return losses


def one_rank(rank: int, world_size: int, device: Device, path: Path, folder: Path, foreign: Path) -> dict[str, Any]:
    answer = every_stage(rank, world_size, device, path, folder)
    answer["gradients"] = {size: gradient(path, device, size) for size in (1, 2, 3, 8)}
    answer["variants"] = {
        "checkpointing": train(engine_of(path, device, gradient_checkpointing=True)),
        "reentrant": train(engine_of(path, device, gradient_checkpointing=True, reentrant=True)),
        "packing": train(engine_of(path, device, packing=True)),
        "sharded packing": train(
            engine_of(path, device, replace(SPEC, zero_stage=3), packing=True, gradient_checkpointing=True)
        ),
        "offload": train(engine_of(path, device, replace(SPEC, zero_stage=2, adam_offload=True))),
        "whole offload": train(engine_of(path, device, replace(SPEC, zero_stage=0, adam_offload=True))),
        "sharded offload": train(engine_of(path, device, replace(SPEC, zero_stage=3, adam_offload=True))),
    }
    answer["bf16"] = {stage: learn_in_bf16(path, device, zero_stage=stage) for stage in (0, 1, 2, 3)}
    answer["bf16"]["float32 accumulation"] = learn_in_bf16(path, device, zero_stage=1, grad_accum_dtype="fp32")
    answer["half resumed"] = {
        stage: resume(path, device, replace(SPEC, dtype="bf16", zero_stage=stage), folder / f"half-{stage}")
        for stage in (0, 3)
    }
    answer["summed"] = {accumulated: sum_of_many(path, device, accumulated) for accumulated in (None, "fp32")}
    answer["8-bit resumed"] = {
        stage: resume(path, device, replace(SPEC, eight_bit=True, zero_stage=stage), folder / f"eight-{stage}")
        for stage in (0, 2, 3)
    }
    answer["8-bit"] = train(engine_of(path, device, replace(SPEC, eight_bit=True, zero_stage=2)))
    answer["frozen variants"] = {
        name: engine_of(path, device, replace(SPEC, trainable=False, **fields)).forward(rows(0))
        for name, fields in {
            "bf16": {"dtype": "bf16"},
            "sharded bf16": {"dtype": "bf16", "zero_stage": 3},
            "offload": {"param_offload": True},
        }.items()
    }
    answer["refusals"] = [refusal(path, device, f) for f in (foreign, folder / "state-1-0", folder / "nothing")]
    return answer


def on_a_gpu(rank: int, world_size: int, device: Device, path: Path) -> dict[str, Any]:
    """Three steps at each stage with a sleep after the first, and the bytes allocated awake and asleep."""
    answer: dict[str, Any] = {}
    for stage in (0, 1, 2, 3):
        engine = engine_of(path, device, replace(SPEC, zero_stage=stage))
        losses = [train_step(engine, 0)["loss"].value]
        awake = torch.accelerator.memory_allocated()
        engine.sleep()
        asleep = torch.accelerator.memory_allocated()
        engine.wake()
        losses += [train_step(engine, step)["loss"].value for step in range(1, STEPS)]
        answer[stage] = {"losses": losses, "awake": awake, "asleep": asleep, "weights": full_weights(engine)}
        del engine
        gc.collect()
        device.empty_cache()
    return answer


def gradient(path: Path, device: Device, size: int) -> Tensor:
    engine = engine_of(path, device, replace(SPEC, zero_stage=0))
    batch = rows(0)
    for micro in micro_batches(batch, 0, 1, size):
        engine.forward_backward(micro, Weighted(), denominators(batch))
    flat = torch.cat([p.grad.double().flatten() for p in engine.model.parameters()])
    dummy = cut(batch, 0, 0)
    engine.forward_backward(dummy, Weighted(), denominators(batch))
    after = torch.cat([p.grad.double().flatten() for p in engine.model.parameters()])
    assert torch.equal(flat, after), "a dummy has a gradient"
    return flat


def learn_in_bf16(path: Path, device: Device, **fields: Any) -> dict[str, Any]:
    spec = replace(SPEC, dtype="bf16", lr=1e-6, lr_scheduler="constant", weight_decay=0.0, **fields)
    engine = engine_of(path, device, spec)
    before = full_weights(engine)
    for _ in range(20):
        train_step(engine, 0, size=8)
    after = full_weights(engine)
    return {"before": before, "after": after}


def refusal(path: Path, device: Device, folder: Path) -> str:
    try:
        engine_of(path, device, replace(SPEC, zero_stage=2)).load(folder)
    except DataError as error:
        return str(error)
    return "loaded"


def relative_l2(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm())
