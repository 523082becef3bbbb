"""`judge serve`: one judge in this process, and requests until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections import Counter

from openrlhf_ext.cli.judge_model import open_judge, settings_of
from openrlhf_ext.config import Parsed
from openrlhf_ext.config.judge_command import ServeJudgeConfig
from openrlhf_ext.device import choose_device
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.rewards.judge.rubric_file import load_rubric
from openrlhf_ext.rewards.judge_server import judge_cases, judge_form
from openrlhf_ext.rewards.line import Line
from openrlhf_ext.rewards.server import Limits, reached_from_elsewhere, serve, url_of
from openrlhf_ext.track.progress import console


def serve_judge(parsed: Parsed, listener: socket.socket) -> int:
    """Serve until SIGINT or SIGTERM. Raises UserError before the model is loaded where the input is no use."""
    cfg: ServeJudgeConfig = parsed.config
    assert cfg.judge.prompt is not None
    if cfg.judge.mode == "pairwise":
        raise ConfigError("--judge.mode pairwise: a request has no groups to compare within; serve it pointwise.")
    rubric = load_rubric(cfg.judge.prompt)
    device = choose_device(cfg.device.type)
    limits = Limits(request=cfg.limits.request_mb * 1_000_000, waiting=cfg.limits.waiting_mb * 1_000_000)
    with open_judge(cfg.judge, device) as opened:
        totals: Counter[str] = Counter()
        line = Line(judge_cases(opened.judge(rubric, settings_of(cfg.judge)), totals), _say)
        _say(f"serving {opened.model.name} by {rubric.origin} at {url_of(listener)}; Ctrl-C stops it.")
        if reached_from_elsewhere(listener):
            _say(f"--host {cfg.host}: whoever can reach this address can use the server, which asks for no password.")
        about = {"model": opened.model.name, "rubric": rubric.origin, "device": device.kind, "judge": totals}
        asyncio.run(serve(listener, line, limits, about, _say, judge_form(rubric)))
        lost = (
            f"{totals['no_verdict']:g} without a verdict, {totals['parse_failures']:g} replies that could not be read"
        )
        _say(f"stopped after {line.texts} texts of {line.requests} requests: {lost}.")
        if line.busy:
            # An answer under way cannot be interrupted, and the interpreter would wait for it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    return 0


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
