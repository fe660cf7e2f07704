"""The way back: what is written for diffusers is what it came from, to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusion.checkpoint import Metadata, Provenance, load
from diffusion.networks import UNetConfig
from diffusion.process import BinomialConfig, GaussianConfig
from diffusion.schedule import InverseTimeSchedule, LogSnrSchedule
from diffusion.space import DataSpace
from tests.training.pipelines import SIDE, UNETS, ddpm, diffusers, saved, unet
from training.cli import main
from training.convert import ConvertError, Options, convert, read, write_diffusers

pytestmark = pytest.mark.filterwarnings("ignore")  # of the peer's imports and its saving, not ours
CPU = torch.device("cpu")
NO_SHEET = Options(samples=0)

SCHEDULERS: list[dict[str, Any]] = [
    {"variance_type": "fixed_large"},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    {"beta_schedule": "scaled_linear"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
]


@pytest.mark.parametrize("name", UNETS)
def test_weights_and_network_come_back(name: str, tmp_path: Path) -> None:
    theirs = unet(name)
    source = saved(tmp_path / "source", theirs, ddpm())
    path = convert(source, tmp_path / "some-model", NO_SHEET, CPU)
    folder = write_diffusers(*load(path), tmp_path / "back")
    again = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    side = UNETS[name].get("sample_size", (SIDE, SIDE))
    x_t, t = torch.randn(2, theirs.config.in_channels, *side), torch.tensor([0, 5])
    with torch.no_grad():
        assert torch.equal(theirs(x_t, t).sample, again(x_t, t).sample)


@pytest.mark.parametrize("changes", SCHEDULERS, ids=str)
def test_the_process_comes_back(changes: dict[str, Any], tmp_path: Path) -> None:
    scheduler, outputs = ddpm(**changes), 3
    source = saved(tmp_path / "source", unet("tiny", out_channels=outputs), scheduler)
    path = convert(source, tmp_path / "some-model", NO_SHEET, CPU)
    pipeline = diffusers.DDPMPipeline.from_pretrained(write_diffusers(*load(path), tmp_path / "b"))
    again = pipeline.scheduler
    torch.testing.assert_close(again.alphas_cumprod, scheduler.alphas_cumprod, rtol=2e-5, atol=1e-7)
    for key in ("prediction_type", "variance_type", "num_train_timesteps"):
        assert again.config[key] == scheduler.config[key]
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, SIDE, SIDE, 3)


def test_as_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path / "source", unet("tiny", out_channels=6), ddpm(variance_type="learned_range"))
    models = tmp_path / "models"
    words = ["convert", str(tmp_path / "source"), "-o", str(models / "tiny"), "--samples", "4"]
    assert main([*words, "--steps", "2", "--device", "cpu"]) == 0
    assert main(["export", "tiny", "--to", "diffusers", "--models", str(models)]) == 0
    assert str(models / "tiny" / "diffusers") in capsys.readouterr().out
    weights = "unet/diffusion_pytorch_model.safetensors"
    before = load_file(tmp_path / "source" / weights)
    after = load_file(models / "tiny" / "diffusers" / weights)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (models / "tiny" / "samples.png").exists()
    # What it makes is read again, and is the same artefact.
    first = load(models / "tiny" / "model.safetensors")[1]
    found = read(models / "tiny" / "diffusers", flags={})
    parts = (first.network, first.prediction, first.variance, first.space)
    assert parts == (found.network, found.prediction, found.variance, found.space)
    assert main(["export", "tiny", "--to", "diffusers", "--models", str(models)]) == 2
    assert "holds files already" in capsys.readouterr().err


GREY = DataSpace(kind="image", shape=(1, SIDE, SIDE), shift=127.5, scale=127.5, levels=256)


def described(**changes: Any) -> Metadata:  # noqa: ANN401  (the document's own)
    parts: dict[str, Any] = {
        "process": GaussianConfig(T=4),
        "network": UNetConfig(channels=(8, 8)),
        "prediction": "v",
        "variance": "lower",
        "space": GREY,
    }
    return Metadata(name="some-model", training=Provenance(data="none"), **(parts | changes))


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (described(network=UNetConfig(clock="log_snr")), "clock is 'log_snr'"),
        (described(network=UNetConfig(fourier=(5, 6), patch=2)), "patches of 2.*Fourier"),
        (described(network=UNetConfig(time_scale=0.25)), r"scales its steps by 0\.25"),
        (
            described(network=UNetConfig(channels=(8, 16), attention=(True, True), heads=2)),
            "2 heads on each of several widths",
        ),
        (described(network=UNetConfig(channels=(8,) * 5)), "no multiples of 16"),
        (described(variance="moment", network=UNetConfig(outputs=2)), "variance 'moment'"),
        (described(space=GREY.model_copy(update={"scale": 128.0})), r"levels from -1 to 1.*128"),
        (
            described(
                process=BinomialConfig(T=4, schedule=InverseTimeSchedule()),
                space=DataSpace(kind="bits", shape=(1, SIDE, SIDE)),
                prediction="x_0",
                variance=None,
            ),
            "process is binomial",
        ),
    ],
)
def test_what_diffusers_lacks_is_named(metadata: Metadata, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=reason):
        write_diffusers(metadata.build(), metadata, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("heads", [1, 2])
def test_a_model_of_our_own_goes_to_diffusers(heads: int, tmp_path: Path) -> None:
    network = UNetConfig(
        channels=(8, 8), attention=(True, False), mid_attention=True, heads=heads, zero_out=False,
        scale_shift=True, blocks=1,
    )  # fmt: skip
    schedule = LogSnrSchedule(first=6, last=-4)
    metadata = described(network=network, process=GaussianConfig(T=4, schedule=schedule))
    model = metadata.build().eval()
    folder = write_diffusers(model, metadata, tmp_path / "back")
    theirs = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
    x_t, t = torch.randn(3, 1, SIDE, SIDE), torch.tensor([0, 1, 3])
    with torch.no_grad():
        wanted = theirs(x_t, t).sample
        assert float((model.network(x_t, t.float()) - wanted).abs().max()) < 1e-5
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    torch.testing.assert_close(scheduler.alphas_cumprod, model.process.alpha_bar[1:].float())
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert len(settings["trained_betas"]) == 4
