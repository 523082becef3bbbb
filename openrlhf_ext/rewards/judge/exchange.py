"""What is sent to an OpenAI-compatible endpoint, and what its answers and refusals mean."""

from __future__ import annotations

import email.utils
import time
from typing import Any

import httpx

from openrlhf_ext.rewards.judge.types import Question, Reply, WhyNoReply
from openrlhf_ext.types import FinishReason

TRANSIENT, FINAL = True, False
AGAIN = frozenset({408, 409, 425, 429})
TOO_LONG = ("context length", "context_length", "maximum context", "too long", "too many tokens", "max_model_len")
SHOWN = 200


class Failed(Exception):
    """A request that was not answered. `retry` says whether another try may do; `of_server` that it is not this
    question's fault; `wait_s` is what the server asked for.
    """

    def __init__(
        self,
        reason: WhyNoReply,
        detail: str,
        retry: bool,
        wait_s: float | None = None,
        *,
        of_server: bool = True,
    ) -> None:
        super().__init__(reason, detail)
        self.reason: WhyNoReply = reason
        self.detail = detail
        self.retry = retry
        self.wait_s = wait_s
        self.of_server = of_server


class LimitRenamed(Exception):
    """The server knows the limit of new tokens under another name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def request_body(model: str, question: Question, limit_name: str) -> dict[str, Any]:
    """The JSON of a chat completion, its schema as `response_format`."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [dict(message) for message in question.messages],
        limit_name: question.max_new_tokens,
        "temperature": question.temperature,
        "seed": question.seed & 0x7FFFFFFF,  # servers differ in how long an integer may be
    }
    if question.schema is not None:
        strict = question.schema.get("additionalProperties") is False
        answer = {"name": "answer", "schema": dict(question.schema), "strict": strict}
        body["response_format"] = {"type": "json_schema", "json_schema": answer}
    return body


def read_completion(response: httpx.Response) -> Reply:
    """Raises Failed for what is no chat completion: a gateway's page, a refusal, an empty one."""
    try:
        body = response.json()
        choice = body["choices"][0]
        text = choice["message"]["content"]
        finish = choice.get("finish_reason")
        usage = body.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        shown = response.text.strip()[:SHOWN]
        raise Failed("crashed", f"its answer is no chat completion: {shown!r}", TRANSIENT) from None
    if not isinstance(text, str):
        refusal = choice["message"].get("refusal") or f"no text (finish_reason {finish})"
        raise Failed("refused", str(refusal)[:SHOWN], FINAL, of_server=False)
    reason: FinishReason = "length" if finish == "length" else "stop"
    return Reply(text, reason, *tokens)


def failure_of(response: httpx.Response, secret: str, limit_name: str) -> Failed:
    """What a status other than 200 means. Raises LimitRenamed where the request can be mended."""
    status = response.status_code
    said = without_secret(response.text.strip(), secret)
    detail = f"HTTP status {status}: {said[:SHOWN]}"
    if status in AGAIN or status >= 500:
        reason: WhyNoReply = "busy" if status == 429 else "crashed"
        return Failed(reason, detail, TRANSIENT, retry_after(response), of_server=status != 429)
    if limit_name == "max_tokens" and status == 400 and "max_completion_tokens" in said:
        raise LimitRenamed("max_completion_tokens")
    if status in (400, 413, 422) and any(words in said.lower() for words in TOO_LONG):
        return Failed("too_long", detail, FINAL, of_server=False)
    return Failed("refused", detail, FINAL, of_server=status not in (400, 413, 422))


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, 10.2.3: a number or a date); None where it does not."""
    value = response.headers.get("Retry-After", "").strip()
    if value.replace(".", "", 1).isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def without_secret(text: str, secret: str) -> str:
    """Servers and proxies may repeat the key."""
    return text.replace(secret, "(hidden)") if secret else text
