"""DiT sampling: schedules against exact solutions, the map job, diffusers' pipeline, pictures during training."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from torch import nn
from transformers import T5Config, T5EncoderModel

from hpc.base.errors import UserError
from hpc.gang.status import _picture
from hpc.operator import Item, Row
from hpc.run.published import Published
from recap.dit import export
from recap.dit import write_images as write_images_module
from recap.dit.model import build
from recap.dit.objective import diffusion
from recap.dit.prompts import Prompts, PromptsConfig
from recap.dit.sample_job import SampleConfig, SampleOperator
from recap.dit.sampling import Sampler, Wanted, scheduler_of
from recap.dit.settings import DitConfig, DitModelConfig, ObjectiveConfig
from recap.dit.vae import Pixels, open_codec
from recap.dit.write_images import main as write_images
from tests.clip.models import tokenizer
from tests.dit.conftest import tree
from tests.dit.test_training import run, transformer
from tests.train.ranks import curve, log

torch.set_num_threads(1)


# --- schedules ----------------------------------------------------------------------------------

STD = 0.5


class Exact(nn.Module):
    """The exact denoiser of pixels that are normally distributed around what the text says, with deviation `STD`."""

    def __init__(self, objective: str, share: float | None) -> None:
        super().__init__()
        self.config = SimpleNamespace(in_channels=3, sample_size=8)
        self.nothing = nn.Parameter(torch.zeros(()))
        self.process: Any = diffusion(ObjectiveConfig(kind=objective))
        self.flow, self.share = objective == "flow", share

    def forward(self, x: torch.Tensor, encoder_hidden_states: torch.Tensor, timestep: torch.Tensor, **_: Any) -> Any:
        if self.flow:
            noise = (timestep / 1000).view(-1, 1, 1, 1)
            signal = 1 - noise
        else:
            kept = self.process.kept.float()[timestep].view(-1, 1, 1, 1)
            signal, noise = kept.sqrt(), (1 - kept).sqrt()
        mean = encoder_hidden_states[:, :1, :1, None]
        clean = mean + signal * STD**2 / (signal**2 * STD**2 + noise**2) * (x - signal * mean)
        drawn = (x - signal * clean) / noise
        output = drawn - clean if self.flow else drawn
        return (output if self.share is None else torch.cat([output, torch.full_like(x, self.share)], 1),)


class Means:
    """States that are a number, the text's."""

    context = 2

    def encode(self, texts: list[str], pad_to: int) -> tuple[torch.Tensor, torch.Tensor]:
        states = torch.tensor([float(text or 0) for text in texts]).view(-1, 1, 1)
        return states.expand(-1, pad_to, 4), torch.ones(len(texts), pad_to, dtype=torch.bool)


@pytest.mark.parametrize(
    ("objective", "kind", "steps", "share"),
    [
        ("flow", "dpm", 20, None),
        ("flow", "ddpm", 250, None),
        ("ddpm", "dpm", 50, None),
        ("ddpm", "dpm", 50, 0.3),  # a learned variance, which dpm leaves alone
        ("ddpm", "ddpm", 250, None),
        ("ddpm", "ddpm", 250, -1.0),  # the smallest variance, that of `fixed_small`
        ("ddpm", "ddpm", 250, 1.0),  # the largest
    ],
)
def test_schedules_end_in_the_data(objective, kind, steps, share) -> None:
    """Mean and deviation of exactly known data; guidance moves the mean from the empty text's, 0, past the text's."""
    scheduler = scheduler_of(kind, objective, learned_sigma=share is not None)
    sampler = Sampler(Exact(objective, share), Means(), Pixels(), scheduler, steps, batch=64)
    for guidance in (1.0, 3.0):
        found = sampler.latents([Wanted("0.2", seed, guidance) for seed in range(64)])
        assert abs(found.mean() - 0.2 * guidance) < 0.015
        assert abs(found.std() - STD) < 0.02
    if kind == "ddpm":  # the noise between steps is the image's own
        again = sampler.latents([Wanted("0.2", 63 - place, 3.0) for place in range(64)])
        assert torch.equal(again.flip(0), found)


# --- models that are exported -------------------------------------------------------------------


def exported(folder: Path, encoder: Path, vae: Path | None, **objective: Any) -> DitConfig:
    """A random model (none of its weights zero) in `folder`, as a training leaves it."""
    learned = objective.pop("learned_sigma", False)
    channels, side = (4, 8) if vae else (3, 16)
    model = DitModelConfig(
        size="32x2x2/4", image=16, vae=str(vae or ""), text_encoder=str(encoder), context=16, learned_sigma=learned
    )
    config = DitConfig(model=model, objective=ObjectiveConfig(**objective))
    torch.manual_seed(1)
    made = build(model, channels, side, 32)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    export.write(config, made, folder)
    return config


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> Path:
    from diffusers import AutoencoderKL  # here and not above: every test process collects this file

    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(2)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    made = AutoencoderKL(block_out_channels=[8, 16], norm_num_groups=4, latent_channels=4, scaling_factor=0.4, **blocks)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(world, vae, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "final"
    exported(folder, world / "encoder", vae, kind="flow")
    return folder


def t5(folder: Path) -> Path:
    tokenizer(folder, "recap")
    torch.manual_seed(3)
    T5EncoderModel(T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2)).save_pretrained(
        folder
    )
    return folder


def test_diffusers_draws_the_same(world, vae, model, tmp_path) -> None:
    """From the same noise, to within 1/255: flow through a VAE with CLIP; noise prediction on pixels with T5."""
    from diffusers import DiffusionPipeline

    exported(tmp_path / "pixels", t5(tmp_path / "t5"), None, kind="ddpm", learned_sigma=True)
    prompts = ["A red flag ", "a green star of the blue cross, left and right, top and bottom of a red car with a flag"]
    for folder, guidance in ((model, 4.0), (tmp_path / "pixels", 2.5)):
        read = export.read(folder)
        codec = open_codec(read.vae, "cpu", torch.float32)
        scheduler = scheduler_of("dpm", read.facts["objective"], read.facts["learned_sigma"])
        sampler = Sampler(read.transformer, read.text_encoder, codec, scheduler, steps=6, batch=2)
        ours = sampler.draw([Wanted(prompt, seed, guidance) for seed, prompt in enumerate(prompts)]).float()

        pipeline = DiffusionPipeline.from_pretrained(folder, **({} if read.vae else {"vae": None}))
        pipeline.set_progress_bar_config(disable=True)
        assert type(pipeline).__name__ == "PixArtAlphaPipeline"
        side = read.transformer.config.sample_size
        noise = [torch.randn(codec.channels, side, side, generator=torch.manual_seed(seed)) for seed in range(2)]
        made = pipeline(
            prompts, guidance_scale=guidance, num_inference_steps=6, latents=torch.stack(noise), max_sequence_length=16,
            use_resolution_binning=False, clean_caption=False, output_type="np" if read.vae else "latent",
        ).images  # fmt: skip
        theirs = torch.as_tensor(made) * 255 if read.vae else (made.permute(0, 2, 3, 1).clamp(-1, 1) + 1) * 127.5
        assert ours.std() > 20 and not torch.equal(ours[0], ours[1])
        assert (ours - theirs).abs().max() <= 1


# --- the map job --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "list.tsv"
    colours = ["red", "green", "blue"]
    lines = [f"f.{i}\ta {colours[i % 3]} flag with {'a star and ' * (i // 3)}the cross" for i in range(11)]
    path.write_text("\n".join([*lines[:6], "f.e\t", *lines[6:]]) + "\n")
    return path


def job(model: Path, asked: Path, **changes: Any) -> SampleOperator:
    settings = {"guidance": [1.0, 4.5], "steps": 3, "batch": 4, **changes}
    prompts = PromptsConfig(file=str(asked), shard=5)
    return SampleOperator(SampleConfig(model=str(model), prompts=prompts, **settings))


def rows_of(operator: SampleOperator, order: int, put: int) -> dict[str, Row]:
    """All rows, by key: shards forwards or backwards, so many items between two polls."""
    torch.set_num_threads(1)
    operator.setup("cpu")
    items = [item for shard in operator.plan()[::order] for item in operator.read(shard)]
    rows: list[Row] = []
    for start in range(0, len(items), put):
        for item in items[start : start + put]:
            assert operator.want() > 0 and isinstance(item, Item)
            operator.put(item)
        rows += operator.poll(0.01)
    while len(rows) < len(items):
        rows += operator.poll(0.01)
    return {row.key: row for row in rows}


@pytest.fixture(scope="module")
def drawn(model, asked) -> dict[str, Row]:
    return rows_of(job(model, asked), order=1, put=4)


def test_images_depend_on_nothing_else(model, asked, drawn) -> None:
    """Bit for bit the same in another order, in other groups; the guidance scales share their noise."""
    again = rows_of(job(model, asked), order=-1, put=3)
    assert again == drawn and len(drawn) == 24
    one, two = (drawn[f"f.3@{scale}"].values for scale in ("1", "4.5"))
    assert one["seed"] == two["seed"] and one["image"] != two["image"] and two["guidance"] == 4.5
    assert Image.open(io.BytesIO(one["image"])).size == (16, 16)
    assert (drawn["f.e@1"].status, drawn["f.e@1"].reason) == ("skipped", "prompt: empty")
    assert not one["cut"] and drawn["f.10@1"].values["cut"]


def test_batches_are_full_across_shards(model, asked) -> None:
    operator = job(model, asked, guidance=[2.0])
    operator.setup("cpu")
    sizes: list[int] = []
    inner, operator.apply = operator.apply, lambda items: sizes.append(len(items)) or inner(items)  # type: ignore[method-assign]
    for item in (item for shard in operator.plan() for item in operator.read(shard)):
        assert isinstance(item, Item)
        operator.put(item)
        operator.poll(0.0)
    assert sizes == [4, 4, 4]
    operator.poll(0.0)
    assert operator.want() == 2 * 4  # nothing is left; a rest would wait for more prompts, but not long


def test_numbers_that_overflow(model, asked) -> None:
    """A failed row, and its neighbours in the batch are as always."""
    rows = rows_of(job(model, asked, guidance=[1.0, 1e38]), 1, 4)
    assert rows["f.0@1e+38"].status == "failed" and rows["f.0@1e+38"].reason == "image: not a number"
    assert "image" not in rows["f.0@1e+38"].values and rows["f.0@1"].status == "ok"


def test_keys_with_folders_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slashes stay folders, and braces find the tars; nothing leads out of the folder."""
    keys = ["people/0001.a@4.5", "people/0002", "/etc/x", "../y", "a b"]
    about = {"status": "ok", "image": b"png", "prompt": "p", "guidance": 1.0, "seed": 0, "cut": False}
    monkeypatch.setattr(write_images_module, "rows_of", lambda shard: [{"key": key, **about} for key in keys])
    shards: Any = [SimpleNamespace(shard=SimpleNamespace(id=f"prompts-{number:06d}")) for number in range(2)]
    assert write_images_module.write_tars(shards, tmp_path) == 10
    read = list(webdataset.WebDataset(f"{tmp_path}/prompts-{{000000..000001}}.tar", shardshuffle=False))
    names = ["people/0001%2Ea@4%2E5", "people/0002", "%2Fetc/x", "%2E%2E/y", "a b"]
    assert [sample["__key__"] for sample in read] == 2 * names
    assert [json.loads(sample["json"])["key"] for sample in read] == 2 * keys


@pytest.mark.slow
def test_a_killed_run_ends_alike_and_is_written(model, asked, drawn, tmp_path, capsys) -> None:
    """Killed with all its processes, gone on with two workers: the column has the images of one worker here."""
    overrides = [
        f"model={model}", f"prompts.file={asked}", "prompts.shard=5", "guidance=[1,4.5]", "steps=3", "batch=4",
        f"runs={tmp_path}", "map.segment=2", "map.lease_s=2", "cluster=local",
    ]  # fmt: skip
    config = str(Path(__file__).parents[2] / "configs/dit/sample.yaml")
    command = [sys.executable, "-m", "hpc.launch", config, *overrides]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    patience = time.monotonic() + 240
    while not list((tmp_path / "samples").glob("segments/*/*/*/0*-0*.parquet")) and first.poll() is None:
        assert time.monotonic() < patience
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert write_images([str(tmp_path / "samples"), str(tmp_path / "out")]) == 1
    done = subprocess.run([*command, "cluster.engines_per_node=2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "write_images" in done.stdout

    found = [row for shard in Published(tmp_path / "samples") for row in shard.table().to_pylist()]
    assert len(found) == len(drawn)
    for row in found:
        assert row["image"] == drawn[row["key"]].values.get("image"), row["key"]

    prompts = Prompts(PromptsConfig(run=str(tmp_path / "samples"), field="prompt"))  # any run's texts are a list
    taken = [p for shard in prompts.shards(1) for p in prompts.of(shard)]
    assert [(p.key, p.text) for p in taken if not p.problem] == [
        (row["key"], row["prompt"]) for row in found if row["status"] == "ok"
    ]

    assert write_images([str(tmp_path / "samples"), str(tmp_path / "out"), "--rows", "3"]) == 0
    tars = sorted(str(path) for path in (tmp_path / "out").glob("*.tar"))
    read = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
    assert len(read) == 22 and read[1]["__key__"] == "f%2E0@4%2E5"
    about = json.loads(json.dumps(read[1]["json"]))
    assert about["key"] == "f.0@4.5" and about["guidance"] == 4.5 and about["prompt"] == read[1]["txt"]
    image = np.asarray(Image.open(io.BytesIO(drawn["f.0@4.5"].values["image"])))
    assert np.array_equal(read[1]["png"], image)
    picture = np.asarray(Image.open(tmp_path / "out/grid.png"))  # three rows, two columns, six times as large
    edges = [np.kron(image, np.ones((6, 6, 1), np.uint8))[row] for row in (0, -1)]
    assert all(any((line[x : x + 96] == row).all() for x in range(250, 400) for line in picture) for row in edges)
    assert write_images([str(tmp_path / "samples"), str(tmp_path / "out")]) == 64  # it is there
    assert "is not empty" in capsys.readouterr().err


def test_jobs_that_are_refused(model, asked, world) -> None:
    for changes, message in (
        ({"scheduler": "euler"}, "`scheduler`: 'euler' is unknown"),
        ({"guidance": []}, "`guidance`"),
        ({"guidance": [4.0, 4.0]}, "names a scale twice"),
        ({"steps": 0}, "`steps`"),
        ({"precision": "fp16"}, "`precision`"),
    ):
        with pytest.raises(UserError, match=message):
            job(model, asked, **changes)
    with pytest.raises(UserError, match="no exported DiT"):
        job(world, asked).identity()
    assert job(model, asked).identity() == job(model, asked).identity()


# --- during training ----------------------------------------------------------------------------


@pytest.mark.slow
def test_pictures_of_a_training(world, tmp_path) -> None:
    """Sharded, told to stop in the midst of a picture: the next life draws it, and the training does not notice."""
    grid = {"grid__prompts": ["a red flag", "a blue star", "a car"], "grid__columns": 3, "grid__steps": 4}
    sharded = {"train__parallel": "fsdp", "train__samples": 240}
    without, drawing = tmp_path / "without", tmp_path / "drawing"
    assert run(without, 2, tree(world, **sharded)) == [0, 0], log(without)
    config = tree(world, **sharded, **grid, train__evaluate_every=144)
    assert run(drawing, 2, config, stop_at=5) == [75, 75], log(drawing)  # three steps, two of the solver
    assert not (drawing / "samples").exists()
    assert run(drawing, 2, config) == [0, 0], log(drawing)
    assert curve(drawing) == curve(without)
    one, two = transformer(without), transformer(drawing)
    assert all(torch.equal(one[name], two[name]) for name in one)
    pictures = sorted((drawing / "samples").iterdir())
    assert [p.name for p in pictures] == ["000000000000144.png", "000000000000240.png"]
    assert _picture(drawing / "samples") == str(pictures[-1])
    assert all(Image.open(path).size == Image.open(pictures[0]).size for path in pictures)
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
