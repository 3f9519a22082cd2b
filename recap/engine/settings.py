"""Settings of a captioning engine, as plain dataclasses. Torch-free: login nodes read and check them.

Fields marked `EXECUTION` do not change a caption; all others do, and enter the identity of the output
(`recap.engine.identity.captioner_identity`). Fields at their default are left out of it, so that a new field
changes no identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from hpc.base.errors import UserError
from hpc.base.fields import execution, semantic
from recap.data.addresses import without_credentials
from recap.engine.formats import Format, PromptFormat, asked, check_format

# Recap-DataComp-1B, arXiv 2406.08478, section 3.2, verbatim.
PAPER_PROMPT = "Please generate a detailed caption of this image. Please be as descriptive as possible."

LARGEST_PIXELS = 178_956_970  # twice PIL.Image.MAX_IMAGE_PIXELS: a limit of its own that Pillow keeps

BACKENDS = ("native", "transformers", "vllm", "openai")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "fp8")


@dataclass
class ServerConfig:
    """A server that each engine starts for itself (backend=openai). What of its command changes texts (a quantisation,
    a template) is not seen from here: name it in `served_model`."""

    command: list[str] = execution(
        [],
        "command line, a word an entry; {port}, {gpus} and settings by their names ({model}, {served_model}, {slots}, "
        "{precision}, ...) are filled in. Empty: none",
    )
    env: dict[str, str] = execution({}, "variables of its environment, beside those of the job")
    health: str = execution("/health", "path that answers 200 when it can be asked")
    path: str = execution("/v1", "path before /chat/completions")
    start_s: float = execution(1200.0, "seconds that it may take until it is healthy; less than map.setup_s")
    hang_s: float = execution(300.0, "seconds without health, or without any answer, after which it is started again")


@dataclass
class WriterConfig:
    """A model and how it writes: everything an engine is told but what it asks."""

    # What makes a text.
    backend: str = semantic("native", "native | transformers | vllm | openai (a server that speaks its protocol)")
    template: str | None = semantic(
        None,
        "Text around the prompt, with {prompt}, {image} where an image is shown and {system} where there is a system "
        "text; empty: the checkpoint's chat template",
    )
    max_tokens: int = semantic(128, "Longest caption, in tokens")
    decoding: str = semantic("greedy", "greedy | sample (temperature, top_k, top_p; seeded by sample key)")
    temperature: float = semantic(1.0, "Sampling temperature, > 0")
    top_k: int = semantic(0, "Sample from the k likeliest tokens; 0: all")
    top_p: float = semantic(1.0, "Sample from the likeliest tokens whose probabilities reach p, 0 < p <= 1")
    seed: int = semantic(0, "Seed of sampling and of the weighted choice of prompt formats")
    samples: int = semantic(1, "Texts of each format, drawn independently (decoding=sample); the first is the row's")
    beams: int = semantic(1, "Beams of a beam search (transformers backend)")
    geometry: str | None = semantic(
        None, "pad (to a square, mean colour) | crop (centre) ; empty: as the checkpoint's processor says"
    )
    image_processor: str | None = semantic(
        None,
        "Class that prepares the images of models other than LLaVA (backend=transformers); empty: the one that "
        "transformers takes where the job is launched (on Pillow, ...Pil, where torchvision is not installed)",
    )
    decode: str = semantic(
        "exact",
        "exact (equal to transformers' Pillow processors) | fast (libjpeg shrinks large JPEGs while decoding: other "
        "pixels, less time; python -m benchmarks.decode measures both)",
    )
    max_pixels: int = semantic(100_000_000, "Largest image that is decoded, in pixels; larger ones are refused")
    precision: str = semantic("auto", "auto (bf16 on GPUs, fp32 on CPUs) | fp32 | bf16 | fp16 | fp8 (decoder matrices)")
    kv_precision: str = semantic("auto", "auto (as the activations) | fp8: half the key-value cache (native backend)")
    trim: bool = semantic(False, "Cut a caption that hit the token limit back to its last full sentence")
    served_model: str = semantic("", "The model's name on the server (openai backend)")
    served_revision: str = semantic("", "Revision of the served model, where its files are not seen from here")

    # Where and how fast. The model's path is no part of the identity: the digests of its files are.
    model: str = execution("", "Folder of the checkpoint, or its name on the Hugging Face hub")
    micro_batch: int | None = execution(
        None,
        "Images in one vision and prefill pass; empty: 32 on GPUs (halved while memory is too small), 4 on CPUs; other "
        "models than LLaVA 8 and 4. Not tuned at start: the number decides the rounding, and a restart must write the "
        "same captions",
    )
    slots: int | None = execution(None, "Captions written at a time; empty: sized from the device's memory")
    memory_share: float = execution(0.9, "Share of the device's free memory that may be used")
    cuda_graph: bool = execution(True, "Replay the decode step as one CUDA graph (GPUs)")
    decode_workers: int = execution(2, "Processes that decode images; 0: in the engine's own process")
    decode_timeout_s: float = execution(60.0, "Seconds after which one image's decoding is given up")
    decode_memory_gb: float = execution(
        2.0,
        "GiB that large images may take together while the processes decode them; one that needs more is decoded "
        "without others. A pixel takes 5 to 20 bytes, by format",
    )
    queue: int | None = execution(None, "Requests accepted ahead of the model; empty: two micro-batches and some")
    threads: int | None = execution(None, "Torch threads on CPU; empty: as torch chooses")
    partial_wait_s: float = execution(0.05, "Seconds without a new request before a partial micro-batch is run")
    endpoint: list[str] = execution(
        [], "Base URL of the server, e.g. http://node7:8000/v1 (openai backend); several share the requests"
    )
    server: ServerConfig = field(
        default_factory=ServerConfig,
        metadata={"execution": True, "help": "A server that each engine starts for itself (openai backend)"},
    )
    endpoint_key_env: str = execution("OPENAI_API_KEY", "Environment variable with the server's key (openai backend)")
    endpoint_timeout_s: float = execution(
        100.0, "Seconds that one answer of the server may take; five times this must be less than map.hang_s"
    )
    window: int = execution(512, "Requests in flight at a server or in vLLM")

    @property
    def endpoints(self) -> list[str]:
        """Base URLs of the servers that others have started."""
        given = [self.endpoint] if isinstance(self.endpoint, str) else self.endpoint  # from Python, one may be a text
        return [url for url in given if url]

    @property
    def served_name(self) -> str:
        """What a server that we start is asked for: the model's name there, or its place."""
        return self.served_model or self.model


@dataclass
class CaptionerConfig(WriterConfig):
    """Everything a captioning engine is told. `check` says what is wrong with it."""

    prompt: str = semantic(PAPER_PROMPT, "What the model is asked, when `prompts` is empty")
    prompts: dict[str, PromptFormat] = semantic({}, "Named prompt formats, instead of `prompt`")
    formats: str = semantic(
        "choose", "choose: one format an image, by weight and key | all: each image in every format"
    )

    def asks(self) -> Mapping[str, Format]:
        """The formats by name; "" where there is one prompt."""
        return self.prompts or {"": PromptFormat(text=self.prompt)}

    @property
    def sees(self) -> bool:
        """Whether the model is shown images."""
        return any(form.image for form in self.asks().values())

    def names(self, key: str) -> list[str]:
        """Names of the answers that the row `key` gets."""
        return asked(self.asks(), self.formats == "all", self.samples, self.seed, key)

    def most(self) -> int:
        """Answers of a row at most."""
        return (len(self.asks()) if self.formats == "all" else 1) * self.samples


def is_execution(config: type, name: str) -> bool:
    """Whether field `name` of dataclass `config` leaves the captions as they are."""
    return any(item.name == name and item.metadata.get("execution", False) for item in fields(config))


def check(config: CaptionerConfig) -> None:
    """Raise UserError for the first setting that cannot work: what is wrong, where, and what to do."""
    _check_choices(config)
    _check_numbers(config)
    _check_prompts(config)
    if config.backend == "openai" or config.server.command:
        _check_server(config)
    elif not config.model:
        raise _problem("model", config.model, "no model is named; set it to a checkpoint folder or a hub name")


def _problem(name: str, value: object, advice: str) -> UserError:
    return UserError(f"captioner.{name} = {value!r}: {advice}.")


def _check_server(config: CaptionerConfig) -> None:
    """Servers of others, or one that we start: one of the two."""
    command, shown = config.server.command, [without_credentials(url) for url in config.endpoints]
    if config.backend != "openai":
        raise _problem("server.command", command, f"backend={config.backend} asks no server; set backend=openai")
    if not command:
        if not shown or not config.served_model:
            advice = "the openai backend needs `endpoint` and `served_model`, or `server.command`; set them"
            raise _problem("endpoint", shown[0] if len(shown) == 1 else shown, advice)
        return
    if shown:
        raise _problem("endpoint", shown, "`server.command` starts a server; leave one of both out")
    words = " ".join(command)
    if "{port}" not in words:
        raise _problem("server.command", command, "{port} is nowhere in it; say where the server is told its port")
    if "{model}" in words and not config.model:
        raise _problem(
            "model", config.model, "`server.command` wants {model}; set it to a checkpoint folder or a hub name"
        )
    for item in fields(WriterConfig):
        if f"{{{item.name}}}" in words and getattr(config, item.name) is None:
            raise _problem(item.name, None, f"`server.command` wants {{{item.name}}}; set it")
    if not config.served_name:
        raise _problem("served_model", "", "nothing says which model is served; set `model`, or `served_model`")
    for name in ("start_s", "hang_s"):
        if getattr(config.server, name) <= 0:
            raise _problem(f"server.{name}", getattr(config.server, name), "must be above 0; give seconds")
    for name in ("health", "path"):
        if not (value := getattr(config.server, name)).startswith("/") and value:
            raise _problem(f"server.{name}", value, "must begin with /")


def _check_choices(config: CaptionerConfig) -> None:
    choices: dict[str, tuple[str | None, ...]] = {
        "backend": BACKENDS,
        "formats": ("choose", "all"),
        "decoding": ("greedy", "sample"),
        "geometry": (None, "pad", "crop"),
        "decode": ("exact", "fast"),
        "precision": PRECISIONS,
        "kv_precision": ("auto", "fp8"),
    }
    for name, allowed in choices.items():
        if (value := getattr(config, name)) not in allowed:
            raise _problem(name, value, f"not a choice; use one of {', '.join(str(x or 'null') for x in allowed)}")
    if config.backend != "native" and (config.precision == "fp8" or config.kv_precision == "fp8"):
        raise _problem(
            "precision",
            "fp8",
            f"the {config.backend} backend has no fp8; use backend=native or precision=bf16",
        )
    if config.image_processor is not None and config.backend != "transformers":
        raise _problem(
            "image_processor",
            config.image_processor,
            f"the {config.backend} backend prepares images itself; leave it out",
        )
    if config.samples > 1 and config.decoding != "sample":
        raise _problem("samples", config.samples, "greedy ones are all equal; set decoding=sample")
    if config.beams > 1 and (config.backend != "transformers" or config.decoding != "greedy"):
        raise _problem("beams", config.beams, "only backend=transformers with decoding=greedy searches with beams")


def _check_numbers(config: CaptionerConfig) -> None:
    positive = "max_tokens temperature top_p max_pixels memory_share decode_timeout_s endpoint_timeout_s window"
    for name in [*positive.split(), "decode_memory_gb"]:
        if not (value := getattr(config, name)) > 0:
            raise _problem(name, value, "must be above 0; give a positive number")
    for name in ("micro_batch", "slots", "queue", "threads", "samples", "beams"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise _problem(name, value, "must be at least 1; leave it empty to have it chosen")
    for name in ("top_k", "decode_workers", "partial_wait_s"):
        if (value := getattr(config, name)) < 0:
            raise _problem(name, value, "must not be negative; give 0 or more")
    if config.max_pixels > LARGEST_PIXELS:
        raise _problem("max_pixels", config.max_pixels, f"Pillow refuses more than {LARGEST_PIXELS:,}; lower it")
    for name in ("top_p", "memory_share"):
        if (value := getattr(config, name)) > 1:
            raise _problem(name, value, "must not be above 1; it is a share")


def _check_prompts(config: CaptionerConfig) -> None:
    if not config.prompts and not config.prompt.strip():
        raise _problem("prompt", config.prompt, "the prompt is empty; write one, or name some in `prompts`")
    for name, form in config.prompts.items():
        check_format(f"captioner.prompts.{name}", form)
        if "#" in name:
            raise _problem("prompts", name, "a name must not contain #, which numbers samples; choose another")
        if form.max_tokens is not None and form.max_tokens > config.max_tokens:
            raise _problem(
                f"prompts.{name}.max_tokens", form.max_tokens, "above the captioner's max_tokens; raise that"
            )
        unbounded = [column for column in form.columns() if column not in form.budgets()]
        if unbounded and config.backend == "native":
            raise _problem(
                f"prompts.{name}.budget", form.budgets(),
                f"column {unbounded[0]} has no bound, and the native backend needs one for its fixed shapes; set "
                f"budget.{unbounded[0]}, or use backend=transformers",
            )  # fmt: skip
    if config.prompts and not any(form.weight > 0 for form in config.prompts.values()):
        raise _problem("prompts", list(config.prompts), "every weight is 0; give one format a weight above 0")
    if len({form.image for form in config.prompts.values()}) > 1:
        raise _problem("prompts", list(config.prompts), "some show the image and some do not; make two jobs of them")
    _check_template(config)


def _check_template(config: CaptionerConfig) -> None:
    if config.template is None:
        return
    system = any(form.system for form in config.prompts.values())
    for mark, times in (("{prompt}", 1), ("{image}", int(config.sees)), ("{system}", int(system))):
        if config.template.count(mark) != times:
            advice = f"must contain {mark} exactly once; add it" if times else f"must not contain {mark}; remove it"
            raise _problem("template", config.template, advice)
