"""What the driver says of the GPUs of this machine, without a context on any of them."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from openrlhf_ext.errors import ResourceError

_ASKED = "index,uuid,name,memory.total,memory.free,driver_version"
ANSWER_WITHIN_S = 5.0
HIDE = "name other GPUs in CUDA_VISIBLE_DEVICES"
"""What to do about one that is not to be used."""


@dataclass(frozen=True, slots=True)
class CardHere:
    """One GPU; bytes in all and free."""

    index: int
    uuid: str
    name: str
    bytes: int
    free: int
    driver: str


def cards_here() -> list[CardHere]:
    """The GPUs that this process may use (CUDA_VISIBLE_DEVICES). Raises ResourceError where the driver is not there."""
    command = ["nvidia-smi", f"--query-gpu={_ASKED}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_WITHIN_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ResourceError(
            f"nvidia-smi cannot be asked about the GPUs ({type(error).__name__}): install the driver's tools, or put "
            "them on PATH."
        ) from None
    return visible(read_cards(done.stdout), os.environ.get("CUDA_VISIBLE_DEVICES"))


def read_cards(listing: str) -> list[CardHere]:
    """The lines of nvidia-smi, whose memory is in MiB ("[N/A]" where the card shares the host's)."""
    cards = []
    for line in listing.strip().splitlines():
        index, uuid, name, total, free, driver = (cell.strip() for cell in line.split(","))
        cards.append(CardHere(int(index), uuid, name, _mib(total), _mib(free), driver))
    return cards


def visible(cards: list[CardHere], chosen: str | None) -> list[CardHere]:
    """Those that a comma-separated list of indices or UUIDs names, in its order; all without one."""
    if chosen is None:
        return cards
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    return [card for name in names for card in cards if name == str(card.index) or card.uuid.startswith(name)]


def _mib(text: str) -> int:
    return int(text) << 20 if text.isdigit() else 0
