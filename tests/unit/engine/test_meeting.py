"""Ranks tell each other things before there is a process group."""

from __future__ import annotations

import multiprocessing
from typing import Any

from openrlhf_ext.device.rendezvous import free_port
from openrlhf_ext.engine.process import exchange, meeting_point

RANKS = 3


def tell(rank: int, port: int, answers: Any) -> None:
    store = meeting_point(rank, RANKS, "127.0.0.1", port, False)
    assert meeting_point(rank, RANKS, "127.0.0.1", port, False) is store
    first = exchange(store, "first", rank, RANKS, {"rank": rank})
    answers.put((rank, first, exchange(store, "second", rank, RANKS, [rank, None])))


def test_every_rank_hears_every_value_and_the_first_stays_until_they_have():
    context = multiprocessing.get_context("fork")
    answers, port = context.Queue(), free_port("127.0.0.1")
    ranks = [context.Process(target=tell, args=(rank, port, answers)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    heard = sorted(answers.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join(timeout=60)
    assert [process.exitcode for process in ranks] == [0] * RANKS
    values = [{"rank": rank} for rank in range(RANKS)], [[rank, None] for rank in range(RANKS)]
    assert heard == [(rank, *values) for rank in range(RANKS)]
