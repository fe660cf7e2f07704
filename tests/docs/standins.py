"""What the pages' commands find: the shipped models where they are quick, stand-ins where not.

A stand-in has the process, data space, prediction and calibration of the shipped artefact, but a
tenth of its steps, and a network of a few thousand weights that returns zero: with v-prediction
that is the model of independent normal pixels, whose answers are finite whatever is asked.
"""

import shutil
from pathlib import Path

from diffusion import checkpoint, classifier, heldout
from diffusion.calibration import Calibration, Coverage, Ranks
from diffusion.families import Given
from diffusion.likelihood import reference
from diffusion.networks import MLPConfig, UNetConfig
from diffusion.networks.encoder import EncoderConfig
from diffusion.space import DataSpace

SHIPPED = ("gaussian-mixture", "bit-patterns", "swissroll", "swissroll-paper")
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
