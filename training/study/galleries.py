"""Draw the paper's figures of images from artefacts and held-out data.

`denoising` is Figure 3 of Sohl-Dickstein et al. 2015, `beside_data` Figure 4, and `inpainting`
Figure 5: p~(x_s | x_t) proportional to p(x_s | x_t) r(x_s), with the observation r the same at
every step. Rows are [N, *event] in data units unless stated otherwise.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from diffusion.checkpoint import load
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.posterior import Observation, matched_start
from diffusion.samplers import Ancestral, sample
from training import data
from training.config import FitConfig, artefact_path
from training.progress import each_step, progress_bar
from training.sheet import sheet

Progress = Callable[[int, Tensor], None]
Panel = tuple[str, Tensor]


def draw(model: DiffusionModel, panels: Sequence[Panel], path: Path, columns: int) -> None:
    """Write titled panels side by side, each a grid of images with `columns` columns."""
    pictures = [(title, sheet(model.space, rows, columns)) for title, rows in panels]
    height, width, _ = pictures[0][1].shape
    inches = 3.2
    figure = Figure(figsize=(inches * len(panels), inches * height / width + 0.3))
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, picture) in zip(axes, pictures, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.tight_layout(pad=0.4)
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(
        path, dpi=150, bbox_inches="tight", metadata={"Software": None}
    )  # uncropped titles


def denoising(
    model: DiffusionModel,
    rows: Tensor,
    path: Path,
    *,
    noise: float,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Draw Figure 3: data, noisy data, samples of the posterior, samples of the model.

    Noise on every pixel matches the noise of some step, so the posterior's chain starts there
    (`posterior.matched_start`).

    Args:
        model: of images.
        rows: held-out data [N, C, H, W].
        path: of the figure.
        noise: standard deviation, data units.
        steps: of each ancestral chain; None for all.
        seed: of every draw.
        progress: as in `samplers.sample`.
    """
    space, count = model.space, len(rows)
    x_0 = space.to_model(rows)
    deviation = noise / float(space.affine[1].flatten()[0])
    row = torch.arange(count)
    y = x_0 + deviation * counter_noise(seed, row, 0, Stream.DATA).normal(model.event)
    start = matched_start(model, y, deviation)
    sampler = Ancestral(steps=steps)
    begun = (start.t, start.x_t)
    restored = sample(model, count, seed=seed, sampler=sampler, start=begun, progress=progress)
    free = sample(model, count, seed=seed + 1, sampler=sampler, progress=progress)
    panels = [
        ("held-out data", rows),
        (f"with noise of {noise:.0f} grey levels", space.to_data(y)),
        ("drawn from the posterior", space.to_data(restored)),
        ("drawn from the model", space.to_data(free)),
    ]
    draw(model, panels, path, math.isqrt(count))


def beside_data(
    model: DiffusionModel,
    rows: Tensor,
    path: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    others: Sequence[Panel] = (),
    progress: Progress | None = None,
) -> None:
    """Draw Figure 4: held-out data, as many samples of the model, and panels of `others`."""
    sampler = Ancestral(steps=steps)
    drawn = sample(model, len(rows), seed=seed, sampler=sampler, progress=progress)
    panels = [
        ("held-out data", rows),
        ("drawn from the model", model.space.to_data(drawn)),
        *others,
    ]
    draw(model, panels, path, math.isqrt(len(rows)))


def enlarged(model: DiffusionModel, height: int, width: int) -> DiffusionModel:
    """The same process and network for images of another size, if the network accepts it."""
    shape = (model.event[0], height, width)
    space = model.space.model_copy(update={"shape": shape})
    network = model.network
    kinds = model.prediction, model.variance, model.profile
    larger = DiffusionModel(model.process, network, space, *kinds)
    return larger.to(model.device).eval()


def inpainting(
    model: DiffusionModel,
    rows: Tensor,
    path: Path,
    *,
    hidden: int,
    steps: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Draw Figure 5: images, the same with a hidden central square, and samples that fill it in.

    Uses the paper's method, with `r` the same at every step. The images may be larger than the
    training images.

    Args:
        model: of images.
        rows: held-out data [N, C, H, W].
        path: of the figure.
        hidden: side of the square, pixels.
        steps: of the ancestral chain; None for all.
        seed: of the draw.
        progress: as in `samplers.sample`.
    """
    height, width = rows.shape[-2:]
    large = enlarged(model, height, width)
    known = torch.ones_like(rows, dtype=torch.bool)
    top, left = (height - hidden) // 2, (width - hidden) // 2
    known[..., top : top + hidden, left : left + hidden] = False
    seen = Observation.of_reals(large.space.to_model(rows), known)
    drawn = sample(
        large,
        len(rows),
        seed=seed,
        sampler=Ancestral(steps=steps),
        observation=seen,
        progress=progress,
    )
    noise = counter_noise(seed, torch.arange(len(rows)), 0, Stream.DATA).normal(large.event)
    panels = [
        ("held-out texture", rows),
        ("its middle unseen", torch.where(known, rows, large.space.to_data(noise / 3))),
        ("filled in", torch.where(known, rows, large.space.to_data(drawn))),
    ]
    draw(large, panels, path, 1)


STEPS = 250  # of each chain
TEXTURE, HIDDEN = 96, 48  # sides of Figure 5's images and of their hidden squares, pixels


@dataclass(frozen=True)
class Picture:
    """A figure in the documentation and how to draw it.

    Attributes:
        name: of the file.
        model: the name of its model.
        chains: how many chains, of STEPS steps or fewer, are run one after another.
        draw: takes the model, its configuration, the path and a progress callback.
    """

    name: str
    model: str
    chains: int
    draw: Callable[[DiffusionModel, FitConfig, Path, Progress], None]


def _photographs(model: DiffusionModel, config: FitConfig, path: Path, progress: Progress) -> None:
    rows = data.load(config.data).test[:25]
    denoising(model, rows, path, noise=64.0, steps=STEPS, progress=progress)


def _beside(model: DiffusionModel, config: FitConfig, path: Path, progress: Progress) -> None:
    test = data.load(config.data).test
    rows = test[:: max(1, len(test) // 64)][:64]  # evenly spaced: some sets are sorted by label
    beside_data(model, rows, path, steps=STEPS, progress=progress)


def _textures(model: DiffusionModel, config: FitConfig, path: Path, progress: Progress) -> None:
    assert isinstance(config.data, data.TexturesConfig)  # PICTURES draws it for that model only
    share = config.data.held_out[1]  # keeps the rows of `test`; `valid` also fits an image
    sizes = {"side": TEXTURE, "held_out": (share, share), "train": 1, "valid": 1, "test": 3}
    larger = config.data.model_copy(update=sizes)
    inpainting(model, data.load(larger).test, path, hidden=HIDDEN, steps=STEPS, progress=progress)


PICTURES = (
    Picture("cifar10", "cifar10", 2, _photographs),
    Picture("deadleaves", "deadleaves", 1, _beside),
    Picture("textures", "textures", 1, _textures),
    Picture("digits", "mnist", 1, _beside),
    Picture("bits", "binarized-mnist", 1, _beside),
)


def make(models: Path, folder: Path, *, missing: bool = False) -> list[Path]:
    """Draw the figures of all existing models, or only `missing` ones; return their paths."""
    made: list[Path] = []
    for picture in PICTURES:
        artefact, path = artefact_path(models, picture.model), folder / f"{picture.name}.png"
        if not artefact.exists() or (missing and path.exists()):
            continue
        model, metadata = load(artefact)
        config = FitConfig.model_validate(metadata.training.config)
        with progress_bar(picture.chains * STEPS, "step", picture.name) as bar:
            picture.draw(model, config, path, each_step(bar))
        made.append(path)
    return made
