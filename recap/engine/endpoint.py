"""Captions from servers that speak OpenAI's chat protocol (vLLM, SGLang, TensorRT-LLM, ...): standard library only.

The image is checked here (a damaged one would only be an HTTP error there) and sent as it is, or where other decoders
may see other pixels in it, as a PNG of those that we see. A server that is away is waited for, and no sample is charged
for it; one of several is left out meanwhile, one that is ours is started again. What a server does to the image, its
chat template and its weights cannot be seen from here; the model's name stands for them in the identity.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from recap.data.images import BadImage, EncodedImage
from recap.data.memory import Memory
from recap.engine.asynchronous import AsynchronousEngine
from recap.engine.captions import Pending, trim_to_sentence
from recap.engine.chat import ChatServer, NoAnswer, data_url, read_choice, user_message
from recap.engine.fleet import Fleet
from recap.engine.formats import EXAMPLES, Filling, format_name, one_line, request_seed
from recap.engine.interface import Caption, Request
from recap.engine.managed_server import ManagedServer
from recap.engine.outage import Outage
from recap.engine.settings import CaptionerConfig

_AHEAD = 8  # requests that are ready beside those in flight, or one in so many of these

CHANGED = "server: its model changed"
"""How the reason of a shard begins that is stopped: its rows would be of two models."""


class EndpointEngine(AsynchronousEngine):
    """One HTTP request a caption, `window` at a time, over as many connections; a few more are made ready meanwhile, so
    that an answer makes room for a request that need only be sent."""

    def __init__(self, config: CaptionerConfig) -> None:
        self.config = config
        self._managed: ManagedServer | None = None
        if config.server.command:
            self._fleet = Fleet([self._chat("http://127.0.0.1/v1")])  # until it has said where it is
        else:
            self._fleet = Fleet([self._chat(url) for url in config.endpoints])
        self._memory = Memory(int(config.decode_memory_gb * 2**30))
        self._filling = {name: Filling(name, form, config.seed) for name, form in config.asks().items()}
        self._served, self._lock = "", threading.Lock()  # what the model is called by its first answer
        # Blocking connections in threads: the work is waiting, and http.client needs no dependency.
        self._outage = Outage(self._probe)
        self._threads = ThreadPoolExecutor(max_workers=config.window)
        self._preparing = ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)))
        if config.server.command:
            self._managed = ManagedServer(
                config, lambda url: self._fleet.replace(self._chat(url)), lambda: bool(self._outage.waiting)
            )
            self._managed.start()
        super().__init__(config.window + max(_AHEAD, config.window // _AHEAD))

    def _chat(self, url: str) -> ChatServer:
        return ChatServer(url, self.config.endpoint_key_env, self.config.endpoint_timeout_s)

    def poll(self, timeout: float) -> list[Caption]:
        if self._managed is not None and self._managed.failure is not None:
            raise self._managed.failure
        return super().poll(timeout)

    async def caption(self, request: Request) -> Caption:
        loop = asyncio.get_running_loop()
        picture, note = None, ""
        if self.config.sees:
            try:
                picture, note = await loop.run_in_executor(self._preparing, self._picture, request.image or b"")
            except BadImage as error:
                return Caption(request.id, reason=error.reason, detail=error.detail)
        return await loop.run_in_executor(self._threads, self._caption, request, picture, note)

    @property
    def waiting(self) -> str:
        """Why all requests wait: the server is away. "" while it answers."""
        return (self._managed.state if self._managed else "") or self._outage.waiting

    async def aclose(self) -> None:
        self._outage.close()
        if self._managed is not None:
            self._managed.close()
        for pool in (self._preparing, self._threads):
            pool.shutdown(wait=False, cancel_futures=True)

    def _picture(self, image: bytes) -> tuple[str, str]:
        """What all requests about an image show, made once, and what is odd about it. BadImage where it is damaged."""
        encoded = EncodedImage(image, self.config.max_pixels)
        with self._memory.reserved(encoded.cost):
            return data_url(encoded.portable()), encoded.note

    def _caption(self, request: Request, picture: str | None, note: str) -> Caption:
        pending = Pending(request, self.config.names(request.key), note=note)
        whole = None
        for name in pending.names:  # one after another: other requests keep the server busy
            answer = self._answer(request, picture, name)
            if answer.reason:
                return answer
            whole = pending.add(answer)
        assert whole is not None
        return whole

    def _answer(self, request: Request, picture: str | None, name: str) -> Caption:
        body = json.dumps(self._body(request, picture, name)).encode()
        while True:
            since = time.monotonic()
            try:
                answer = self._fleet.ask(body, self._outage.notice)
                self._outage.served()
                if self._managed is not None:
                    self._managed.served()
                return self._read(request, name, answer)
            except NoAnswer as error:
                if error.away and self._outage.outlast(since):
                    continue  # the server was away: this says nothing about the image
                return Caption(request.id, reason=error.reason, detail=error.detail, transient=error.transient)

    def _probe(self) -> None:
        """Ask what every server of this kind answers: for one token, about a small grey picture where it sees them."""
        picture = io.BytesIO()
        Image.new("RGB", (64, 64), (127, 127, 127)).save(picture, "JPEG")
        messages = [user_message(picture.getvalue() if self.config.sees else None, "Which colour?")]
        body = {"model": self.config.served_name, "max_tokens": 1, "messages": messages, "temperature": 0.0}
        self._fleet.ask(json.dumps(body).encode(), lambda error: None, tries=1)

    def _body(self, request: Request, picture: bytes | str | None, name: str) -> dict[str, Any]:
        filling = self._filling[format_name(name)]
        form = filling.form
        messages = [{"role": "system", "content": form.system}] if form.system else []
        messages.append(user_message(picture, self._text(filling, request)))
        body: dict[str, Any] = {
            "model": self.config.served_name,
            "max_tokens": form.max_tokens or self.config.max_tokens,
            "messages": messages,
            "temperature": 0.0,
        }
        if self.config.decoding == "sample":
            body |= {"temperature": self.config.temperature, "top_p": self.config.top_p}
            body["seed"] = request_seed(self.config.seed, request.key, name) >> 1
            if self.config.top_k:
                body["top_k"] = self.config.top_k
        return body

    def _text(self, filling: Filling, request: Request) -> str:
        shown, budgets = {EXAMPLES: filling.examples(request.key)}, filling.form.budgets()
        for place, column in filling.sources(request.key).items():
            text = one_line(request.texts.get(column, ""))
            # Without the server's tokenizer the budget is counted in words: a word is about one token or more.
            words = text.split()
            cut = column in budgets and len(words) > budgets[column]
            shown[place] = " ".join(words[: budgets[column]]) if cut else text
        return filling.places.fill(filling.places.text, shown)

    def _read(self, request: Request, name: str, answer: bytes) -> Caption:
        choice = read_choice(answer)
        with self._lock:
            first = self._served = self._served or choice.model
        if choice.model not in ("", first):
            return Caption(request.id, reason=f"{CHANGED} from {first} to {choice.model}", transient=True)
        text, tokens = choice.text, choice.tokens
        if choice.finish == "stop" and tokens:
            tokens -= 1  # servers count the end token
        if self.config.trim and choice.finish == "length":
            text = trim_to_sentence(text)
        return Caption(request.id, text, tokens, choice.finish, format=name)
