"""A reward model that answers in this very process, without an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from openrlhf_ext.batch.pad import Tokens, padded, row_lengths
from openrlhf_ext.batch.partition import SplitSettings, micro_batches
from openrlhf_ext.device import Device
from openrlhf_ext.device.peaks import PeakMeter
from openrlhf_ext.models.build import build_model
from openrlhf_ext.models.spec import ModelSpec


class LocalScorer:
    """A `rewards.model.Scorer`. `split` cuts what it is asked about into forward passes, neighbours in length together.

    Raises OutOfMemory where memory is not enough, DataError for a model that cannot be loaded.
    """

    def __init__(self, spec: ModelSpec, device: Device, split: SplitSettings) -> None:
        assert spec.kind == "reward" and spec.head_dim == 1 and split.ranks == 1, "one model, one number a row"
        self._device = device
        self._split = split
        self._meter = PeakMeter(device, "reward")
        with self._meter.guard("load"):
            self._model = build_model(spec).to(device.select()).eval()

    @torch.no_grad()
    def scores(self, rows: Sequence[Tokens]) -> list[float]:
        (parts,) = micro_batches([len(row) for row in rows], self._split)
        found: dict[int, float] = {}
        with self._meter.guard("score"):
            for part in parts:
                found.update(zip(part, self._forward([rows[index] for index in part]), strict=True))
        return [found[index] for index in range(len(rows))]

    def _forward(self, rows: Sequence[Tokens]) -> list[float]:
        # Token 0 pads: no row sees what is on its right.
        tokens_BT, lengths_B = (torch.from_numpy(each) for each in (padded(rows, 0, np.int64), row_lengths(rows)))
        action_BA = torch.zeros(len(rows), tokens_BT.shape[1] - 1, dtype=torch.bool)
        score_BH = self._model(*(each.to(self._device.current()) for each in (tokens_BT, lengths_B, action_BA)))[0]
        return score_BH.squeeze(-1).tolist()
