"""Captions from a server that speaks OpenAI's chat protocol (vLLM, SGLang, TensorRT-LLM, ...): standard library only.

The image is checked here (a damaged one would only be an HTTP error there) and sent as it is, or where other decoders
may see other pixels in it, as a PNG of those that we see. A server that is away is waited for, and no sample is charged
for it. What the server does to the image, its chat template and its weights cannot be seen from here; the model's name
stands for them in the identity.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from PIL import Image

from recap.data.images import BadImage, EncodedImage
from recap.data.memory import Memory
from recap.engine.asynchronous import AsynchronousEngine
from recap.engine.captions import trim_to_sentence
from recap.engine.chat import ChatServer, NoAnswer, read_choice, user_message
from recap.engine.interface import Caption, Request
from recap.engine.outage import Outage
from recap.engine.prompts import choose_format
from recap.engine.settings import CaptionerConfig, PromptFormat


class EndpointEngine(AsynchronousEngine):
    """One HTTP request a caption, `window` at a time, over as many connections."""

    def __init__(self, config: CaptionerConfig) -> None:
        self.config = config
        self._server = ChatServer(config.endpoint, config.endpoint_key_env, config.endpoint_timeout_s)
        self._memory = Memory(int(config.decode_memory_gb * 2**30))
        self.formats = dict(config.prompts) or {"": PromptFormat(text=config.prompt)}
        # Blocking connections in threads: the work is waiting, and http.client needs no dependency.
        self._outage = Outage(self._probe)
        self._threads = ThreadPoolExecutor(max_workers=min(config.window, 256))
        super().__init__(config.window)

    async def caption(self, request: Request) -> Caption:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._caption, request)

    @property
    def waiting(self) -> str:
        """Why all requests wait: the server is away. "" while it answers."""
        return self._outage.waiting

    async def aclose(self) -> None:
        self._outage.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _caption(self, request: Request) -> Caption:
        try:
            encoded = EncodedImage(request.image, self.config.max_pixels)
            with self._memory.lent(encoded.cost):
                image = encoded.portable()
        except BadImage as error:
            return Caption(request.id, reason=error.reason, detail=error.detail)
        name = choose_format(self.formats, self.config.seed, request.key)
        body = json.dumps(self._body(request, image, self.formats[name])).encode()
        while True:
            since = time.monotonic()
            try:
                answer = self._server.ask(body, noticed=self._outage.notice)
                self._outage.served()
                return replace(self._read(request, name, answer), note=encoded.note)
            except NoAnswer as error:
                if error.away and self._outage.outlast(since):
                    continue  # the server was away: this says nothing about the image
                return Caption(request.id, reason=error.reason, detail=error.detail, transient=error.transient)

    def _probe(self) -> None:
        """Ask what every server of this kind answers: for one token about a small grey picture."""
        picture = io.BytesIO()
        Image.new("RGB", (64, 64), (127, 127, 127)).save(picture, "JPEG")
        body = self._body(Request(0, b""), picture.getvalue(), PromptFormat("Which colour?")) | {"max_tokens": 1}
        self._server.ask(json.dumps(body).encode(), tries=1)

    def _body(self, request: Request, image: bytes, form: PromptFormat) -> dict[str, Any]:
        # Without the server's tokenizer the budget is counted in words: a word is about one token or more.
        alt = " ".join(request.alt.split()[: form.alt_tokens])
        body: dict[str, Any] = {
            "model": self.config.served_model,
            "max_tokens": form.max_tokens or self.config.max_tokens,
            "messages": [user_message(image, form.text.replace("{alt}", alt))],
            "temperature": 0.0,
        }
        if self.config.decoding == "sample":
            digest = hashlib.blake2b(f"{self.config.seed}\0{request.key}".encode(), digest_size=4).digest()
            body |= {"temperature": self.config.temperature, "top_p": self.config.top_p}
            body["seed"] = int.from_bytes(digest, "little") >> 1
            if self.config.top_k:
                body["top_k"] = self.config.top_k
        return body

    def _read(self, request: Request, name: str, answer: bytes) -> Caption:
        choice = read_choice(answer)
        text, tokens = choice.text, choice.tokens
        if choice.finish == "stop" and tokens:
            tokens -= 1  # servers count the end token
        if self.config.trim and choice.finish == "length":
            text = trim_to_sentence(text)
        return Caption(request.id, text, tokens, choice.finish, format=name)
