"""A reward server in OpenRLHF 0.11.2's JSON: POST {"query", "prompts", "labels"}, one list entry per sample.

The answer is a JSON object `{"rewards": [...], "scores": [...], "extra_logs": {...}}` (see `answer`).
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import httpx

from openrlhf_ext.errors import RewardError
from openrlhf_ext.rewards.answer import Answer, AnswerError, read_answer
from openrlhf_ext.rewards.process import RewardBatch
from openrlhf_ext.types import Report


class HttpSource:
    """A reward server at a URL; one request for a whole batch."""

    signature = "an HTTP server"

    def __init__(self, name: str, url: str) -> None:
        if not urlsplit(url).netloc:
            raise RewardError(f"reward URL {url!r} names no host: give http://HOST:PORT/PATH.")
        self.name = name
        self.origin = url
        self._client = httpx.Client()

    def start(self) -> None:
        """Nothing to start: the server is another's."""

    def ask(self, batch: RewardBatch, timeout_s: float) -> Answer:
        try:
            body = json.dumps({"query": batch.queries, "prompts": batch.prompts, "labels": batch.labels})
        except (TypeError, ValueError) as error:
            raise RewardError(f"reward {self.origin}: the labels cannot be sent as JSON ({error}).") from None
        try:
            headers = {"Content-Type": "application/json"}
            response = self._client.post(self.origin, content=body, headers=headers, timeout=timeout_s)
            response.raise_for_status()
            value = response.json()
        except httpx.TimeoutException:
            raise AnswerError("timeout", f"no answer within {timeout_s:g} s") from None
        except httpx.HTTPStatusError as error:
            text = error.response.text.strip()[:200]
            raise AnswerError("exception", f"HTTP status {error.response.status_code}: {text}") from None
        except httpx.HTTPError as error:
            raise AnswerError("exception", f"{type(error).__name__}: {error}") from None
        except ValueError:
            raise AnswerError("wrong_type", f"not JSON: {response.text.strip()[:200]!r}") from None
        return read_answer(value, len(batch.queries))

    def take_report(self) -> Report:
        """Nothing beside the retries, which the caller counts."""
        return {}

    def close(self) -> None:
        self._client.close()
