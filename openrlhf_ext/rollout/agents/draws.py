"""Random numbers that user code draws from the libraries' own generators. Standard library only."""

from __future__ import annotations

import hashlib
import random
import sys


def seed_draws(seed: int, turn: int) -> None:
    """Seed `random`, and numpy and torch where the file imported them: a run that is resumed draws the same.

    Episodes share these generators, so it holds up to the next `await` of the code that follows.
    """
    digest = hashlib.blake2b(f"{seed}/{turn}".encode(), digest_size=8).digest()
    value = int.from_bytes(digest, "big") >> 1
    random.seed(value)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(value % 2**32)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(value)
