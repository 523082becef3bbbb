"""A reference that follows the policy, bucket by bucket from rank to rank: the driver never sees a weight."""

from __future__ import annotations

from pathlib import Path

from openrlhf_ext.cluster.phases import Phases
from openrlhf_ext.cluster.roles import RemotePolicy, RemoteReference


class RemoteMixed:
    """`MixedReference` over the reference's worker group and the policy's, which may be sharded differently.

    In a checkpoint it is a Hugging Face folder: it does not depend on ranks or on the ZeRO stage.
    """

    def __init__(self, reference: RemoteReference, policy: RemotePolicy, *, saves: bool = True) -> None:
        """`saves` False: checkpoints are not to be resumed from."""
        assert reference.group is not policy.group, "the base under adapters is the policy's own"
        self._reference, self._policy = reference.group, policy.group
        self._phases: Phases = reference.phases
        self._saves = saves

    def mix(self, mixup: float) -> None:
        self._phases.enter("train")
        receivers = self._reference.workers
        calls = [worker.feed.remote(receivers, mixup) for worker in self._policy.workers]
        self._policy.collect(calls, "the reference to follow the policy", "train")

    def save(self, folder: Path) -> None:
        if not self._saves:
            return
        self._phases.enter("reference_files")
        calls = [worker.export.remote(str(folder.absolute())) for worker in self._reference.workers]
        self._reference.collect(calls, f"the reference to be saved under {folder}", "save")

    def load(self, folder: Path) -> None:
        self._phases.enter("reference_files")
        calls = [worker.load_weights.remote(str(folder.absolute())) for worker in self._reference.workers]
        self._reference.collect(calls, f"the reference to be loaded from {folder}", "load")
