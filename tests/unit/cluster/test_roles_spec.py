"""What the roles of a run reserve: who has processes, and who shares GPUs with whom."""

from __future__ import annotations

import pytest

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.cluster.build import EngineRole, RolesSpec, TrainedRole
from openrlhf_ext.cluster.placement import bundles_of
from openrlhf_ext.device import Device
from openrlhf_ext.engine.spec import EngineSpec
from openrlhf_ext.models.spec import LoraSpec, ModelSpec
from openrlhf_ext.plan.layout import Demand
from openrlhf_ext.rollout.vllm_engine import EngineSettings

GPUS = Device("cuda", 8, frozenset({"sleep", "ipc", "bf16"}))
SETTINGS = EngineSettings("m", transport="broadcast", max_model_len=64)


def role(ranks: int, **model) -> TrainedRole:
    return TrainedRole(ranks, ModelSpec("m", **model), EngineSpec(), threads=1)


def spec(**fields) -> RolesSpec:
    roles = {"policy": role(2), "reference": role(2), "critic": role(1, kind="value"), "reward": role(1, kind="reward")}
    return RolesSpec(
        device=GPUS, engines=EngineRole(2, SETTINGS, 1, 1 << 20), split=SplitSettings(rows=1), **{**roles, **fields}
    )


def test_every_role_has_gpus_of_its_own():
    demands = spec().demands()
    assert [(d.role, d.processes) for d in demands] == [
        ("actor", 2), ("ref", 2), ("critic", 1), ("reward", 1), ("vllm", 2)
    ]  # fmt: skip
    assert sum(len(bundles) for bundles in bundles_of(demands, gpu=True).values()) == 8


@pytest.mark.parametrize(
    ("pools", "gpus", "engines_share"),
    [
        ({"actor": "a", "ref": "a"}, 6, False),
        ({"critic": "c", "reward": "c"}, 7, False),
        ({"actor": "a", "ref": "a", "critic": "c", "reward": "c"}, 5, False),
        (dict.fromkeys(("actor", "ref", "critic", "reward"), "all"), 4, False),  # and engines beside them
        (dict.fromkeys(("actor", "ref", "critic", "reward", "vllm"), "all"), 2, True),
    ],
)
def test_roles_of_a_pool_share(pools, gpus, engines_share):
    shared = spec(pools=pools)
    assert sum(len(bundles) for bundles in bundles_of(shared.demands(), gpu=True).values()) == gpus
    assert shared.engines_share == engines_share


def test_a_student_is_a_worker_group_that_reserves_and_shares_as_the_others_do():
    with_student = spec(student=role(3))
    assert with_student.groups["student"].ranks == 3
    assert sum(len(bundles) for bundles in bundles_of(with_student.demands(), gpu=True).values()) == 8 + 3
    shared = spec(student=role(2), pools={"actor": "a", "student": "a"})
    assert sum(len(bundles) for bundles in bundles_of(shared.demands(), gpu=True).values()) == 8


def test_a_base_has_no_processes_of_its_own():
    adapted = spec(policy=role(2, lora=LoraSpec(rank=2)), reference=None, reference_is_base=True)
    assert Demand("ref", "ref", 2) not in adapted.demands() and "reference" not in adapted.groups
    with pytest.raises(AssertionError, match="one reference"):
        spec(reference_is_base=True)
    with pytest.raises(AssertionError, match="without adapters"):
        spec(reference=None, reference_is_base=True)
