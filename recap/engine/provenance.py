"""What wrote the captions, for people: a model's folder, or a server and what it reports of itself. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hpc.base.errors import UserError
from recap.data.addresses import without_credentials
from recap.engine.chat import ChatServer
from recap.engine.settings import CaptionerConfig

_REPORTED = ("owned_by", "root", "parent", "max_model_len", "created")  # of a server's list of models


def made_by(config: CaptionerConfig) -> dict[str, Any]:
    """backend, and model or endpoint, served_model and server (its own words; "" where it gives none)."""
    if config.backend != "openai":
        return {"backend": config.backend, "model": config.model}
    if config.server.command:
        return {"backend": config.backend, "model": config.served_name, "command": config.server.command[:2]}
    servers = _servers(config)
    found = {
        "backend": config.backend,
        "endpoint": ", ".join(server.address for server in servers),
        "served_model": config.served_model,
    }
    try:
        said = servers[0].models().get(config.served_model, {})
    except OSError:
        said = {}
    return found | {"server": {name: said[name] for name in _REPORTED if said.get(name) is not None}}


def in_words(made: dict[str, Any]) -> str:
    """One line: `llava at http://node7:8000/v1 (max_model_len 4096, owned_by vllm)`, or the model's folder."""
    if "endpoint" not in made:
        started = f" by {' '.join(made['command'])}" if made.get("command") else ""
        return str(made.get("model", "unknown")) + started
    said = ", ".join(f"{name} {value}" for name, value in sorted(made.get("server", {}).items()))
    return f"{made['served_model']} at {made['endpoint']}" + (f" ({said})" if said else "")


def writers(captioner: dict[str, Any], markers: Iterable[dict[str, Any]]) -> list[str]:
    """What wrote the captions of a run, by its markers; by its config (keys of `captioner`) where they are older."""
    found = {in_words(marker["made_by"]): None for marker in markers if marker.get("made_by")}
    if not found and captioner.get("backend") == "openai":
        urls = captioner.get("endpoint") or []
        address = ", ".join(without_credentials(url) for url in ([urls] if isinstance(urls, str) else urls))
        found = {in_words({"endpoint": address, "served_model": captioner.get("served_model")}): None}
    return list(found) or ([captioner["model"]] if captioner.get("model") else [])


def check_served(config: CaptionerConfig) -> str:
    """Ask the endpoints for their models. What is to be told where one cannot say; "" where all is well.

    Raises:
        UserError: one serves others.
    """
    told = (_check_one(server, config.served_model) for server in _servers(config))
    return "; ".join(filter(None, told))


def _check_one(server: ChatServer, name: str) -> str:
    try:
        models = server.models()
    except OSError as error:
        return f"{server.address} does not answer from here ({error}); captions wait until it does"
    if models and name not in models:
        raise UserError(
            f"captioner.served_model = {name!r}: {server.address} serves {', '.join(sorted(models))}. "
            "Write one of these."
        )
    return "" if models else f"{server.address} does not list its models: {name!r} is taken on trust"


def _servers(config: CaptionerConfig) -> list[ChatServer]:
    return [ChatServer(url, config.endpoint_key_env, config.endpoint_timeout_s) for url in config.endpoints]
