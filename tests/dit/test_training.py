"""DiT training: objectives, exact resume, latents against live, bad input."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from hpc import config as configs
from hpc.base.errors import UserError
from recap.data.block_items import IndexedDataConfig
from recap.data.column import ColumnConfig
from recap.data.rows import RowsConfig
from recap.demo import VAE
from recap.dit.latents import LatentsConfig, LatentsOperator
from recap.dit.objective import Ddpm, Flow
from recap.dit.settings import ObjectiveConfig
from recap.dit.stored import Stored
from recap.dit.task import DitTask
from recap.dit.text_embeddings import TextEmbeddingsConfig, TextEmbeddingsOperator
from recap.dit.trainer import DitTrainer
from tests.dit.conftest import rows_of, tree
from tests.train.ranks import curve, launch, log

ROOT = Path(__file__).parents[2]


def trainer(config: dict[str, Any]) -> DitTrainer:
    made = configs.check(json.loads(json.dumps(config)), "test").trainer()
    assert isinstance(made, DitTrainer)
    return made


def task(config: dict[str, Any]) -> DitTask:
    return DitTask(trainer(config).config, None)


def run(directory: Path, ranks: int, config: dict[str, Any], **gang: Any) -> list[int]:
    return launch(directory, ranks, config, module="tests.sft.ranks", **gang)


def transformer(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(next((directory / "exports/final/transformer").glob("*.safetensors")))


@pytest.mark.slow(ci=True)
def test_killed_and_resumed_equals_undisturbed(world, tmp_path) -> None:
    """Bit for bit on the same ranks; on others the same data, noise, times and dropped texts, so the same curve."""
    config = tree(world, train__save_every=96)
    assert run(tmp_path / "whole", 2, config) == [0, 0], log(tmp_path / "whole")
    losses = [loss for _, loss in curve(tmp_path / "whole")]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])

    assert -9 in run(tmp_path / "killed", 2, config, kill_at=5)
    assert run(tmp_path / "killed", 2, config) == [0, 0], log(tmp_path / "killed")
    assert "resumed after step" in log(tmp_path / "killed")
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")
    whole, killed = transformer(tmp_path / "whole"), transformer(tmp_path / "killed")
    assert all(torch.equal(whole[name], killed[name]) for name in whole)

    assert run(tmp_path / "other", 1, config, stop_at=4) == [75], log(tmp_path / "other")
    assert run(tmp_path / "other", 4, config) == [0] * 4, log(tmp_path / "other")
    np.testing.assert_allclose([loss for _, loss in curve(tmp_path / "other")], losses, rtol=1e-4)


@pytest.mark.slow(ci=True)
@pytest.mark.parametrize("objective", [{"kind": "flow"}, {"kind": "ddpm"}])
def test_fsdp_in_bf16_trains_as_ddp_does(world, tmp_path, objective) -> None:
    curves = []
    for kind in ("ddp", "fsdp"):
        config = tree(world, train__parallel=kind, train__precision="bf16", train__samples=240, objective=objective)
        assert run(tmp_path / kind, 2, config) == [0, 0], log(tmp_path / kind)
        curves.append([loss for _, loss in curve(tmp_path / kind)])
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.02)


@pytest.mark.slow(ci=True)
def test_the_export_is_of_the_averaged_weights(world, tmp_path) -> None:
    """Without an average the export differs from the one with it, at the same curve."""
    runs = {}
    for ema in (0, 4800):
        assert run(tmp_path / str(ema), 1, tree(world, train__ema=ema, train__samples=240)) == [0]
        runs[ema] = transformer(tmp_path / str(ema))
    assert curve(tmp_path / "0") == curve(tmp_path / "4800")
    zero = "proj_out.weight"  # starts at zero: the slow average lags behind
    assert 0 < runs[4800][zero].abs().sum() < 0.2 * runs[0][zero].abs().sum()


def test_batches_are_pure_and_elastic(world) -> None:
    whole = task(tree(world)).batch(480, 48, 0, 1).micro[0]
    assert whole["pixels"].dtype == torch.uint8 and whole["noise"].shape == (48, 3, 16, 16)
    fresh = task(tree(world, micro_batch=5))
    parts = [fresh.batch(480, 48, rank, 4) for rank in range(4)]
    assert [len(part.micro) for part in parts] == [3] * 4
    for name in ("pixels", "noise", "time"):
        assert torch.equal(torch.cat([m[name] for part in parts for m in part.micro]), whole[name])


def test_texts_are_mixed_and_dropped(world) -> None:
    made = task(tree(world, text__weights={"org_caption": 0.2, "re_caption": 0.8}, objective__text_dropout=0.25))
    taken = [t.value for t in made.samples.take(0, 600)]
    columns = Counter(t.column for t in taken)
    assert abs(columns["org_caption"] - 120) < 3 * (600 * 0.2 * 0.8) ** 0.5
    assert abs(sum(t.text == "" for t in taken) - 150) < 3 * (600 * 0.25 * 0.75) ** 0.5
    made.close()


@pytest.fixture(scope="module")
def columns(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Columns of the world by our own operators: latents (moments, mirrored too) and embeddings of both texts."""
    folder = tmp_path_factory.mktemp("columns")
    shards = [str(world / "tars")]
    text = tree(world)["data"]["columns"]
    latents = LatentsConfig(data=IndexedDataConfig(shards=shards), vae=str(VAE), side=32, kind="moments")
    write_column(folder / "latents", LatentsOperator(latents))
    made = {**text, "latents": {"folder": str(folder / "latents"), "field": "latent"}}
    for name, column in text.items():
        data = RowsConfig(shards=shards, columns={name: ColumnConfig(**column)})
        config = TextEmbeddingsConfig(data=data, text=name, text_encoder=str(world / "encoder"), context=16)
        write_column(folder / f"{name}_states", TextEmbeddingsOperator(config))
        made[f"{name}_states"] = {"folder": str(folder / f"{name}_states"), "field": "states"}
    return made


def write_column(folder: Path, operator: Any) -> None:
    """A parquet file a shard, of an operator's rows in the shard's order."""
    folder.mkdir()
    rows = sorted(rows_of(operator), key=lambda row: (row.shard, row.index))
    for shard in {row.shard for row in rows}:
        found = [row for row in rows if row.shard == shard]
        table = {"key": [r.key for r in found], "status": [r.status for r in found]}
        for name, kind in operator.column().fields:
            table[name] = pa.array([r.values.get(name) for r in found], kind)
        pq.write_table(pa.table(table), folder / f"{shard}.parquet", row_group_size=512)


def latent_tree(world: Path, columns: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """From images, encoded live."""
    return tree(world, data__columns=columns, **changes) | {"model": _model(world, 32)}


def _model(world: Path, image: int) -> dict[str, Any]:
    encoder = {"text_encoder": str(world / "encoder"), "context": 16}
    return {"size": "32x2x2/2", "image": image, "vae": str(VAE), **encoder}


def test_from_columns_as_from_pixels(world, columns) -> None:
    """The same samples, texts and draws, and the same loss as encoding live, but for float16's rounding."""
    states = {"org_caption": "org_caption_states", "re_caption": "re_caption_states"}
    live, stored, embedded = (
        task(latent_tree(world, columns, objective__text_dropout=0.5, **more))
        for more in ({}, {"data__latents": "latents"}, {"data__latents": "latents", "data__embeddings": states})
    )
    modules = [made.module() for made in (live, stored, embedded)]
    with torch.no_grad():  # a start at zero would predict nothing, whatever it reads
        torch.manual_seed(1)
        weights = {n: torch.randn_like(p) * 0.05 for n, p in modules[2].named_parameters() if p.requires_grad}
    losses = []
    for made, module in zip((live, stored, embedded), modules, strict=True):
        module.load_state_dict(weights, strict=False)
        batch = made.batch(0, 48, 0, 1)
        with torch.no_grad():
            losses.append((batch.keys, float(module(batch.micro[0])), batch.micro[0]))
        made.close()
    assert "pixels" in losses[0][2] and "latents" in losses[1][2] and "states" in losses[2][2]
    assert losses[0][0] == losses[1][0] == losses[2][0]
    assert torch.equal(losses[1][2]["mask"], losses[2][2]["mask"]), "dropped texts have no more tokens than others"
    assert math.isclose(losses[0][1], losses[1][1], rel_tol=1e-3)
    assert math.isclose(losses[1][1], losses[2][1], rel_tol=1e-3)


def test_latents_of_another_size(world, columns) -> None:
    with pytest.raises(UserError, match=r"model.image=64 asks for float16 \(8, 16, 16\)"):
        task(latent_tree(world, columns, data__latents="latents") | {"model": _model(world, 64)}).batch(0, 48, 0, 1)


def test_latents_of_another_vae(world, columns, tmp_path) -> None:
    shutil.copytree(VAE, tmp_path / "vae")
    config = json.loads((tmp_path / "vae/config.json").read_text())
    (tmp_path / "vae/config.json").write_text(json.dumps({**config, "scaling_factor": 0.5}))
    changed = latent_tree(world, columns, data__latents="latents")
    changed["model"]["vae"] = str(tmp_path / "vae")
    with pytest.raises(UserError, match=r"its latent is of the VAE .* Name the VAE that made the column"):
        task(changed).batch(0, 48, 0, 1)


@pytest.mark.parametrize("kind", ["flow", "ddpm"])
def test_noised_ends_and_loss_of_the_truth(kind: str) -> None:
    """At the ends a sample is clean, or noise; a perfect prediction has no loss, and DDPM's weight is min-SNR's."""
    config = ObjectiveConfig(kind=kind, min_snr=5.0 if kind == "ddpm" else 0.0)
    process = Flow(config) if kind == "flow" else Ddpm(config)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 3, 8, 8, generator=generator) for _ in range(2))
    time = torch.tensor([0.0, 1.0] if kind == "flow" else [0.0, 999.0])
    noised, level = process.noised(clean, noise, time)
    torch.testing.assert_close(noised[0], clean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(noised[1], noise[1], atol=0.05, rtol=0)
    assert level.max() <= 1000
    truth = noise - clean if kind == "flow" else noise
    assert process.losses(truth, clean, noised, noise, time).abs().max() < 1e-10
    wrong = process.losses(truth + 1, clean, noised, noise, time)
    if kind == "flow":
        torch.testing.assert_close(wrong, torch.ones(2))
    else:
        assert isinstance(process, Ddpm)
        kept: Any = process.kept
        snr = kept[[0, 999]] / (1 - kept[[0, 999]])
        torch.testing.assert_close(wrong, snr.clamp(max=5) / snr, rtol=1e-3, atol=1e-6)


def test_the_learned_variance_has_its_least_loss_at_the_posterior() -> None:
    """The bound is least at the true posterior's variance where the mean is exact, and it moves only the variance."""
    process = Ddpm(ObjectiveConfig(kind="ddpm"))
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 2, 4, 4, generator=generator) for _ in range(2))
    time = torch.tensor([300.0])
    noised, _ = process.noised(clean, noise, time)
    shares = torch.linspace(-1, 1, 9)
    found = [
        process.losses(torch.cat([noise, share.expand_as(noise)], 1), clean, noised, noise, time) for share in shares
    ]
    assert int(torch.cat(found).argmin()) == 0 and found[0].abs() < 1e-4  # -1: the posterior's own
    predicted = (noise + 0.1).requires_grad_()
    share = torch.zeros_like(noise).requires_grad_()
    whole = process.losses(torch.cat([predicted, share], 1), clean, noised, noise, time).sum()
    alone = (predicted - noise).square().mean()
    torch.testing.assert_close(*(torch.autograd.grad(loss, predicted)[0] for loss in (whole, alone)))
    assert (
        torch.autograd.grad(process.losses(torch.cat([predicted, share], 1), clean, noised, noise, time).sum(), share)[
            0
        ]
        .abs()
        .min()
        > 0
    )


def test_logit_normal_times() -> None:
    flow = Flow(ObjectiveConfig(time_mean=0.5, time_std=2.0))
    times = np.array([flow.time(0.3, normal) for normal in np.random.default_rng(0).standard_normal(4000)])
    logits = np.log(times / (1 - times))
    assert abs(logits.mean() - 0.5) < 0.1 and abs(logits.std() - 2) < 0.1
    assert Flow(ObjectiveConfig(time_std=0.0)).time(0.3, 1.0) == 0.3


def test_trimmed_texts_give_the_same_states(world) -> None:
    encoder = task(tree(world)).text_encoder
    texts = ["a red cross", "blue with a green star"]
    short, mask = encoder.encode(texts)
    long, _ = encoder.encode(texts, pad_to=16)
    assert short.shape[1] == 8 and encoder.cut(["a " * 30, "a"]) == 1
    torch.testing.assert_close(short[mask], long[:, : short.shape[1]][mask], atol=1e-6, rtol=1e-6)


@pytest.mark.slow(ci=True)
def test_a_gradient_that_is_not_finite_stops_with_its_samples(world, tmp_path) -> None:
    assert run(tmp_path, 1, tree(world, train__lr=1e30, train__clip=0.0)) == [1]
    assert "the gradient is" in log(tmp_path) and "000/000" in log(tmp_path)


def test_an_encoder_that_does_not_fit(world) -> None:
    with pytest.raises(UserError, match=r"takes 16 tokens, not 20. Write at most 16"):
        task(tree(world, model__context=20))
    with pytest.raises(UserError, match="is not the folder of a model"):
        task(tree(world, model__text_encoder=str(world / "tars")))


def test_the_papers_configs_are_checked() -> None:
    for name, patches in (("recap_b4", 64), ("recap_l2", 256)):
        config = configs.load(ROOT / f"configs/dit/{name}.yaml", ["cluster=local"])
        shape, t = config.work.model.shape, config.work.train
        assert (t.batch, t.lr, t.schedule, t.warmup, t.weight_decay) == (2048, 1e-4, "constant", 0.0, 0.0)
        assert (config.work.model.image // 8 // shape.patch) ** 2 == patches
        assert math.isclose(config.work.text.weights["re_caption"], 1.0)


def test_states_that_were_cut_elsewhere_are_refused(world: Path) -> None:
    """Their column's context and tokenizer are recorded; a column without them is refused where a text is too long."""
    from recap.dit.encoder_files import text_encoder_digest, tokenizer_digest
    from recap.dit.tensor_blob import pack
    from recap.dit.text_encoder import TextEncoder

    encoder = world / "encoder"
    made = configs.check(tree(world, model__context=8), "test").work
    stored = Stored(made)
    states, mask = TextEncoder(encoder, 16).encode(["a red cross and the blue star of the green flag"])
    long = states[0][mask[0]].half().numpy()
    digests = {"encoder": text_encoder_digest(encoder), "tokenizer": tokenizer_digest(encoder), "precision": "fp32"}

    def check(array: Any, **about: str) -> None:
        stored.states(pack("states", array, digests | about), "sample 1")

    check(long[:8], context="8")
    with pytest.raises(UserError, match=r"cut at 16 tokens, model.context is 8. Write model.context=16, or make"):
        check(long[:4], context="16")
    with pytest.raises(UserError, match=r"cut at 13 tokens, model.context is 8. Make the column again with context=8"):
        check(long)
    with pytest.raises(UserError, match="split by another tokenizer"):
        check(long[:8], context="8", tokenizer="0123")
