"""What the pages' commands find: the shipped models where they are quick, stand-ins where not.

A stand-in has all of the shipped artefact, its process, data space, prediction, variance and
profile, but a network of a few thousand weights that returns zero: with v-prediction that is the
model of independent normal pixels, whose answers are finite whatever is asked.
"""

import shutil
from pathlib import Path

from diffusion.checkpoint import load, save
from diffusion.networks import UNetConfig

SHIPPED = ("gaussian-mixture", "bit-patterns", "swissroll", "swissroll-paper", "mnist-classifier")
STAND_INS = {"mnist": 28, "shapes": 16}  # pixels of a side


def make_models(source: Path, folder: Path) -> None:
    """Fill a folder of models, of the shipped ones in `source`."""
    for name in SHIPPED:
        shutil.copytree(source / name, folder / name)
    whole, metadata = load(source / "mnist" / "model.safetensors")
    assert whole.profile is not None
    network = UNetConfig(channels=(8,), blocks=1, patch=4, norm_groups=4, zero_out=True)
    for name, side in STAND_INS.items():
        space = metadata.space.model_copy(update={"shape": (1, side, side)})
        update = {"name": name, "network": network, "space": space, "evaluation": ()}
        document = metadata.model_copy(update=update)
        model = document.build()
        assert model.profile is not None
        model.profile.load_state_dict(whole.profile.state_dict())
        save(folder / name / "model.safetensors", model, document)
