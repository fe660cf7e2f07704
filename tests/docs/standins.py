"""What the pages' commands find: the shipped models where they are quick, stand-ins where not.

A stand-in has the process, data space, prediction and calibration of the shipped artefact, but a
tenth of its steps, and a network of a few thousand weights that returns zero: with v-prediction
that is the model of independent normal pixels, whose answers are finite whatever is asked.
"""

import shutil
from pathlib import Path

import torch

from diffusion import checkpoint, classifier, heldout
from diffusion.calibration import Calibration, Coverage, Ranks
from diffusion.families import Exact, Given
from diffusion.likelihood import reference
from diffusion.networks import MLPConfig, TableMixture, UNetConfig
from diffusion.networks.encoder import EncoderConfig
from diffusion.noise import counter_noise
from diffusion.process import MixedConfig
from diffusion.schedule import LogSnrSchedule
from diffusion.space import DataSpace
from diffusion.table import Category, Number, TableSpace

SHIPPED = (
    "gaussian-mixture",
    "bit-patterns",
    "swissroll",
    "swissroll-paper",
    "weather",
    "weather-day",
)
STAND_INS = {"mnist": 28, "shapes": 16}  # pixels of a side
EPIDEMIC = ("infects", "recovers", "peak", "day", "total")  # the first two between limits
UNET = UNetConfig(channels=(8,), blocks=1, patch=4, norm_groups=4, zero_out=True)


def make_models(source: Path, folder: Path) -> None:
    """Fill a folder of models, of the shipped ones in `source`."""
    for name in SHIPPED:
        shutil.copytree(source / name, folder / name)
    whole = checkpoint.read_metadata(source / "mnist" / "model.safetensors")
    process = whole.process.model_copy(
        update={"T": 107}
    )  # one step has the noise that the pages denoise
    for name, side in STAND_INS.items():
        space = whole.space.model_copy(update={"shape": (1, side, side)})
        document = checkpoint.Metadata(
            name=name,
            process=process,
            network=UNET.model_copy(update={"conditional": bool(whole.told)}),
            prediction=whole.prediction,
            variance="lower",
            space=space,
            training=whole.training,
            told=whole.told,
            calibration=whole.calibration,
        )
        model = document.build().eval()
        checkpoint.save(folder / name / "model.safetensors", model, document)
        if name == "mnist":  # `rarer_than` and `typicality` are told by what stands beside it
            shown = heldout.read(source / name, space)
            heldout.write(folder / name, shown, space)
            x_0 = space.to_model(shown.repeat(2, 1, 1, 1))
            reference.write(folder / name, model, reference.measure(model, x_0))
    _epidemic(folder / "epidemic", whole)
    _penguins(folder / "penguins", whole)
    reader = classifier.ClassifierMetadata(
        name="mnist-classifier",
        process=process,
        network=EncoderConfig(labels=10, channels=(8,), patch=4),
        space=whole.space,
        labels=tuple("0123456789"),
        training=whole.training,
    )
    path = folder / reader.name / "model.safetensors"
    classifier.save(path, reader.build(), reader)


def _penguins(folder: Path, like: checkpoint.Metadata) -> None:
    """A table of three columns in closed form, and 60 of its rows to compare with."""
    columns = (
        Category(name="kind", labels=("Adelie", "Gentoo")),
        Number(name="mass", knots=(3400.0, 5000.0), scores=(-1.0, 1.0), low=0.0),
        Number(name="bill", knots=(36.0, 50.0), scores=(-1.0, 1.0), step=0.1, low=0.0),
    )
    space, base = TableSpace(columns=columns), ((0.5, 0.5),)
    network = TableMixture.from_values(
        base,
        torch.tensor([0.6, 0.4], dtype=torch.float64),
        torch.tensor([[-0.8, -0.6], [1.0, 0.7]], dtype=torch.float64),
        torch.tensor([[[0.2, 0.1], [0.1, 0.3]]], dtype=torch.float64).repeat(2, 1, 1),
        torch.tensor([[0.98, 0.02], [0.02, 0.98]], dtype=torch.float64),
    )
    document = checkpoint.Metadata(
        name=folder.name,
        process=MixedConfig.of_table(space, 100, LogSnrSchedule(first=9.0, last=-9.0), base),
        network=network.config,
        prediction="x_0",
        variance="moment",
        space=space,
        training=like.training,
        told=(Exact(),),
        calibration=(_passed(Exact()),),
    )
    model = document.build().eval()
    model.network.load_state_dict(network.state_dict())
    checkpoint.save(folder / "model.safetensors", model, document)
    held = space.to_model(space.to_data(network.sample(counter_noise(1, torch.arange(60), 0))))
    reference.write(folder, model, reference.measure(model, held))


def _passed(family: Exact | Given) -> Calibration:
    """A calibration that certifies a family."""
    return Calibration(
        family=family,
        case="elements at random",
        count=1000,
        draws=19,
        steps=40,
        ranks=(Ranks(scalar="sum", counts=(100,) * 10),),
        coverage=(Coverage(level=0.95, share=0.948, standard_error=0.003),),
        crps=1.0,
        crps_error=0.1,
    )


def _epidemic(folder: Path, like: checkpoint.Metadata) -> None:
    """A model for docs/inference.md that knows nothing, and says it is certified."""
    seen = Given(columns=(2, 3, 4))
    document = checkpoint.Metadata(
        name=folder.name,
        process=like.process.model_copy(update={"T": 50}),
        network=MLPConfig(features=5, width=8, conditional=True, clock="log_snr"),
        prediction="v",
        variance="lower",
        space=DataSpace(
            kind="vector",
            shape=(5,),
            shift=(0.0, 0.0, 300.0, 30.0, 500.0),
            scale=(1.0, 1.0, 200.0, 20.0, 300.0),
            columns=EPIDEMIC,
            limits=((0.1, 1.0), (0.05, 0.5), None, None, None),
        ),
        training=like.training,
        told=(seen,),
        calibration=(
            Calibration(
                family=seen,
                case="given",
                count=1000,
                draws=19,
                steps=40,
                ranks=(Ranks(scalar="infects", counts=(100,) * 10),),
                coverage=(Coverage(level=0.95, share=0.95, standard_error=0.01),),
                crps=1.0,
                crps_error=0.0,
            ),
        ),
    )
    checkpoint.save(folder / "model.safetensors", document.build().eval(), document)
