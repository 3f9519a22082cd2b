"""Captioning engines behind one interface (`recap.engine.interface`).

Imports only torch, transformers, numpy, Pillow and safetensors, so that it runs on bare GPU machines.
Importing this package imports none of them.
"""

from __future__ import annotations

from recap.engine.formats import Format, PromptFormat
from recap.engine.interface import Caption, Engine, Request
from recap.engine.settings import CaptionerConfig, WriterConfig, check

__all__ = [
    "Caption", "CaptionerConfig", "Engine", "Format", "PromptFormat", "Request", "WriterConfig", "check", "load_engine",
]  # fmt: skip


def load_engine(config: CaptionerConfig, device: str = "cpu") -> Engine:
    """Load the model that `config` names onto `device` ("cpu", "cuda", "cuda:1") and start its decode
    processes.

    Raises:
        UserError: a setting cannot work, or does not fit the checkpoint.
        FileNotFoundError: there is no checkpoint at `config.model`.
    """
    check(config)
    if config.threads is not None:
        import torch

        torch.set_num_threads(config.threads)
    if config.backend == "native" and not config.sees:
        from recap.engine.native_text import NativeTextEngine

        return NativeTextEngine(config, device)
    if config.backend == "native":
        from recap.engine.native import NativeEngine

        return NativeEngine(config, device)
    if config.backend == "openai":
        from recap.engine.endpoint import EndpointEngine

        return EndpointEngine(config)
    if config.backend == "vllm":
        from recap.engine.vllm_backend import VllmEngine

        return VllmEngine(config, device)
    if not config.sees:
        from recap.engine.transformers_text import TransformersTextEngine

        return TransformersTextEngine(config, device)
    from recap.engine.checkpoint import is_llava
    from recap.model_files import model_folder

    if is_llava(model_folder(config.model)):
        from recap.engine.transformers_backend import TransformersEngine

        return TransformersEngine(config, device)
    from recap.engine.transformers_vision import TransformersVisionEngine

    return TransformersVisionEngine(config, device)
