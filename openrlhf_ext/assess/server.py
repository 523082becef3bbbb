"""The page of an assessment behind HTTP, for its raters.

Every address begins with a rater's token: who has the link is that rater, and without one there is nothing here but
404. The tokens come from the folder's secret, so a link outlives the server, and the page finds it again by itself.

    GET  /TOKEN/            the page; its files beside it
    GET  /TOKEN/state       the rater's items in their order, what is judged, what an undo can take back
    GET  /TOKEN/items/KEY   one item, blind
    POST /TOKEN/judgements  {"id", "item", "verdict", "note", "seconds"}: answered when it is on the disk
    POST /TOKEN/undo        {"id", "of"}: the same
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from aiohttp import web

from openrlhf_ext.assess.assessment import SECRET, Assessment
from openrlhf_ext.assess.desk import Desk
from openrlhf_ext.assess.log import JudgementLog
from openrlhf_ext.assess.verdicts import (
    KINDS,
    REASONS,
    Choice,
    Hallucination,
    choice_of,
    hallucination_of,
    note_of,
    seconds_of,
)
from openrlhf_ext.errors import DataError, UserError
from openrlhf_ext.rewards.server import Handler, Refused, object_of, reached_from_elsewhere, stop_at_signal
from openrlhf_ext.track.files import sync_folder

LARGEST_REQUEST = 200_000  # bytes
TOKEN_HEX = 32
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def tokens(folder: Path, assessment: Assessment) -> dict[str, str]:
    """The token of each rater, from a secret that only this user can read and that is made at the first time."""
    path = folder / SECRET
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(descriptor)
        sync_folder(folder)
    secret = path.read_bytes()
    if len(secret) < 32:
        raise DataError(f"{path} is no secret: remove it, and new links are made.")
    return {
        rater: hmac.new(secret, rater.encode(), hashlib.sha256).hexdigest()[:TOKEN_HEX] for rater in assessment.raters
    }


async def serve(listener: socket.socket, assessment: Assessment, log: JudgementLog, links: Mapping[str, str]) -> None:
    """Answer until SIGINT or SIGTERM. `links` are the raters' tokens."""
    own = {socket.gethostname().lower(), socket.getfqdn().lower()} if reached_from_elsewhere(listener) else set()
    stop = stop_at_signal()
    runner = await AssessmentServer(assessment, log, links, frozenset(own)).start(listener)
    await stop.wait()
    await runner.cleanup()


class AssessmentServer:
    """The routes. A request's Host must be an IP address, localhost or one of `host_names`: a stranger's page that
    makes its own name mean this machine has another one there.
    """

    def __init__(
        self, assessment: Assessment, log: JudgementLog, links: Mapping[str, str], host_names: frozenset[str]
    ) -> None:
        self._desks = {token: Desk(assessment, log, rater) for rater, token in links.items()}
        self._host_names = host_names | {"localhost"}
        self._page = {
            file.name: (file.read_bytes(), TYPES[Path(file.name).suffix])
            for file in resources.files("openrlhf_ext.assess").joinpath("page").iterdir()
        }

    async def start(self, listener: socket.socket) -> web.AppRunner:
        """Take requests until the runner is cleaned up."""
        app = web.Application(client_max_size=LARGEST_REQUEST, middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/{token}/", self._file),
                web.get("/{token}/state", self._state),
                web.get("/{token}/items/{key}", self._item),
                web.post("/{token}/judgements", self._judge),
                web.post("/{token}/undo", self._undo),
                web.get("/{token}/{name}", self._file),
            ]
        )
        runner = web.AppRunner(app, access_log=None, auto_decompress=False, shutdown_timeout=2)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        return runner

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Host and token, one sentence for whatever is wrong, and the headers of every answer."""
        try:
            if not self._is_ours(request.host):
                raise Refused(403, "the Host of the request is not this server: open the link as it was printed.")
            response = await handler(request)
        except Refused as refused:
            response = _sentence(refused.status, refused.sentence)
        except DataError as error:
            response = _sentence(400, str(error))
        except UserError as error:
            response = _sentence(500, str(error))
        except web.HTTPException as error:
            response = _sentence(error.status, f"{error.reason}: open the link as it was printed.")
        response.headers.update(HEADERS)
        return response

    def _is_ours(self, host: str) -> bool:
        """The port does not matter: it is another one behind a tunnel."""
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        if name.lower() in self._host_names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _desk(self, request: web.Request) -> Desk:
        given = request.match_info["token"].encode("utf-8", "replace")
        for token, desk in self._desks.items():
            if hmac.compare_digest(token.encode(), given):
                return desk
        raise Refused(404, "there is nothing here: open the link as it was printed.")

    async def _file(self, request: web.Request) -> web.Response:
        self._desk(request)
        found = self._page.get(request.match_info.get("name", "page.html"))
        if found is None:
            raise Refused(404, "there is nothing here: open the link as it was printed.")
        content, kind = found
        return web.Response(body=content, content_type=kind, charset="utf-8")

    async def _state(self, request: web.Request) -> web.Response:
        desk = self._desk(request)
        return web.json_response(
            {
                "task": desk.assessment.task,
                "rater": desk.rater,
                "kinds": KINDS,
                "reasons": REASONS,
                "items": [{"key": key} for key in desk.keys],
                "history": [asdict(said) for said in desk.history],
            }
        )

    async def _item(self, request: web.Request) -> web.Response:
        return web.json_response(asdict(self._desk(request).sheet(request.match_info["key"])))

    async def _judge(self, request: web.Request) -> web.Response:
        desk, body = self._desk(request), await _body(request)
        try:
            said = _verdict(desk, body)
            note, seconds, entry_id = note_of(body), seconds_of(body), _id(body, "id")
        except ValueError as error:
            raise Refused(400, f"the judgement cannot be taken ({error}): reload the page.") from None
        desk.judge(str(body.get("item")), said, note, seconds, entry_id=entry_id)
        return _progress(desk)

    async def _undo(self, request: web.Request) -> web.Response:
        desk, body = self._desk(request), await _body(request)
        try:
            entry_id, of = _id(body, "id"), _id(body, "of")
        except ValueError as error:
            raise Refused(400, f"the undo cannot be taken ({error}): reload the page.") from None
        desk.undo(of, entry_id=entry_id)
        return _progress(desk)


def _verdict(desk: Desk, body: Mapping[str, Any]) -> Hallucination | Choice:
    said = body.get("verdict")
    if not isinstance(said, dict):
        raise ValueError("'verdict' must be an object")
    return hallucination_of(said) if desk.assessment.task == "hallucination" else choice_of(said)


def _progress(desk: Desk) -> web.Response:
    return web.json_response({"judged": len(desk.judged), "items": len(desk.keys)})


async def _body(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":  # which no form of another page can send
        raise Refused(415, "send JSON.")
    return object_of(await request.read(), "reload the page")


def _id(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 8 <= len(value) <= 64 or not value.isascii():
        raise ValueError(f"{name!r} must be a text of 8 to 64 characters")
    return value


def _sentence(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
