"""The table of GPUs: names as people and drivers write them, figures that hold together."""

from __future__ import annotations

import pytest

from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.cards import CARDS, card_named, card_of_size

AS_WRITTEN = {
    "rtx4090": "RTX 4090",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "4090 24gb": "RTX 4090",
    "3060": "RTX 3060 12GB",
    "NVIDIA A100-SXM4-80GB": "A100 80GB SXM",
    "A100-80": "A100 80GB SXM",
    "a100 80gb pcie": "A100 80GB PCIe",
    "h100": "H100 80GB SXM",
    "NVIDIA H100 80GB HBM3": "H100 80GB SXM",
    "NVIDIA H100 PCIe": "H100 80GB PCIe",
    "H100 NVL": "H100 NVL",
    "NVIDIA H200": "H200",
    "NVIDIA GH200 480GB": "GH200",
    "Tesla T4": "T4",
    "Tesla V100-SXM2-32GB": "V100 32GB SXM",
    "rtx-pro-6000": "RTX PRO 6000",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition": "RTX PRO 6000",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
    "rtxa6000": "RTX A6000",
    "a10": "A10",
    "A10G": "A10G",
    "l40s": "L40S",
}


@pytest.mark.parametrize(("written", "name"), AS_WRITTEN.items())
def test_a_card_is_found_as_people_and_drivers_write_it(written: str, name: str) -> None:
    assert card_named(written) is CARDS[name]


def test_every_card_is_found_by_its_own_name() -> None:
    for name, card in CARDS.items():
        assert card_named(name) is card
        assert card_named(f"NVIDIA {name}".upper().replace(" ", "-")) is card


@pytest.mark.parametrize("name", ["V100", "a100", "6000", "24gb"])
def test_a_name_that_several_cards_have_is_asked_back(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--device.gpu {name}: which of "):
        card_named(name)


@pytest.mark.parametrize(("name", "near"), [("4090 ti", "RTX 4090"), ("H800", "H200"), ("l40t", "L40S")])
def test_an_unknown_card_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"it is not in the table; did you mean .*{near}.*--device.memory_gb"):
        card_named(name)


@pytest.mark.parametrize("name", ["", "abacus"])
def test_what_is_like_no_card_is_answered_with_the_table(name: str) -> None:
    with pytest.raises(ConfigError, match="the table has T4, "):
        card_named(name)


def test_the_figures_of_every_card_are_of_their_kind() -> None:
    """Bounds that a slip of a unit or a figure with sparsity would leave."""
    for card in CARDS.values():
        assert 11e9 < card.bytes < 192e9
        assert 0.3e9 <= card.context <= 0.65e9
        assert 25e12 <= card.flops <= 2300e12
        assert 300e9 <= card.memory_bandwidth <= 8000e9
        assert 16e9 <= card.link_bandwidth <= 900e9
        assert 30 <= card.flops / card.memory_bandwidth <= 420, "FLOP for each byte that is read"
        assert "NVIDIA" in card.source
        assert card.bf16 == (not card.name.startswith(("T4", "V100")))


def test_a_card_has_less_than_its_label_in_binary_gigabytes() -> None:
    for name, gigabytes in {
        "RTX 4090": 24,
        "A100 80GB SXM": 80,
        "RTX PRO 6000": 96,
        "T4": 16,
        "RTX 3060 12GB": 12,
    }.items():
        assert gigabytes * 0.9 < CARDS[name].bytes / 2**30 < gigabytes


def test_a_size_is_taken_as_given_and_its_speeds_are_careful() -> None:
    card = card_of_size(24)
    assert (card.bytes, card.context) == (24_000_000_000, 500_000_000)
    assert card.flops == CARDS["A10G"].flops
    assert card.memory_bandwidth == CARDS["L4"].memory_bandwidth
    assert card.bf16
    assert card_of_size(31.9).flops == card.flops
    assert card_of_size(4).flops == CARDS["RTX 3060 12GB"].flops
    assert card_of_size(1000).flops == CARDS["B200"].flops
