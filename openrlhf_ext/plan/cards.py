"""The GPUs people train on: their memory, and the speeds that a roofline is made of.

Bytes are what CUDA gives out (`cudaMemGetInfo`, PyTorch's "total capacity"), the least that drivers have been seen to
report: 0.3 to 0.9 GiB below nvidia-smi's total, for the driver keeps some for itself (more with ECC). Speeds are those
of NVIDIA's data sheets and architecture papers: dense (without sparsity), 16-bit numbers added up in 32 bits, which
GeForce cards do at half the speed that is advertised. Links are PCIe x16 of the card's generation, or NVLink
where every GPU of a machine has it to every other; one direction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from openrlhf_ext.errors import ConfigError
from openrlhf_ext.plan.types import Card

GIB = 1 << 30
CONTEXT, CONTEXT_PER_SM = 250_000_000, 2_000_000
"""Bytes a process takes of a GPU before its first tensor: the code of kernels, and stacks and local memory
for every multiprocessor. Computed, not measured; it gives 0.3e9 on a T4 and 0.5e9 on an H100."""

UNKNOWN_CONTEXT = 500_000_000
PCIE_3, PCIE_4, PCIE_5 = 16e9, 32e9, 64e9
NO_BF16 = "TV"  # Turing and Volta

SOURCES = {
    "V": "NVIDIA V100 data sheet (2020)",
    "T": "NVIDIA T4 data sheet (2019)",
    "GA102": "NVIDIA Ampere GA102 architecture paper, appendix A",
    "GA106": "NVIDIA GeForce RTX 3060 specifications: 2 x 12.7 TFLOP/s float32, as in the GA102 paper",
    "AD102": "NVIDIA Ada architecture paper, appendix A",
    "GB202": "NVIDIA RTX Blackwell architecture paper, appendix",
    "L4": "NVIDIA L4 data sheet",
    "L40": "NVIDIA L40 and L40S data sheets",
    "A10": "NVIDIA A10 data sheet",
    "A10G": "Amazon EC2 G5 and NVIDIA A10G: 35 TFLOP/s float32, 70 of tensor cores",
    "A30": "NVIDIA A30 data sheet",
    "A40": "NVIDIA A40 data sheet",
    "A5000": "NVIDIA RTX A5000 data sheet (222.2 TFLOP/s are with sparsity)",
    "A100": "NVIDIA A100 data sheet (June 2021)",
    "H100": "NVIDIA H100 data sheet (its figures are with sparsity)",
    "H200": "NVIDIA H200 data sheet (its figures are with sparsity)",
    "GH200": "NVIDIA GH200 data sheet, 96 GB HBM3 (its figures are with sparsity)",
    "H20": "NVIDIA H20 product brief",
    "B200": "NVIDIA HGX B200 data sheet (its figures are with sparsity)",
}


@dataclass(frozen=True, slots=True)
class _Row:
    """`size` as it is sold, `gib` as CUDA reports it, TFLOP/s, GB/s, GB/s of the link, multiprocessors."""

    name: str
    size: int
    gib: float
    tflops: float
    memory: float
    link: float
    multiprocessors: int
    source: str

    def card(self) -> Card:
        return Card(
            name=self.name,
            bytes=int(self.gib * GIB),
            context=CONTEXT + CONTEXT_PER_SM * self.multiprocessors,
            flops=self.tflops * 1e12,
            memory_bandwidth=self.memory * 1e9,
            link_bandwidth=self.link,
            bf16=self.source not in NO_BF16,
            source=SOURCES[self.source],
        )


_ROWS = (
    _Row("T4", 16, 14.56, 65, 300, PCIE_3, 40, "T"),
    _Row("V100 16GB SXM", 16, 15.77, 125, 900, 150e9, 80, "V"),
    _Row("V100 16GB PCIe", 16, 15.77, 112, 900, PCIE_3, 80, "V"),
    _Row("V100 32GB SXM", 32, 31.73, 125, 900, 150e9, 80, "V"),
    _Row("V100 32GB PCIe", 32, 31.73, 112, 900, PCIE_3, 80, "V"),
    _Row("RTX 3060 12GB", 12, 11.62, 25.5, 360, PCIE_4, 28, "GA106"),
    _Row("RTX 3090", 24, 23.56, 71, 936, PCIE_4, 82, "GA102"),
    _Row("RTX 4070 12GB", 12, 11.60, 58.3, 504, PCIE_4, 46, "AD102"),
    _Row("RTX 4080", 16, 15.57, 97.5, 717, PCIE_4, 76, "AD102"),
    _Row("RTX 4090", 24, 23.51, 165.2, 1008, PCIE_4, 128, "AD102"),
    _Row("RTX 5090", 32, 31.34, 209.5, 1792, PCIE_5, 170, "GB202"),
    _Row("RTX A5000", 24, 23.50, 111.1, 768, PCIE_4, 64, "A5000"),
    _Row("RTX A6000", 48, 47.40, 154.8, 768, PCIE_4, 84, "GA102"),
    _Row("RTX 6000 Ada", 48, 47.27, 364.2, 960, PCIE_4, 142, "AD102"),
    _Row("RTX PRO 6000", 96, 94.97, 503.8, 1792, PCIE_5, 188, "GB202"),
    _Row("L4", 24, 22.03, 121, 300, PCIE_4, 58, "L4"),
    _Row("L40", 48, 44.34, 181, 864, PCIE_4, 142, "L40"),
    _Row("L40S", 48, 44.34, 362, 864, PCIE_4, 142, "L40"),
    _Row("A10", 24, 22.05, 125, 600, PCIE_4, 72, "A10"),
    _Row("A10G", 24, 22.05, 70, 600, PCIE_4, 80, "A10G"),
    _Row("A30", 24, 23.50, 165, 933, PCIE_4, 56, "A30"),
    _Row("A40", 48, 44.34, 149.7, 696, PCIE_4, 84, "A40"),
    _Row("A100 40GB SXM", 40, 39.38, 312, 1555, 300e9, 108, "A100"),
    _Row("A100 40GB PCIe", 40, 39.38, 312, 1555, PCIE_4, 108, "A100"),
    _Row("A100 80GB SXM", 80, 79.14, 312, 2039, 300e9, 108, "A100"),
    _Row("A100 80GB PCIe", 80, 79.14, 312, 1935, PCIE_4, 108, "A100"),
    _Row("H100 80GB SXM", 80, 79.10, 989, 3350, 450e9, 132, "H100"),
    _Row("H100 80GB PCIe", 80, 79.10, 756, 2000, PCIE_5, 114, "H100"),
    _Row("H100 NVL", 94, 93.00, 835, 3900, PCIE_5, 132, "H100"),
    _Row("H200", 141, 139.72, 989, 4800, 450e9, 132, "H200"),
    _Row("H200 NVL", 141, 139.72, 835, 4800, PCIE_5, 132, "H200"),
    _Row("GH200", 96, 94.50, 989, 4000, 450e9, 132, "GH200"),
    _Row("H20", 96, 95.00, 148, 4000, 450e9, 78, "H20"),
    _Row("B200", 180, 178.35, 2250, 7700, 900e9, 148, "B200"),
)

CARDS: dict[str, Card] = {row.name: row.card() for row in _ROWS}

MEANT = {frozenset({"h", "100"}): "H100 80GB SXM"}
"""Names that stand for one card, though others begin with them."""

_DECORATION = re.compile(
    r"nvidia|geforce|tesla|quadro|rtx|blackwell|generation|edition|workstation|server|max-?q|hbm\d?e?"
    r"|(?<=gh200)[ -]*(480|120)gb"  # the memory of GH200's processor
)


def card_named(name: str) -> Card:
    """The card of this name, as people write it or as nvidia-smi does (`NVIDIA A100-SXM4-80GB`).

    Where SXM or PCIe is not said it is SXM. Raises ConfigError for a name that no card of the table has, or that
    several have.
    """
    wanted = _words(name)
    if wanted in MEANT:
        return CARDS[MEANT[wanted]]
    whole = [row for row in _ROWS if wanted and wanted | {str(row.size)} == _words(row.name) | {str(row.size)}]
    found = whole or [row for row in _ROWS if wanted and wanted <= _words(row.name) | {str(row.size)}]
    if len({_words(row.name) - {"sxm", "pcie"} for row in found}) == 1:
        return CARDS[found[0].name]
    if found:
        raise ConfigError(f"--device.gpu {name}: which of {', '.join(row.name for row in found)} is meant; name it.")
    names = {_plain(row.name): row.name for row in _ROWS}
    near = " or ".join(names[each] for each in get_close_matches(_plain(name), names, n=3, cutoff=0.55))
    hint = f"did you mean {near}" if near else f"the table has {', '.join(CARDS)}"
    raise ConfigError(f"--device.gpu {name}: it is not in the table; {hint}, or give --device.memory_gb.")


def card_of_size(gb: float) -> Card:
    """Any card with so many GB (1e9 bytes). Its speeds are the lowest of the table's cards of that size, or of the
    next smaller one (the smallest, where there is none).
    """
    known = [row for row in _ROWS if row.source not in NO_BF16]
    size = max((row.size for row in known if row.size <= gb), default=min(row.size for row in known))
    alike = [CARDS[row.name] for row in known if row.size == size]
    return Card(
        name=f"a GPU of {gb:g} GB",
        bytes=int(gb * 1e9),
        context=UNKNOWN_CONTEXT,
        flops=min(card.flops for card in alike),
        memory_bandwidth=min(card.memory_bandwidth for card in alike),
        link_bandwidth=min(card.link_bandwidth for card in alike),
        source=f"the memory as given; the lowest speeds of {', '.join(card.name for card in alike)}",
    )


def _words(name: str) -> frozenset[str]:
    """What tells a card from others: `NVIDIA A100-SXM4-80GB` is a, 100, sxm, 80."""
    text = re.sub(r"sxm\d", "sxm", _DECORATION.sub(" ", name.lower()))
    return frozenset(re.findall(r"[a-z]+|\d+", text)) - {"gb", "gib", "gpu"}


def _plain(name: str) -> str:
    return "".join(re.findall(r"[a-z0-9]+", re.sub("nvidia|geforce|rtx", "", name.lower())))
