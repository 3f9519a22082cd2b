"""A server that speaks OpenAI's chat protocol (vLLM, SGLang, OpenAI, ...): one blocking request at a time, tried again
where that may help. Standard library only.

The key is read from the environment for each request; no message and no file holds it.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import io
import json
import os
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from hpc.base.errors import UserError
from hpc.base.patience import retry
from recap.data.texts import clean

FIRST_WAIT_S = 0.5  # doubled with each further try
LONGEST_WAIT_S = 120.0  # whatever Retry-After says
TRIES = 5
LONGEST_ANSWER = 8 << 20  # bytes
UNREADABLE = "server: unreadable answer"
_MOST_TOKENS = 1 << 24  # of one answer: more is no count
_MEDIA = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}


class NoAnswer(Exception):
    """A request without a usable answer. `reason` is a fixed phrase; transient: a later try may succeed; away: it
    may be the server's trouble, whatever it was asked; asked_s: seconds that the server asks to wait."""

    def __init__(
        self, reason: str, detail: str, transient: bool, status: int = 0, away: bool = False, asked_s: float = 0.0
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.transient, self.status, self.away = reason, detail, transient, status, away
        self.asked_s = asked_s


@dataclass(frozen=True)
class Choice:
    """What a server said. tokens: 0 where it does not count them. model: what it calls its model, without a path; ""
    where it does not say.
    """

    text: str
    finish: str
    tokens: int
    model: str = ""


class ChatServer:
    """A base URL such as http://node7:8000/v1. UserError where it is none.

    Args:
        key_env: environment variable with the key; without it no key is sent.
        timeout_s: how long one answer may take from the connection to its last byte.
    """

    def __init__(self, endpoint: str, key_env: str, timeout_s: float) -> None:
        example = "Expected an http URL such as http://node7:8000/v1."
        try:
            url = urllib.parse.urlsplit(endpoint)
            _ = url.port
        except ValueError as error:
            raise UserError(f"endpoint: {error}. {example}") from error
        if url.username or url.password:  # not shown: errors are logged
            raise UserError(f"endpoint: the URL of {url.hostname} holds a password; put the key into ${key_env}.")
        if url.query or url.fragment:  # nor is what may be a token
            raise UserError(
                f"endpoint: the URL of {url.hostname} has something behind '?' or '#', which is not sent. Leave "
                f"it out; a key belongs into ${key_env}."
            )
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError(f"endpoint: {endpoint!r} is no http URL. {example}")
        self._url, self._key_env, self._timeout_s = url, key_env, timeout_s
        self._kept = threading.local()

    def ask(self, body: bytes, tries: int = TRIES, noticed: Callable[[NoAnswer], object] = lambda error: None) -> bytes:
        """The body of a good answer to a chat completion request.

        Args:
            noticed: called after each try in which the server may have been away.

        Raises:
            NoAnswer: the server refused, or did not answer in all tries.
        """
        return retry(
            lambda: self._answer(body, noticed), tries, lambda error: not getattr(error, "transient", False),
            FIRST_WAIT_S, LONGEST_WAIT_S, lambda error: getattr(error, "asked_s", 0.0),
        )  # fmt: skip

    def _answer(self, body: bytes, noticed: Callable[[NoAnswer], object]) -> bytes:
        """The body of a good answer, in one try."""
        try:
            status, answer, asked_s = self._post(body)
        except (OSError, http.client.HTTPException) as error:
            found = NoAnswer("server: no answer", _name(error), transient=True, away=True)
            noticed(found)
            raise found from error
        if status == 200:
            return answer
        hopeless = status < 500 and status not in (408, 429)  # asking again would not help
        detail = self._without_key(answer[:200].decode("utf-8", "replace"))
        found = NoAnswer(f"server: status {status}", detail, not hopeless, status, away=not hopeless, asked_s=asked_s)
        if not hopeless:
            noticed(found)
        raise found

    def models(self, timeout_s: float = 5.0) -> dict[str, dict[str, Any]]:
        """What the server lists: its models by name, with what it says of each. {} where it has no list.

        Raises:
            OSError: it does not answer.
        """
        try:
            status, answer, _ = self._request("GET", "/models", None, timeout_s)
            found = json.loads(answer)["data"] if status == 200 else []
            return {str(model["id"]): model for model in found}
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from error
        except (ValueError, KeyError, TypeError, RecursionError, NoAnswer):
            return {}

    @property
    def address(self) -> str:
        """The base URL without what may be secret."""
        return urllib.parse.urlunsplit((self._url.scheme, self._url.netloc, self._url.path.rstrip("/"), "", ""))

    def _post(self, body: bytes) -> tuple[int, bytes, float]:
        """Status, body, and the seconds that the server asks us to wait. TimeoutError when all of it takes too long."""
        return self._request("POST", "/chat/completions", body, self._timeout_s)

    def _request(self, method: str, path: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes, float]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key_env, "").strip():  # http.client would show one that ends in a line break
            headers["Authorization"] = f"Bearer {key}"
        connection, used = self._connection(timeout_s)
        try:
            return self._exchange(connection, timeout_s, method, path, body, headers)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            if not used:
                raise
        connection, _ = self._connection(timeout_s)  # the server had let the old one go
        return self._exchange(connection, timeout_s, method, path, body, headers)

    def _connection(self, timeout_s: float) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection, and whether it has had answers: one that is kept spares the server and us its
        opening, a millisecond or more.
        """
        kept: http.client.HTTPConnection | None = getattr(self._kept, "connection", None)
        if kept is not None and kept.sock is not None:
            kept.sock.settimeout(timeout_s)
            return kept, True
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        self._kept.connection = made = kind(self._url.netloc, timeout=timeout_s)
        return made, False

    def _exchange(
        self, connection: http.client.HTTPConnection, timeout_s: float, method: str, path: str, body: bytes | None,
        headers: dict[str, str],
    ) -> tuple[int, bytes, float]:  # fmt: skip
        end, whole = time.monotonic() + timeout_s, False
        connection.response_class = partial(_TimedResponse, end)  # type: ignore[assignment]
        try:
            connection.request(method, self._url.path.rstrip("/") + path, body, headers)
            with connection.getresponse() as response:
                answer = response.read(LONGEST_ANSWER + 1)
                if len(answer) > LONGEST_ANSWER:
                    raise NoAnswer("server: answer too long", f"more than {LONGEST_ANSWER:,} bytes", transient=False)
                if response.length:
                    raise http.client.IncompleteRead(answer, response.length)
                whole = True
                return response.status, answer, _seconds(response.headers.get("Retry-After", ""))
        finally:
            if not whole:
                connection.close()

    def _without_key(self, text: str) -> str:
        key = os.environ.get(self._key_env, "").strip()
        return text.replace(key, "<key>") if key else text


class _TimedResponse(http.client.HTTPResponse):
    """A response whose every byte must have come by `end` (time.monotonic()): a socket's own timeout starts anew with
    each byte.
    """

    def __init__(self, end: float, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedSocket(sock, end))


class _TimedSocket(io.RawIOBase):
    def __init__(self, sock: socket.socket, end: float) -> None:
        self._sock, self._end = sock, end
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open when the connection lets it go

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(left)
        return self._sock.recv_into(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def read_choice(answer: bytes) -> Choice:
    """The first choice of an answer. NoAnswer where it is not what the protocol says."""
    try:
        parsed = json.loads(answer)
        choice = parsed["choices"][0]
        tokens, finish = (parsed.get("usage") or {}).get("completion_tokens"), choice["finish_reason"]
        counted = tokens if isinstance(tokens, int) and 0 <= tokens < _MOST_TOKENS else 0
        named = parsed.get("model")
        model = clean(named).rstrip("/").rpartition("/")[2][:200] if isinstance(named, str) else ""
        return Choice(clean(choice["message"]["content"].strip()), clean(finish or ""), counted, model)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        detail = f"{type(error).__name__}: {error}; {answer[:120].decode('utf-8', 'replace')}"
        raise NoAnswer(UNREADABLE, detail, transient=True) from error


def data_url(image: bytes) -> str:
    """An image file, sent as it is."""
    kind = next((name for magic, name in _MEDIA.items() if image.startswith(magic)), "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def user_message(image: bytes | str | None, text: str) -> dict[str, Any]:
    """A message of an image and a text; of the text alone where there is no image.

    Args:
        image: a file, or its `data_url`, which several messages may share.
    """
    if image is None:
        return {"role": "user", "content": text}
    url = image if isinstance(image, str) else data_url(image)
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
