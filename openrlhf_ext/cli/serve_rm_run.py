"""One reward server, in this process: the model, and then requests until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from dataclasses import replace

from openrlhf_ext.batch.partition import SplitSettings
from openrlhf_ext.cli.serve_student import student_line
from openrlhf_ext.cli.specs import model_path, split_settings
from openrlhf_ext.config import Parsed, ServeRMConfig
from openrlhf_ext.config.serve_rm import ServedDsSection
from openrlhf_ext.data.tokenizer import load_tokenizer
from openrlhf_ext.device import Device, attention, choose_device
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.models.build import check_spec
from openrlhf_ext.models.load import load_config
from openrlhf_ext.models.scorer import LocalScorer
from openrlhf_ext.models.spec import ModelSpec
from openrlhf_ext.rewards.line import Line, TextScorer
from openrlhf_ext.rewards.server import Limits, reached_from_elsewhere, serve, url_of
from openrlhf_ext.track.progress import console, waiting

TOKENS_AT_ONCE = 16384
"""Of one forward pass, padding included, where --batch_size does not say how many queries it has."""


def run(parsed: Parsed, listener: socket.socket) -> int:
    """Serve until SIGINT or SIGTERM. Raises UserError before the model is loaded where its files are no use."""
    cfg: ServeRMConfig = parsed.config
    device = choose_device(cfg.device.type)
    spec = _model_spec(parsed, device)
    check_spec(spec)
    max_tokens = _longest(parsed, spec)
    if cfg.student.model_name_or_path is not None:
        line, form = student_line(cfg, spec, device, _split(cfg), max_tokens, _say)
    else:
        line, form = _scorer_line(cfg, spec, device, max_tokens), None
    _say(f"serving {spec.path} ({spec.dtype} on this {device.kind}) at {url_of(listener)}; Ctrl-C stops it.")
    if reached_from_elsewhere(listener):
        _say(f"--host {cfg.host}: whoever can reach this address can use the server, which asks for no password.")
    limits = Limits(request=cfg.limits.request_mb * 1_000_000, waiting=cfg.limits.waiting_mb * 1_000_000)
    about = {"model": spec.path, "dtype": spec.dtype, "device": device.kind, "max_len": max_tokens}
    asyncio.run(serve(listener, line, limits, about, _say, form))
    _say(f"stopped after {line.texts} texts of {line.requests} requests.")
    if line.busy:
        # A forward pass cannot be interrupted, and the interpreter would wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _scorer_line(cfg: ServeRMConfig, spec: ModelSpec, device: Device, max_tokens: int) -> Line:
    tokenizer = load_tokenizer(spec.path, fast=not cfg.data.disable_fast_tokenizer)
    with waiting("the model to load"):
        scorer = LocalScorer(spec, device, _split(cfg))
    return Line(TextScorer(scorer, tokenizer, max_tokens), _say)


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _model_spec(parsed: Parsed, device: Device) -> ModelSpec:
    cfg: ServeRMConfig = parsed.config
    path = cfg.student.model_name_or_path or cfg.reward.model_name_or_path
    assert path is not None
    explicit = "ds.attn_implementation" in parsed.explicit
    spec = scorer_spec(path, cfg.ds, device, normalize=cfg.reward.normalize_enable, explicit=explicit)
    return replace(spec, kind="causal_lm") if cfg.student.model_name_or_path else spec


def scorer_spec(path: str, ds: ServedDsSection, device: Device, *, normalize: bool, explicit: bool) -> ModelSpec:
    """A reward model that only answers; `explicit` says whether attention was chosen."""
    if ds.load_in_4bit and not device.can("4bit"):
        raise ConfigError("--ds.load_in_4bit needs bitsandbytes, which is not installed: install it, or leave it out.")
    return ModelSpec(
        path=model_path(path),
        kind="reward",
        dtype=ds.param_dtype,
        attn_implementation=attention(device, ds.attn_implementation, explicit=explicit),
        packing=ds.packing_samples,
        value_head=ds.value_head_prefix,
        normalize=normalize,
        load_in_4bit=ds.load_in_4bit,
    )


def _longest(parsed: Parsed, spec: ModelSpec) -> int:
    """Tokens of the longest query: as asked for, or as many positions as the model has."""
    asked = parsed.config.data.max_len
    positions = getattr(load_config(spec.path).get_text_config(), "max_position_embeddings", None) or asked
    if positions < asked:
        if "data.max_len" in parsed.explicit:
            raise ConfigError(f"--data.max_len {asked}: {spec.path} has {positions} positions; give that or less.")
        _say(f"--data.max_len: the default {asked} becomes {positions}, so many positions does {spec.path} have.")
    return min(asked, positions)


def _split(cfg: ServeRMConfig) -> SplitSettings:
    return split_of(cfg.ds.packing_samples, cfg.batch_size)


def split_of(packed: bool, rows: int | None = None) -> SplitSettings:
    return split_settings(rows or 1, TOKENS_AT_ONCE if rows is None else None, packed=packed)
