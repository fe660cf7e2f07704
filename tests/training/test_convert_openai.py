"""OpenAI's checkpoints: the published architecture, its process, and its bits a dimension."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion.checkpoint import Provenance
from diffusion.likelihood.bound import evaluate, prior_part
from diffusion.noise import DrawnNoise
from diffusion.space import Convention
from tests.training.published import Published, published_bits
from training.convert import ConvertError, read

FLAGS = {
    "image_size": "8",
    "num_channels": "32",
    "num_res_blocks": "1",
    "channel_mult": "1,2",
    "attention_resolutions": "4",
    "num_heads": "2",
    "diffusion_steps": "24",
    "rescale_timesteps": "True",
    "sigma_small": "True",
}
#: What is special of a checkpoint, and the flags that say so.
KINDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "improved": ({}, {}),
    "learned": (
        {"learn_sigma": True},
        {"learn_sigma": "True", "noise_schedule": "cosine", "sigma_small": "False"},
    ),
    "fixed-large": ({"scale_shift": False}, {"use_scale_shift_norm": "no", "sigma_small": "no"}),
    "start": (
        {"multiples": (1, 1, 2), "attended": (2, 4)},
        {"channel_mult": "1,1,2", "attention_resolutions": "4,2", "predict_xstart": "true"},
    ),
    "guided": (
        {"updown": True, "head_channels": 16, "learn_sigma": True},
        {
            "resblock_updown": "True",
            "num_head_channels": "16",
            "learn_sigma": "True",
            "rescale_timesteps": "False",
            "use_fp16": "True",
        },
    ),
    "new-order": ({"new_order": True}, {"use_new_attention_order": "True"}),
}


OF_BITS = ("learn_sigma", "sigma_small", "predict_xstart")
CONVENTION: Convention = "discretised"


def saved(folder: Path, tensors: object) -> Path:
    path = folder / "ema.pt"
    torch.save(tensors, path)
    return path


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_same_network_and_the_same_bits(kind: str, tmp_path: Path) -> None:
    sizes, more = KINDS[kind]
    flags, network = FLAGS | more, Published(**sizes)
    tensors = network.tensors()
    found = read(saved(tmp_path, tensors), flags=flags)
    model, _ = found.build("some-model", Provenance(data="elsewhere"))
    T, betas = model.T, model.process.beta[1:]
    if flags.get("noise_schedule") != "cosine":
        ends = (1000 / T * 1e-4, 1000 / T * 0.02)
        torch.testing.assert_close(
            betas, torch.linspace(*ends, T, dtype=torch.float64).clamp(max=1)
        )

    levels = torch.randint(0, 256, (2, 3, 8, 8)).float()
    levels[:, :, 0] = torch.tensor([0.0, 255.0]).repeat(4)  # the open ends too
    x_0 = model.space.to_model(levels)
    torch.testing.assert_close(x_0, levels / 127.5 - 1)
    steps = torch.arange(1, T + 1)
    x_t, theirs, ours = [], [], []
    scale = 1000 / T if flags["rescale_timesteps"] == "True" else 1.0
    for t in steps[:, None].expand(-1, 2):
        noise = DrawnNoise(torch.randn_like(x_0))
        x_t.append(model.process.marginal(x_0, t).sample(noise))
        theirs.append(network(tensors, x_t[-1], scale * (t - 1).float()))
        output = model.network(x_t[-1], (t - 1).float())
        assert float((output - theirs[-1]).abs().max() / theirs[-1].abs().max()) < 1e-5
        prediction = model.predict(x_t[-1], t)
        ours.append(evaluate(model, prediction, x_0, x_t[-1], t, CONVENTION))
    asked = {flag: flags.get(flag, "").lower() == "true" for flag in OF_BITS}
    wanted, prior = published_bits(theirs, x_0, x_t, betas, asked)
    nats = math.log(2) * model.space.dims  # of one bit an element
    bits, of_prior = -torch.stack(ours).double() / nats, -prior_part(model, x_0, CONVENTION) / nats
    torch.testing.assert_close(bits[1:], wanted[1:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(of_prior, prior)
    if asked["predict_xstart"]:  # a random x_0hat is far off: their floor of 1e-12 is the answer
        assert (bits[0] > wanted[0]).all()
        return
    # Their decoder's tanh is within 2e-4 of the normal distribution function; ours is exact.
    torch.testing.assert_close(bits[0], wanted[0], rtol=5e-3, atol=1e-3)
    torch.testing.assert_close(bits.sum(0) + of_prior, wanted.sum(0) + prior, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"class_cond": "True"}, "only unconditional"),
        ({"timestep_respacing": "ddim25"}, "of their sampler"),
        ({"num_heads_upsample": "1"}, "num_heads_upsample"),
        ({"rescale_timesteps": None}, "improved-diffusion's default"),
        ({"image_size": "48", "channel_mult": ""}, "--channel_mult"),
        ({"channel_mult": "2,4"}, "begins with 2"),
        ({"channel_mult": "0.5,1"}, "channel_mult"),
        ({"attention_resolutions": "0"}, "attention_resolutions"),
        ({"dropout": "2"}, "do not fit"),
        ({"noise_schedule": "sqrt"}, "noise_schedule"),
        ({"num_channels": "40"}, "norm_groups 32"),
        ({"num_heads": "5"}, "heads 5"),
        ({"learn_sigma": "True"}, "out.2"),
        ({"num_res_blocks": "2"}, "not there"),
        ({"attention_resolutions": "8,4"}, "not there"),
        ({"attention_resolutions": "2"}, "there are others"),
        ({"use_scale_shift_norm": "False"}, r"emb_layers.*shape"),
    ],
    ids=str,
)
def test_other_flags_are_refused(flags: dict[str, str | None], reason: str, tmp_path: Path) -> None:
    given = {k: v for k, v in (FLAGS | flags).items() if v is not None}
    with pytest.raises(ConvertError, match=reason):
        read(saved(tmp_path, Published().tensors()), flags=given)


def test_no_tensor_is_dropped(tmp_path: Path) -> None:
    tensors = Published().tensors()
    with pytest.raises(ConvertError, match=r"no place for some\.more"):
        read(saved(tmp_path, tensors | {"some.more": torch.zeros(3)}), flags=FLAGS)
    with pytest.raises(ConvertError, match="class-conditional"):
        read(saved(tmp_path, tensors | {"label_emb.weight": torch.zeros(3, 3)}), flags=FLAGS)
    tensors.pop("middle_block.1.qkv.bias")
    with pytest.raises(ConvertError, match=r"not there: middle_block\.1\.qkv\.bias"):
        read(saved(tmp_path, tensors), flags=FLAGS)
