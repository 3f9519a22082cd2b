"""Captions from a server that speaks OpenAI's chat protocol (vLLM, SGLang, TensorRT-LLM, ...): standard library only.

The image is checked here (a damaged one would only be an HTTP error there) and sent as it is. What the server does to
it, its chat template and its weights cannot be seen from here; the model's name stands for them in the identity.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import json
import os
import random
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from recap.engine.asynchronous import AsynchronousEngine
from recap.engine.captions import trim_to_sentence
from recap.engine.decode import BadImage, decode_rgb
from recap.engine.interface import Caption, Request
from recap.engine.prompts import choose_format
from recap.engine.settings import CaptionerConfig, PromptFormat

FIRST_WAIT_S = 0.5  # doubled with each further try
_TRIES = 5
_MEDIA = {b"\xff\xd8\xff": "jpeg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp"}


class EndpointEngine(AsynchronousEngine):
    """One HTTP request a caption, `window` at a time, over as many connections."""

    def __init__(self, config: CaptionerConfig) -> None:
        self.config = config
        url = urllib.parse.urlsplit(config.endpoint)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise ValueError(f"captioner.endpoint = {config.endpoint!r}: no http URL; use e.g. http://node7:8000/v1.")
        self.url = url
        self.formats = dict(config.prompts) or {"": PromptFormat(text=config.prompt)}
        # Blocking connections in threads: the work is waiting, and http.client needs no dependency.
        self._threads = ThreadPoolExecutor(max_workers=min(config.window, 256))
        super().__init__(config.window)

    async def caption(self, request: Request) -> Caption:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._caption, request)

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _caption(self, request: Request) -> Caption:
        try:
            decode_rgb(request.image, self.config.max_pixels)
        except BadImage as error:
            return Caption(request.id, reason=error.reason, detail=error.detail)
        name = choose_format(self.formats, self.config.seed, request.key)
        body = json.dumps(self._body(request, self.formats[name])).encode()
        reason, detail = "server: no answer", ""
        for attempt in range(_TRIES):
            if attempt:
                # Spread out, so that hundreds of workers do not come back to a restarted server at once.
                time.sleep(random.uniform(0.5, 1.5) * FIRST_WAIT_S * 2 ** (attempt - 1))
            try:
                status, answer = self._post(body)
            except (OSError, http.client.HTTPException) as error:
                reason, detail = "server: no answer", f"{type(error).__name__}: {error}"
                continue
            if status == 200:
                return self._read(request, name, answer)
            reason, detail = f"server: status {status}", answer[:200].decode("utf-8", "replace")
            if status < 500 and status != 429:
                return Caption(request.id, reason=reason, detail=detail)  # asking again would not help
        return Caption(request.id, reason=reason, detail=detail, transient=True)

    def _body(self, request: Request, form: PromptFormat) -> dict[str, Any]:
        kind = next((name for magic, name in _MEDIA.items() if request.image.startswith(magic)), "jpeg")
        image = f"data:image/{kind};base64,{base64.b64encode(request.image).decode()}"
        # Without the server's tokenizer the budget is counted in words: a word is about one token or more.
        alt = " ".join(request.alt.split()[: form.alt_tokens])
        body: dict[str, Any] = {
            "model": self.config.served_model,
            "max_tokens": form.max_tokens or self.config.max_tokens,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": image}},
                        {"type": "text", "text": form.text.replace("{alt}", alt)},
                    ],
                }
            ],
            "temperature": 0.0,
        }
        if self.config.decoding == "sample":
            digest = hashlib.blake2b(f"{self.config.seed}\0{request.key}".encode(), digest_size=4).digest()
            body |= {"temperature": self.config.temperature, "top_p": self.config.top_p}
            body["seed"] = int.from_bytes(digest, "little") >> 1
            if self.config.top_k:
                body["top_k"] = self.config.top_k
        return body

    def _post(self, body: bytes) -> tuple[int, bytes]:
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.url.netloc, timeout=self.config.endpoint_timeout_s)
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.config.endpoint_key_env):
            headers["Authorization"] = f"Bearer {key}"
        try:
            connection.request("POST", self.url.path.rstrip("/") + "/chat/completions", body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _read(self, request: Request, name: str, answer: bytes) -> Caption:
        try:
            parsed = json.loads(answer)
            choice = parsed["choices"][0]
            text, finish = choice["message"]["content"].strip(), choice["finish_reason"]
            tokens = int((parsed.get("usage") or {}).get("completion_tokens", 0))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            detail = f"{type(error).__name__}: {error}; {answer[:120].decode('utf-8', 'replace')}"
            return Caption(request.id, reason="server: unreadable answer", detail=detail, transient=True)
        if finish == "stop" and tokens:
            tokens -= 1  # servers count the end token
        if self.config.trim and finish == "length":
            text = trim_to_sentence(text)
        return Caption(request.id, text, tokens, finish, format=name)
