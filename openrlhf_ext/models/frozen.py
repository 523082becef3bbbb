"""A frozen language model that answers with log-probs in this very process, without an engine."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.batch.split import inference_split, scatter_rows
from openrlhf_ext.batch.types import MicroBatch, TokenBatch
from openrlhf_ext.device import Device
from openrlhf_ext.device.peaks import PeakMeter
from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.spec import ModelSpec


class LocalLogprobs:
    """A `LogprobRole`. `split` cuts what it is asked about into forward passes.

    Raises OutOfMemory where memory is not enough, DataError for a model that cannot be loaded.
    """

    def __init__(self, spec: ModelSpec, device: Device, split: SplitSettings) -> None:
        assert spec.kind == "causal_lm" and split.ranks == 1, "one model that knows log-probs"
        self._device, self._split = device, replace(split, packed=spec.packing)
        self._meter = PeakMeter(device, "student")
        with self._meter.guard("load"):
            self._model = build_model(spec).to(device.select()).eval()

    @torch.no_grad()
    def logprobs(self, batch: TokenBatch, temperature: float = 1.0) -> Tensor:
        (asked,) = inference_split(batch, self._split)
        micros = asked.micro_batches
        with self._meter.guard("score"):
            outputs = [self._forward(micro, temperature) for micro in micros]
        return scatter_rows(micros, outputs, *batch.action_BA.shape)

    def _forward(self, micro: MicroBatch, temperature: float) -> Tensor:
        tensors = (micro.tokens_BT, micro.lengths_B, micro.action_BA)
        answer: Tensor = self._model(*(each.to(self._device.current()) for each in tensors), temperature)[0]
        return answer.cpu()
