"""Pools and bundles: roles of one pool share, a bundle is one GPU or one CPU process."""

from __future__ import annotations

import pytest

from openrlhf_ext.cluster.placement import bundles_of
from openrlhf_ext.plan.layout import Demand


def roles(pools: tuple[str, str, str], ranks: tuple[int, int, int], devices: int = 1) -> list[Demand]:
    names = ("actor", "ref", "vllm")
    return [
        Demand(name, pool, count, devices if name == "vllm" else 1) for name, pool, count in zip(names, pools, ranks)
    ]


def test_roles_apart_have_bundles_of_their_own():
    bundles = bundles_of(roles(("actor", "ref", "vllm"), (4, 2, 3)), gpu=True)
    assert bundles == {
        name: [{"CPU": 1.0, "GPU": 1.0}] * count for name, count in zip(("actor", "ref", "vllm"), (4, 2, 3))
    }


def test_roles_of_a_pool_share_the_bundles_of_the_largest():
    assert bundles_of(roles(("all", "all", "all"), (2, 1, 4)), gpu=True) == {"all": [{"CPU": 1.0, "GPU": 1.0}] * 4}


def test_an_engine_of_several_gpus_has_them_on_one_node():
    bundles = bundles_of(roles(("train", "train", "vllm"), (8, 8, 2), devices=4), gpu=True)
    assert bundles == {"train": [{"CPU": 1.0, "GPU": 1.0}] * 8, "vllm": [{"CPU": 4.0, "GPU": 4.0}] * 2}


def test_a_cpu_process_takes_one_cpu_whatever_its_role():
    bundles = bundles_of(roles(("actor", "ref", "vllm"), (2, 1, 2), devices=2), gpu=False)
    assert bundles == {"actor": [{"CPU": 1.0}] * 2, "ref": [{"CPU": 1.0}], "vllm": [{"CPU": 1.0}] * 2}


def test_roles_that_share_take_equal_shares():
    with pytest.raises(AssertionError, match="equal"):
        bundles_of(roles(("all", "all", "all"), (1, 1, 1), devices=2), gpu=True)
