"""A server that speaks OpenAI's chat protocol (vLLM, SGLang, OpenAI, ...): one blocking request at a time, tried again
where that may help. Standard library only.

The key is read from the environment for each request; no message and no file holds it.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import json
import os
import random
import time
import urllib.parse
from dataclasses import dataclass
from typing import Any

FIRST_WAIT_S = 0.5  # doubled with each further try
LONGEST_WAIT_S = 120.0  # whatever Retry-After says
TRIES = 5
_MEDIA = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}


class NoAnswer(Exception):
    """A request without a usable answer. `reason` is a fixed phrase; transient: a later try may succeed."""

    def __init__(self, reason: str, detail: str, transient: bool, status: int = 0) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.transient, self.status = reason, detail, transient, status


@dataclass(frozen=True)
class Choice:
    """What a server said. tokens: 0 where it does not count them."""

    text: str
    finish: str
    tokens: int


class ChatServer:
    """A base URL such as http://node7:8000/v1. ValueError where it is none.

    Args:
        key_env: environment variable with the key; without it no key is sent.
        timeout_s: how long the server may be silent.
    """

    def __init__(self, endpoint: str, key_env: str, timeout_s: float) -> None:
        url = urllib.parse.urlsplit(endpoint)
        if url.username or url.password:  # not shown: errors are logged
            raise ValueError(f"the endpoint at {url.hostname} holds a password; put the key into ${key_env} instead.")
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"endpoint {endpoint!r} is no http URL; use e.g. http://node7:8000/v1.")
        _ = url.port  # ValueError where it is no number
        self._url, self._key_env, self._timeout_s = url, key_env, timeout_s

    def ask(self, body: bytes) -> bytes:
        """The body of a good answer to a chat completion request.

        Raises:
            NoAnswer: the server refused, or did not answer in all tries.
        """
        found, wanted = NoAnswer("server: no answer", "", transient=True), 0.0
        for attempt in range(TRIES):
            if attempt:
                # Spread out, so that hundreds of workers do not come back to a restarted server at once.
                pause = random.uniform(0.5, 1.5) * FIRST_WAIT_S * 2 ** (attempt - 1)
                time.sleep(min(max(pause, wanted), LONGEST_WAIT_S))
            try:
                status, answer, wanted = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                found, wanted = NoAnswer("server: no answer", f"{type(error).__name__}: {error}", transient=True), 0.0
                continue
            if status == 200:
                return answer
            hopeless = status < 500 and status not in (408, 429)
            detail = self._without_key(answer[:200].decode("utf-8", "replace"))
            found = NoAnswer(f"server: status {status}", detail, transient=not hopeless, status=status)
            if hopeless:  # asking again would not help
                break
        raise found

    def _post(self, body: bytes) -> tuple[int, bytes, float]:
        """Status, body, and the seconds that the server asks us to wait."""
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self._url.netloc, timeout=self._timeout_s)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key_env, "").strip():  # http.client would show one that ends in a line break
            headers["Authorization"] = f"Bearer {key}"
        try:
            connection.request("POST", self._url.path.rstrip("/") + "/chat/completions", body, headers)
            response = connection.getresponse()
            return response.status, response.read(), _seconds(response.headers.get("Retry-After", ""))
        finally:
            connection.close()

    def _without_key(self, text: str) -> str:
        key = os.environ.get(self._key_env, "").strip()
        return text.replace(key, "<key>") if key else text


def read_choice(answer: bytes) -> Choice:
    """The first choice of an answer. NoAnswer where it is not what the protocol says."""
    try:
        parsed = json.loads(answer)
        choice = parsed["choices"][0]
        tokens = int((parsed.get("usage") or {}).get("completion_tokens", 0))
        return Choice(choice["message"]["content"].strip(), choice["finish_reason"], tokens)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        detail = f"{type(error).__name__}: {error}; {answer[:120].decode('utf-8', 'replace')}"
        raise NoAnswer("server: unreadable answer", detail, transient=True) from error


def user_message(image: bytes, text: str) -> dict[str, Any]:
    """A message of an image file, sent as it is, and a text."""
    kind = next((name for magic, name in _MEDIA.items() if image.startswith(magic)), "jpeg")
    url = f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
    return {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}],
    }


def _seconds(retry_after: str) -> float:
    """Retry-After: seconds or a date (RFC 9110, 10.2.3); 0 where it is neither."""
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return 0.0
