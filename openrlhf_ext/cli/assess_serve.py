"""`assess serve`: the assessment of a folder, made or gone on with, on a page or in this terminal."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import replace
from pathlib import Path

from openrlhf_ext.assess.assessment import (
    JUDGEMENTS,
    Assessment,
    check_raters,
    exists,
    read_assessment,
    require_same,
    write_assessment,
)
from openrlhf_ext.assess.desk import Desk
from openrlhf_ext.assess.items import make_items
from openrlhf_ext.assess.log import JudgementLog
from openrlhf_ext.cli.assess_rows import tables_of
from openrlhf_ext.config import Parsed
from openrlhf_ext.config.assess import AssessConfig
from openrlhf_ext.errors import ConfigError
from openrlhf_ext.rewards.server import listen, reached_from_elsewhere
from openrlhf_ext.track.progress import console


def run(parsed: Parsed) -> int:
    """0 when the judging is over for now. Raises UserError for input that is no use; then nothing was changed."""
    cfg: AssessConfig = parsed.config
    if cfg.tui:
        return _in_terminal(parsed)
    with listen(cfg.host, cfg.port) as listener:
        return _on_page(parsed, listener)


def _in_terminal(parsed: Parsed) -> int:
    cfg: AssessConfig = parsed.config
    assessment = open_assessment(parsed)
    rater = cfg.assess.rater
    if rater is None:
        if len(assessment.raters) > 1:
            names = ", ".join(assessment.raters)
            raise ConfigError(f"--assess.rater: it is required, because there are several: name one of {names}.")
        rater = assessment.raters[0]
    log = _open_log(_folder(cfg), assessment)
    desk = Desk(assessment, log, rater)
    from openrlhf_ext.assess.terminal import AssessApp

    AssessApp(desk).run()
    print(f"{len(desk.judged)} of {len(desk.keys)} items judged by {rater}; all is saved in {cfg.assess.folder}")
    return 0


def _on_page(parsed: Parsed, listener: socket.socket) -> int:
    cfg: AssessConfig = parsed.config
    assessment = open_assessment(parsed)
    log = _open_log(_folder(cfg), assessment)
    from openrlhf_ext.assess.server import serve, tokens

    links = tokens(_folder(cfg), assessment)
    port = listener.getsockname()[1]
    host = socket.gethostname() if ipaddress.ip_address(listener.getsockname()[0]).is_unspecified else cfg.host
    shown = f"[{host}]" if ":" in host else host
    for rater in assessment.raters:
        desk = Desk(assessment, log, rater)
        done = f"{len(desk.judged)} of {len(desk.keys)} judged"
        print(f"{rater}: http://{shown}:{port}/{links[rater]}/ ({done})", flush=True)
    _say(f"a link is for its rater alone; {cfg.assess.folder} keeps every judgement; Ctrl-C stops the server.")
    if reached_from_elsewhere(listener):
        _say(f"--host {cfg.host}: whoever has a link and reaches this address can judge; nothing is encrypted.")
    asyncio.run(serve(listener, assessment, log, links))
    counts = ", ".join(f"{rater} {len(Desk(assessment, log, rater).judged)}" for rater in assessment.raters)
    _say(f"stopped; judged so far: {counts}.")
    return 0


def open_assessment(parsed: Parsed) -> Assessment:
    """The one in the folder, which must agree with what was named, or a new one. Raises ConfigError or DataError."""
    cfg: AssessConfig = parsed.config
    folder = _folder(cfg)
    if not exists(folder):
        made = _made(cfg)
        if cfg.assess.rater is not None:
            made.require_rater(cfg.assess.rater)
        write_assessment(folder, made)
        _say(_told(made))
        return made
    there = read_assessment(folder)
    named = {name for name in ("task", "raters", "overlap", "seed") if f"assess.{name}" in parsed.explicit}
    wanted = replace(there, **{name: getattr(cfg.assess, name) for name in named})
    if cfg.assess.answers or cfg.data.dataset:
        settings = {name: getattr(wanted, name) for name in ("task", "raters", "overlap", "seed")}
        items = cfg.assess.items if "assess.items" in parsed.explicit else len(there.items)
        wanted = _made(replace(cfg, assess=replace(cfg.assess, items=items, **settings)))
    elif "assess.items" in parsed.explicit and cfg.assess.items != len(there.items):
        raise ConfigError(
            f"--assess.items {cfg.assess.items}: {folder} has {len(there.items)} items, which stay; leave the flag out."
        )
    require_same(folder, there, wanted)
    if cfg.assess.rater is not None:
        there.require_rater(cfg.assess.rater)
    return there


def _made(cfg: AssessConfig) -> Assessment:
    """From the answers that the flags name. Raises ConfigError or DataError."""
    asked = cfg.assess
    if not asked.answers and cfg.data.dataset is None:
        raise ConfigError(
            f"--assess.answers: it is required, because {asked.folder} holds no assessment yet: a folder that eval "
            "wrote, or rows by --data.dataset."
        )
    check_raters(asked.raters)
    tables = tables_of(cfg)
    made = make_items(asked.task, tables, most=asked.items, seed=asked.seed)
    if asked.overlap is not None and asked.overlap > len(made.items):
        raise ConfigError(f"--assess.overlap {asked.overlap}: there are {len(made.items)} items; give that or less.")
    models = tuple(table.answerer for table in tables)
    return Assessment(asked.task, models, asked.raters, asked.overlap, asked.seed, made.items, made.left_out)


def open_folder(folder: str | None) -> tuple[Assessment, JudgementLog]:
    """An assessment that is there, with its judgements. Raises DataError."""
    assert folder is not None
    path = Path(folder).expanduser()
    assessment = read_assessment(path)
    return assessment, _open_log(path, assessment)


def _open_log(folder: Path, assessment: Assessment) -> JudgementLog:
    log = JudgementLog(folder / JUDGEMENTS, assessment)
    if log.mended:
        _say(log.mended)
    return log


def _folder(cfg: AssessConfig) -> Path:
    assert cfg.assess.folder is not None
    return Path(cfg.assess.folder).expanduser()


def _told(made: Assessment) -> str:
    words = {"identical": "pairs of equal answers", "unpaired": "answers to prompts that one model was not asked"}
    lost = "".join(f"; left out: {n} {words[name]}" for name, n in made.left_out.items() if n)
    return f"a new assessment of {len(made.items)} items, {len(made.shared())} of them for every rater{lost}."


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)
