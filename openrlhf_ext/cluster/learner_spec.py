"""What the one model of a supervised command is, wherever its ranks run. Ray is not needed to say so."""

from __future__ import annotations

from dataclasses import dataclass, field

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.track.checkpoints import CheckpointContent


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """`split` cuts the batches it is asked about; `threads` are those of each rank."""

    device: Device
    ranks: int
    model: ModelSpec
    engine: EngineSpec
    split: SplitSettings
    threads: int
    content: CheckpointContent = field(default_factory=CheckpointContent)
