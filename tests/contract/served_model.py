"""A tiny model on disk, its Hugging Face twin in the test's process, and a vLLM engine that serves it in another.

An engine has a process of its own, as in a run: vLLM changes global state of the process it lives in.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3ForCausalLM

from openrlhf_ext.device import Device
from openrlhf_ext.models.tiny import TinyShape, build_tiny_model, build_tokenizer
from openrlhf_ext.rollout.vllm_engine import EngineSettings, GenerateRequest, VllmEngine, engine_environment
from openrlhf_ext.types import Rollout

# vLLM's CPU attention wants heads of 32 or more.
SHAPE = TinyShape(hidden=64, layers=3, heads=2, kv_heads=1, intermediate=96, vocab=259, max_positions=512)


class WatchedEngine(VllmEngine):
    """The engine with what a test cannot do from another process."""

    def generate_and_count(self, requests: Sequence[GenerateRequest]) -> tuple[list[Rollout], list[tuple[int, int]]]:
        calls: list[tuple[int, int]] = []
        return self.generate(requests, lambda done, asked: calls.append((done, asked))), calls

    def interrupt(self, requests: Sequence[GenerateRequest], steps: int) -> None:
        """Fail in the middle of a batch."""
        step, left = self._engine.step, iter(range(steps))

        def failing_step() -> Any:
            next(left)
            return step()

        self._engine.step = failing_step
        try:
            self.generate(requests)
        finally:
            self._engine.step = step


class EngineProcess:
    """An engine in a child process: `start(method, ...)` returns a handle, `call` waits for its result."""

    def __init__(self, settings: EngineSettings, device: Device, kind: type = WatchedEngine) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, settings, device, kind), daemon=True)
        self._process.start()
        theirs.close()
        self._started = False

    def start(self, method: str, *args: Any) -> EngineProcess:
        if not self._started:
            self.wait()
            self._started = True
        self._pipe.send((method, args))
        return self

    def wait(self) -> Any:
        assert self._pipe.poll(100), "the engine does not answer"
        result, error = self._pipe.recv()
        if error is not None:
            raise error
        return result

    def call(self, method: str, *args: Any) -> Any:
        return self.start(method, *args).wait()

    def close(self) -> None:
        self._pipe.close()
        self._process.join(60)
        if self._process.is_alive():
            self._process.kill()


def _serve(pipe: Connection, settings: EngineSettings, device: Device, kind: type) -> None:
    os.environ.update(device.environment() | engine_environment(device, threads=1))
    try:
        engine = kind(settings, device)
        pipe.send((None, None))
    except Exception as error:
        pipe.send((None, error))
        return
    while True:
        try:
            method, args = pipe.recv()
        except EOFError:
            engine.close()
            return
        try:
            found = getattr(engine, method)
            pipe.send((found(*args) if callable(found) else found, None))
        except Exception as error:
            pipe.send((None, error))


@dataclass(frozen=True)
class Served:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: EngineProcess


def build_model(folder: Path, tied: bool) -> PreTrainedModel:
    """A model whose next-token distribution is far from flat, so that an error in a weight shows."""
    shape = TinyShape(**{name: getattr(SHAPE, name) for name in SHAPE.__slots__} | {"tie_embeddings": tied})
    build_tiny_model(folder, shape, seed=1)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    model.save_pretrained(folder)
    return model.eval()


def start_served(folder: Path, tied: bool, device: Device, make: Callable[[str], EngineSettings]) -> Served:
    model = build_model(folder, tied)
    return Served(model, build_tokenizer(vocab=SHAPE.vocab), EngineProcess(make(str(folder)), device))


def reference_logprobs(
    model: PreTrainedModel, tokens: Sequence[int], temperature: float = 1.0, top_k: int = 0
) -> Tensor:
    """(T - 1,) log-probs of tokens 1..T-1 by a Hugging Face forward, written out plainly."""
    with torch.no_grad():
        logits_TV = model(torch.tensor([list(tokens)], device=model.device)).logits[0, :-1].float().cpu() / temperature
    if top_k:
        kept_TK = logits_TV.topk(top_k).indices
        logits_TV = torch.full_like(logits_TV, -torch.inf).scatter(1, kept_TK, logits_TV.gather(1, kept_TK))
    logp_TV = logits_TV.log_softmax(-1)
    return logp_TV[torch.arange(len(logp_TV)), torch.tensor(list(tokens[1:]))]


def perturb(model: PreTrainedModel, seed: int) -> None:
    """Change every weight, by enough to be seen in the log-probs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.add_(noise.to(parameter))


def buckets_of(model: PreTrainedModel, count: int) -> list[list[tuple[str, Tensor]]]:
    """Weights under their names, tied ones once, in runs that cut through layers."""
    named = list(model.named_parameters())
    size = -(-len(named) // count)
    return [named[start : start + size] for start in range(0, len(named), size)]
