"""Sources: what an artefact remembers of them, and what is refused, by name, with nothing run."""

import hashlib
import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.checkpoint import Evaluation, load
from diffusion.networks import build
from diffusion.space import DataSpace
from tests.training.pipelines import SIDE, T, ddim, ddpm, saved, unet
from tests.training.test_own import paint
from training.cli import main
from training.config import ConfigError, ConvertedConfig
from training.convert import ConvertError, Options, convert, read
from training.convert.files import checked
from training.convert.unet import UNetDocument, diffusers_key
from training.data import PicturesConfig
from training.export.export import source

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peer's imports and its saving, not ours
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "source", unet("tiny"), ddpm(variance_type="fixed_large"))


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_artefact_says_what_it_came_from(folder: Path, tmp_path: Path) -> None:
    rewrite(folder / "scheduler" / "scheduler_config.json", clip_sample=False, thresholding=True)
    path = convert(folder, tmp_path / "models" / "tiny", Options(samples=0), CPU)
    model, metadata = load(path)
    assert metadata.space == DataSpace(
        kind="image", shape=(3, SIDE, SIDE), shift=127.5, scale=127.5, levels=256
    )
    ends = (
        torch.tensor([0.0, 255.0]).expand(3, SIDE, SIDE // 2, 2).flatten(2).unflatten(2, (SIDE, -1))
    )
    assert model.space.to_model(ends[None]).unique().tolist() == [-1, 1]
    config = ConvertedConfig.model_validate(metadata.training.config)
    assert config.files.keys() == {
        "model_index.json", "unet/config.json", "scheduler/scheduler_config.json", WEIGHTS
    }  # fmt: skip
    for name, checksum in config.files.items():
        assert checksum == f"sha256:{hashlib.sha256((folder / name).read_bytes()).hexdigest()}"
    text = path.with_name("README.md").read_text()
    assert "python -m training convert source -o models/tiny" in text
    assert str(tmp_path) not in text  # nor where it lay
    for said in (*config.files.values(), "clip_sample = False", "thresholding", "diffusers"):
        assert said in text
    with pytest.raises(ValueError, match="converted without data"):
        source(model, metadata)


def test_its_bound_is_evaluated_where_data_are_given(tmp_path: Path) -> None:
    net = unet("tiny", in_channels=1, out_channels=1)
    folder = saved(tmp_path / "source", net, ddpm(beta_end=0.9))
    (tmp_path / "leaves.toml").write_text(
        f'[data]\nkind = "deadleaves"\nside = {SIDE}\ntrain = 20\nvalid = 5\ntest = 6\n'
    )
    words = ["convert", str(folder), "-o", str(tmp_path / "tiny"), "--samples", "0", "--rows", "4"]
    words += ["--terms", "4", "--device", "cpu", "--data", str(tmp_path / "leaves.toml")]
    assert main(words) == 0
    model, metadata = load(tmp_path / "tiny" / "model.safetensors")
    (found,) = metadata.evaluation
    assert (found.convention, found.count, found.terms) == ("discretised", 4, 4)
    assert found.bits_per_dim > 0
    config, dataset = source(model, metadata)  # `evaluate` and `profile` find the data again
    assert isinstance(config, ConvertedConfig)
    assert dataset.space.shape == (1, SIDE, SIDE)
    words = ["profile", str(tmp_path / "tiny" / "model.safetensors"), "--device", "cpu", "--write"]
    assert main([*words, "--rows", "8", "--points", "2", "--variance", "optimal"]) == 0
    assert load(tmp_path / "tiny" / "model.safetensors")[1].variance == "optimal"
    assert "## Converted" in (tmp_path / "tiny" / "README.md").read_text()


def test_data_of_another_shape_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "leaves.toml").write_text('[data]\nkind = "deadleaves"\nside = 4\ntrain = 20\n')
    options = Options(samples=0, data=str(tmp_path / "leaves.toml"))
    with pytest.raises(ConfigError, match=rf"the model is of image \[3, {SIDE}, {SIDE}\]"):
        convert(folder, tmp_path / "tiny", options, CPU)


def said(evaluation: Evaluation) -> tuple[str, int, bool]:
    return evaluation.split, evaluation.count, math.isfinite(evaluation.bound)


def test_a_folder_of_pictures_gives_bound_and_variance_in_one_go(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers as one after the other, when the data are named later."""
    monkeypatch.chdir(tmp_path)
    paint(Path("photographs"), 40)  # 34 to profile, 4 to measure
    measure = ["--data", "photographs/", "--points", "2", "--variance", "optimal"]
    to = ["--device", "cpu", "--samples", "0", "--terms", "4"]
    assert main(["convert", str(folder), "-o", "models/once", *to, *measure]) == 0
    once, document = load(Path("models/once/model.safetensors"))
    assert document.variance == "optimal"
    assert [said(one) for one in document.evaluation] == [("test", 4, True)]
    text = Path("models/once/README.md").read_text()
    command = "--data photographs --variance optimal --points 2"
    assert command in text
    assert "Data: pictures of photographs: whether\nany row was fitted to elsewhere" in text
    assert "No row of `test`" not in text

    assert main(["convert", str(folder), "-o", "models/twice", *to]) == 0
    words = ["twice", "--device", "cpu", "--write"]
    assert main(["profile", *words, *measure]) == 0
    assert main(["evaluate", *words, "--terms", "4", "--data", "photographs"]) == 0
    twice, later = load(Path("models/twice/model.safetensors"))
    assert once.profile is not None
    assert twice.profile is not None
    assert torch.equal(once.profile.error, twice.profile.error)
    assert later.evaluation[0].bound == pytest.approx(document.evaluation[0].bound, rel=1e-5)
    assert main(["evaluate", *words, "--terms", "4"]) == 0  # remembered: no --data


def test_what_was_measured_on_other_data_is_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    paint(Path("some"), 40)
    paint(Path("others"), 60)
    words = ["--device", "cpu", "--data"]
    made = ["convert", str(folder), "-o", "models/tiny", "--samples", "0", "--terms", "4"]
    assert main([*made, *words, "some"]) == 0
    measured = ["evaluate", "tiny", "--terms", "5", "--write", *words]
    assert main([*measured, "some"]) == 0
    assert main([*measured, "others"]) == 0
    _, document = load(Path("models/tiny/model.safetensors"))
    assert [(one.count, one.terms) for one in document.evaluation] == [(6, 5)]
    config = ConvertedConfig.model_validate(document.training.config)
    assert config.data == PicturesConfig(folder="others", side=SIDE)


def test_data_that_are_none_are_named(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    make = ["convert", str(folder), "-o", "models/tiny", "--samples", "0", "--device", "cpu"]
    paint(Path("few"), 3)
    np.save("rows.npy", np.zeros((60, 2)))
    Path("empty.toml").write_text("")
    for words, told in (
        (["--data", "nowhere"], "no folder, table or configuration"),
        (["--data", "few"], "at least 10"),
        (["--data", "rows.npy"], "the model is of image"),
        (["--data", "empty.toml"], "no [data]"),
        (["--variance", "optimal"], "say --data too"),
    ):
        assert main([*make, *words]) == 2
        assert told in capsys.readouterr().err
    assert main(["export", "gaussian-mixture", "--no-evaluation", "--device", "cpu"]) == 0
    assert main(["evaluate", "gaussian-mixture", "--data", "few", "--device", "cpu"]) == 2
    assert "leave out --data" in capsys.readouterr().err


def test_weights_in_every_form(folder: Path, tmp_path: Path) -> None:
    wanted = read(folder, flags={}).tensors
    tensors = load_file(folder / WEIGHTS)
    unpickled = saved(tmp_path / "bin", unet("tiny"), ddpm(), safe=False)
    assert not (unpickled / WEIGHTS).exists()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(name: str) -> str:
        for now, before in old.items():
            name = name.replace(now, before)
        return name

    before = saved(tmp_path / "old", unet("tiny"), ddim())
    save_file({renamed(name): tensor for name, tensor in tensors.items()}, before / WEIGHTS)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (p for p in folder.rglob("*") if p.is_file()):
        (flat / path.name).write_bytes(path.read_bytes())
    sharded = saved(tmp_path / "sharded", unet("tiny"), ddpm())
    (sharded / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, sharded / "unet" / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = sharded / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    for form in (unpickled, before, flat, sharded):
        found = read(form, flags={}).tensors
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), form
    assert "unet/b.safetensors" in read(sharded, flags={}).files
    save_file({name: tensors[name] for name in names[:3]}, sharded / "unet" / "b.safetensors")
    with pytest.raises(ConvertError, match="in several of its files"):
        read(sharded, flags={})
    index.write_text(json.dumps({"weight_map": ["a"]}))
    with pytest.raises(ConvertError, match="names no files"):
        read(sharded, flags={})


CHANGES: dict[str, tuple[str, dict[str, object]]] = {
    r"latents or of text, with vae \(AutoencoderKL\)": (
        "model_index.json", {"_class_name": "LDMPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    ),
    "ScoreSdeVePipeline": ("model_index.json", {"_class_name": "ScoreSdeVePipeline"}),
    "UNet2DConditionModel": ("unet/config.json", {"_class_name": "UNet2DConditionModel"}),
    "SkipDownBlock2D": ("unet/config.json", {"down_block_types": ["SkipDownBlock2D"] * 2}),
    "attend at levels": ("unet/config.json", {"down_block_types": ["DownBlock2D"] * 2}),
    "time_embedding_type = 'fourier'": ("unet/config.json", {"time_embedding_type": "fourier"}),
    "num_class_embeds = 10": ("unet/config.json", {"num_class_embeds": 10}),
    "center_input_sample = True": ("unet/config.json", {"center_input_sample": True}),
    "mid_block_scale_factor": ("unet/config.json", {"mid_block_scale_factor": 1.41}),
    "act_fn = 'gelu'": ("unet/config.json", {"act_fn": "gelu"}),
    "attn_norm_num_groups": ("unet/config.json", {"attn_norm_num_groups": 2}),
    "time_embedding_dim = 5": ("unet/config.json", {"time_embedding_dim": 5}),
    "resampled by a convolution and some": ("unet/config.json", {"upsample_type": "resnet"}),
    "some_new_key = 3": ("unet/config.json", {"some_new_key": 3}),
    "sample_size is not said": ("unet/config.json", {"sample_size": None}),
    "out_channels = 5": ("unet/config.json", {"out_channels": 5}),
    r"not there: down_blocks\.0\.resnets\.1": ("unet/config.json", {"layers_per_block": 2}),
    "to_k": ("unet/config.json", {"add_attention": False}),
    "needs a network with 2": (
        "scheduler/scheduler_config.json", {"variance_type": "learned_range"}
    ),
    "nothing keeps above 0": ("scheduler/scheduler_config.json", {"variance_type": "learned"}),
    "PNDMScheduler": ("scheduler/scheduler_config.json", {"_class_name": "PNDMScheduler"}),
    "beta_schedule = 'laplace'": (
        "scheduler/scheduler_config.json", {"beta_schedule": "laplace"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("reason", CHANGES)
def test_what_cannot_be_converted_is_named(reason: str, folder: Path) -> None:
    file, changes = CHANGES[reason]
    rewrite(folder / file, **changes)
    with pytest.raises(ConvertError, match=reason):
        read(folder, flags={})


def test_eps_with_no_signal_left_is_refused(folder: Path, tmp_path: Path) -> None:
    rewrite(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=True)
    with pytest.raises(ConvertError, match="says nothing of x_0 at t = T"):
        convert(folder, tmp_path / "tiny", Options(samples=0), CPU)


def test_every_tensor_is_used_or_named(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(tensors | {"some.more": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(ConvertError, match=r"no place for some\.more"):
        read(folder, flags={})
    again = "mid_block.attentions.0.query.bias"
    save_file(tensors | {again: torch.zeros(8)}, folder / WEIGHTS)
    with pytest.raises(ConvertError, match="twice, by its old and its new names"):
        read(folder, flags={})
    save_file(tensors | {"conv_in.bias": torch.zeros(9)}, folder / WEIGHTS)
    with pytest.raises(ConvertError, match=r"conv_in\.bias has shape \[9\]"):
        read(folder, flags={})
    save_file(tensors | {"conv_in.bias": torch.full((8,), torch.nan)}, folder / WEIGHTS)
    with pytest.raises(ConvertError, match=r"conv_in\.bias holds NaN"):
        read(folder, flags={})


class Hostile:
    """A pickle that makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.bin", "ema.pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(
    name: str, zipped: bool, folder: Path, tmp_path: Path
) -> None:
    mark, path = tmp_path / "ran", folder / name
    (folder / WEIGHTS).unlink()
    tensors = {"input_blocks.0.0.weight": torch.zeros(1), "conv_in.bias": Hostile(mark)}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConvertError, match="nothing of it was run"):
        read(folder if name.endswith(".bin") else path, flags={})
    assert not mark.exists()
    # It would have run, had it been read as a pickle.
    pickle.loads(pickle.dumps(Hostile(mark)))  # noqa: S301  (our own, to prove the above)
    assert mark.exists()


def test_files_that_are_something_else(tmp_path: Path) -> None:
    def refused(held: object, reason: str) -> None:
        torch.save(held, tmp_path / "model.pt")
        with pytest.raises(ConvertError, match=reason):
            read(tmp_path / "model.pt", flags={})

    network = {"model.init_conv.weight": torch.zeros(8, 3, 7, 7), "betas": torch.zeros(3)}
    refused({"step": 7, "model": network, "ema": {"initted": torch.ones(1)}}, "lucidrains")
    refused({"input_blocks.0.0.weight": torch.zeros(1), "step": 3}, "these are none: step")
    refused({"encoder.weight": torch.zeros(1)}, r"here are encoder\.weight")
    refused([torch.zeros(1)], "came list")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConvertError, match=r"no model_index\.json; there is nothing"):
        read(tmp_path / "empty", flags={})
    with pytest.raises(ConvertError, match="no such file or folder"):
        read(tmp_path / "absent", flags={})
    (tmp_path / "model.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ConvertError):
        read(tmp_path / "model.pt", flags={})


def test_a_command_refuses_in_a_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", str(folder), "-o", str(folder / "tiny"), "--num_channels", "32"]
    assert main(words) == 2
    assert "leave out --num_channels" in capsys.readouterr().err
    assert main([*words[:2], "-o", str(folder / "No Name")]) == 2
    assert "name" in capsys.readouterr().err


#: Public: huggingface.co/google/ddpm-cifar10-32 and ddpm-ema-*-256, config.json.
DDPM = {
    "_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "act_fn": "silu",
    "attention_head_dim": None, "center_input_sample": False, "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3,
    "time_embedding_type": "positional",
}  # fmt: skip
CIFAR10 = DDPM | {
    "block_out_channels": [128, 256, 256, 256], "sample_size": 32,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
LARGE = DDPM | {
    "block_out_channels": [128, 128, 256, 256, 512, 512], "sample_size": 256,
    "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
}  # fmt: skip


@pytest.mark.parametrize(("settings", "millions"), [(CIFAR10, 35.7), (LARGE, 113.7)])
def test_the_public_ones_fit(settings: dict[str, Any], millions: float) -> None:
    from diffusers import UNet2DModel

    network = checked(settings, UNetDocument, "config.json").network()
    with torch.device("meta"):
        ours, theirs = build(network).state_dict(), UNet2DModel.from_config(settings).state_dict()
    assert {diffusers_key(k): v.shape for k, v in ours.items()} == {
        k: v.shape for k, v in theirs.items()
    }
    assert sum(v.numel() for v in ours.values()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_number_of_steps_is_the_schedulers(folder: Path) -> None:
    assert read(folder, flags={}).T == T
