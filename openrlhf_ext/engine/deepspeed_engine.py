"""One rank of a model under DeepSpeed: the `TrainEngine` of the ports.

DeepSpeed averages gradients over ranks while our objectives carry global denominators, so every
loss is multiplied by the world size: gradients then sum over micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import set_seed
from transformers.integrations import HfDeepSpeedConfig

from openrlhf_ext.batch.types import Denominators, MicroBatch
from openrlhf_ext.device import Device
from openrlhf_ext.engine import checkpoint, residence
from openrlhf_ext.engine.deepspeed_config import deepspeed_config, effective_stage
from openrlhf_ext.engine.optimizer import build_optimizer, build_schedule
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.errors import DataError
from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.export import (
    SHARD_BYTES,
    named_weights,
    plan_buckets,
    write_adapter_folder,
    write_model_folder,
)
from openrlhf_ext.models.load import load_config
from openrlhf_ext.models.lora import adapter_config, adapters_off, is_adapter
from openrlhf_ext.models.sampling import continued
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.ports import Objective
from openrlhf_ext.types import Metric, Report, Sampling


class DeepSpeedEngine:
    """A policy in training, or a frozen model, sharded by ZeRO over the ranks of the process group.

    The process group must be there (`engine.process.init_process`). Raises DataError for a model that
    cannot be loaded.
    """

    def __init__(self, model_spec: ModelSpec, spec: EngineSpec, device: Device):
        assert model_spec.dtype == spec.dtype, "the model is loaded in the type it is trained in"
        assert not (model_spec.quantised and spec.trainable) or model_spec.lora, "quantised weights cannot be trained"
        assert not (model_spec.quantised and effective_stage(spec) == 3), "quantised weights cannot be sharded"
        self.model_spec, self.spec, self.device = model_spec, spec, device
        self._torch_device = device.current()
        self._grad_norm = 0.0
        self.asleep = False
        if spec.deterministic:
            device.make_deterministic()
        set_seed(spec.seed + self.rank)
        self.stage = effective_stage(spec)
        hidden_size = load_config(model_spec.path).get_text_config().hidden_size
        config = deepspeed_config(spec, self.world_size, hidden_size, ordered=device.ordered_collectives)
        with _sharded_loading(config, enabled=self.stage == 3):
            self.model = build_model(model_spec, spec.seed, self._writable)
        if not spec.trainable:
            self.model.requires_grad_(False)
        self._runner = self._initialize(config)

    def _initialize(self, config: dict[str, Any]) -> Any:
        """What is called for a forward pass: DeepSpeed's engine, or the plain module of a whole frozen model."""
        if not self.spec.trainable:
            if self.stage == 3:
                return deepspeed.initialize(model=self.model, config=config, dist_init_required=False)[0]
            return self.model.to(self._torch_device).eval()
        optimizer = build_optimizer(self.model, self.spec, self.device)
        if self.stage == 0:
            optimizer.register_step_pre_hook(self._clip)
        return deepspeed.initialize(
            model=self.model,
            optimizer=optimizer,
            lr_scheduler=build_schedule(self.spec),
            config=config,
            dist_init_required=False,
        )[0]

    @property
    def rank(self) -> int:
        return torch.distributed.get_rank()

    @property
    def world_size(self) -> int:
        return torch.distributed.get_world_size()

    @torch.no_grad()
    def forward(self, micro: MicroBatch, temperature: float = 1.0, *, adapters: bool = True) -> Tensor:
        """The model's answer without gradient, float32 on the CPU: (B, A) log-probs or values, or (B, 1) scores."""
        self._runner.eval()
        with nullcontext() if adapters else adapters_off(self.model):
            answer: Tensor = self._run(self._on_device(micro), temperature, entropy=False)[0]
        return answer.cpu()

    def forward_backward(self, micro: MicroBatch, objective: Objective, denominators: Denominators) -> Report:
        """Accumulate the gradient of the objective (summed, not averaged, over micro-batches and ranks)."""
        assert self.spec.trainable, "a frozen model does not learn"
        self._runner.train()
        micro = self._on_device(micro)
        output = self._run(micro, objective.temperature, objective.needs_entropy)
        loss, report = objective(output, micro, denominators)
        # The zero term ties the loss to the graph whatever the objective read: ranks must agree on the gradients.
        self._runner.backward(loss * self.world_size + output[0].sum() * 0.0)
        return report

    def step(self) -> Report:
        """Clip, take the optimizer step, advance the schedule; reports `grad_norm` (before clipping) and `lr`.

        With float16 also `skipped_steps`: how often the loss scale was too high.
        """
        lr = self._runner.get_lr()[0]
        self._runner.step()
        norm = self._grad_norm if self.stage == 0 else self._runner.get_global_grad_norm()
        report = {"grad_norm": Metric(float(norm)), "lr": Metric(lr, reduction="last")}
        if self.spec.dtype == "fp16":
            report["skipped_steps"] = Metric(float(not self._runner.was_step_applied()), reduction="sum")
        return report

    def save(self, folder: Path, client_state: Mapping[str, Any] | None = None) -> None:
        """Everything to resume bit for bit: weights, optimizer, scheduler, every rank's random state. Collective."""
        assert self.spec.trainable, "a frozen model has no state of its own"
        checkpoint.save(self._runner, folder, self._identity(), client_state or {})

    def load(self, folder: Path) -> Mapping[str, Any]:
        """Restore into a fresh engine what `save` wrote; returns its client state. DataError if it does not fit."""
        assert self.spec.trainable, "a frozen model has no state of its own"
        return checkpoint.load(self._runner, folder, self._identity())

    def export_weights(self, bucket_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
        """Full weights under their Hugging Face names, adapters merged, in buckets of about that size.

        Collective: every rank iterates to the end and sees the full tensors, valid until the next bucket.
        """
        assert not self.asleep, "a sleeping model has no weights on its device"
        weights = list(named_weights(self.model.model))
        if self.stage == 3:
            # A forward fetches ahead what it expects to be asked for next: let that arrive, or it cannot be gathered.
            self._runner.optimizer.empty_partition_cache()
        for bucket in plan_buckets([weight.nbytes for weight in weights], bucket_bytes):
            with self._gathered([part for weight in weights[bucket] for part in weight.parts]):
                yield [(weight.name, weight.full()) for weight in weights[bucket]]

    @torch.no_grad()
    def blend(self, weights: Iterable[tuple[str, Tensor]], mixup: float) -> None:
        """own <- (1 - mixup) * own + mixup * given, for each of these full weights under their Hugging Face names.

        Computed in float32 and rounded to the type of the weight, once; with `mixup` 1 they are copied as they are.
        Collective: every rank is given the same weights in the same order. The model is frozen.
        """
        assert not self.spec.trainable, "a model in training has an optimizer that knows its weights"
        assert not self.asleep, "a sleeping model has no weights on its device"
        if self.stage == 3:
            self._runner.optimizer.empty_partition_cache()
        own = {weight.name: weight.parameter for weight in named_weights(self.model.model)}
        for name, given in weights:
            with self._writable([own[name]]):
                weight, given = own[name].data, given.to(own[name].data.device)
                if mixup != 1.0:
                    given = weight.float().mul_(1.0 - mixup).add_(given.float(), alpha=mixup)
                weight.copy_(given)

    def load_weights(self, folder: Path) -> None:
        """Of a Hugging Face folder that `export` wrote for this model. Collective, as `blend`."""
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise DataError(f"{folder} holds no weights: choose another checkpoint.")
        for path in files:
            with safe_open(path, framework="pt") as file:
                self.blend(((key, file.get_tensor(key)) for key in file.keys()), 1.0)  # noqa: SIM118 (no mapping)

    def export(self, folder: Path) -> None:
        """Write a Hugging Face folder, one shard in memory at a time (rank 0 writes; collective)."""
        buckets = self.export_weights(SHARD_BYTES)
        if self.rank == 0:
            sizes = [weight.nbytes for weight in named_weights(self.model.model)]
            shards = len(plan_buckets(sizes, SHARD_BYTES))
            write_model_folder(self.model.model, self.model_spec.path, folder, buckets, shards)
        else:
            for _ in buckets:
                pass
        torch.distributed.barrier()

    def export_adapters(self, folder: Path) -> None:
        """Write the adapters, and a head that was trained with them, as peft does (rank 0 writes; collective)."""
        assert not self.asleep, "a sleeping model has no weights on its device"
        adapters = {}
        head = [] if self.model_spec.kind == "causal_lm" else list(self.model.head.parameters())
        for name, parameter in self.model.model.named_parameters():
            if is_adapter(name) or any(parameter is part for part in head):
                with self._gathered([parameter]):
                    if self.rank == 0:
                        adapters[name] = parameter.detach().to("cpu", copy=True)
        if self.rank == 0:
            write_adapter_folder(adapter_config(self.model.model), self.model_spec.path, folder, adapters)
        torch.distributed.barrier()

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, *, end: int, rows: int
    ) -> list[list[int]]:
        """The tokens after each prompt (`models.sampling.continued`), with the weights as they are and adapters."""
        assert self.stage < 3, "generation asks for the weights layer by layer at every token: they must be whole"
        assert not self.asleep, "wake a model before it is used"
        self._runner.eval()
        return continued(self.model.model, prompts, seeds, sampling, end=end, rows=rows)

    def gather(self, value: Any) -> list[Any]:
        """What every rank brought, in their order. Collective."""
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def sleep(self) -> None:
        """Move weights, gradients and optimizer state off the device, where it can; idempotent."""
        if self.device.can("sleep") and not self.asleep:
            residence.leave(self._runner, self.stage, self.spec)
            self.device.empty_cache()
            self.asleep = True

    def wake(self) -> None:
        if self.asleep:
            residence.come_back(self._runner, self.stage, self.spec, self._torch_device)
            self.asleep = False

    def _identity(self) -> dict[str, Any]:
        return checkpoint.identity(self.spec, self.model_spec, self.model)

    def _run(self, micro: MicroBatch, temperature: float, entropy: bool) -> Any:
        assert not self.asleep, "wake a model before it is used"
        return self._runner(micro.tokens_BT, micro.lengths_B, micro.action_BA, temperature, entropy)

    def _on_device(self, micro: MicroBatch) -> MicroBatch:
        return replace(
            micro,
            tokens_BT=micro.tokens_BT.to(self._torch_device),
            lengths_B=micro.lengths_B.to(self._torch_device),
            action_BA=micro.action_BA.to(self._torch_device),
            columns={name: column.to(self._torch_device) for name, column in micro.columns.items()},
        )

    def _clip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """At stage 0 DeepSpeed clips without telling the norm, so it is done here, between reduction and step."""
        limit = self.spec.max_norm or float("inf")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._grad_norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))

    def _writable(self, parameters: list[torch.nn.Parameter]) -> Any:
        """While it lasts the parameters are whole; what rank 0 writes into them is then every rank's."""
        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=self.stage == 3)

    def _gathered(self, parameters: list[torch.nn.Parameter]) -> Any:
        return deepspeed.zero.GatheredParameters(parameters, enabled=self.stage == 3)


@contextmanager
def _sharded_loading(config: dict[str, Any], *, enabled: bool) -> Iterator[None]:
    """While it lasts, `from_pretrained` shards each weight as it is created (ZeRO-3)."""
    # transformers holds this object weakly: it lives as long as this frame, and not a load longer.
    alive = HfDeepSpeedConfig(config) if enabled else None
    yield
    del alive
