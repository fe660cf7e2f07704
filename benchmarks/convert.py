"""Time a converted network as the engine calls it against diffusers' own module.

    python -m benchmarks.convert [--width 128] [--sizes 1 4 16] [--eager] [--wall]

The architecture of google/ddpm-cifar10-32 (35.7 million parameters at --width 128) with random
weights is saved by diffusers and converted. Both run the same rows at the same steps, call by call
in alternation. The default is CPU time of one thread, for busy machines; --wall is for idle ones.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor

from benchmarks.measure import compare, machine, seconds, table
from benchmarks.small import cpu_seconds
from diffusion.checkpoint import load
from service.engine.device.network import NetworkCalls, Rows
from service.memory import keep_freed_memory
from training.convert import Options, convert


def peer(width: int) -> UNet2DModel:
    """Build google/ddpm-cifar10-32's architecture with `width` channels at full resolution."""
    torch.manual_seed(0)
    plain, attended = "DownBlock2D", "AttnDownBlock2D"
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(width, *(2 * width,) * 3),
        down_block_types=(plain, attended, plain, plain),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        norm_num_groups=min(32, width),
    ).eval()


def converted(theirs: UNet2DModel, folder: Path, *, compiled: bool) -> NetworkCalls:
    """Save and convert the peer's weights and return the network as the engine calls it."""
    source = folder / "pipeline"
    if not source.exists():
        DDPMPipeline(theirs, DDPMScheduler()).save_pretrained(source)
    path = convert(source, folder / "model", Options(samples=0), torch.device("cpu"))
    return NetworkCalls(load(path)[0], compiled=compiled)


@torch.inference_mode()
def measured(
    ours: NetworkCalls, theirs: UNet2DModel, size: int, clock: Callable[..., float], rounds: int
) -> list[str]:
    """Measure a row of the table: milliseconds per call of each, and the ratio.

    Raises:
        ValueError: the two give different x_0hat.
    """
    x_t, t = torch.randn(size, 3, 32, 32), torch.randint(1, 1001, (size,))

    def our_call() -> Tensor:
        found, _ = ours(Rows(x_t, t), None)
        assert found is not None  # there are chains
        return found.x_0

    def their_call() -> Tensor:
        eps: Tensor = theirs(x_t, t - 1, return_dict=False)[0]
        return eps

    signal = ours.model.process.alpha_bar[t].view(-1, 1, 1, 1)
    wanted = ((x_t - (1 - signal).sqrt() * their_call()) / signal.sqrt()).clamp(-1, 1)
    difference = float((our_call() - wanted).abs().max())
    if not difference < 1e-3:  # eps is magnified by up to 158 at the lowest signal
        raise ValueError(f"x_0hat differs by {difference:.1e}: another network was converted")
    found = compare(partial(clock, our_call), partial(clock, their_call), rounds)
    return found.cells(1e-3)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--eager", action="store_true", help="leave the compiled ones out")
    parser.add_argument("--wall", action="store_true", help="wall time, all threads")
    asked = parser.parse_args()
    if not asked.wall:
        torch.set_num_threads(1)  # the thread whose time is counted
    clock = seconds if asked.wall else cpu_seconds
    print(machine())
    keep_freed_memory()  # as the service does; it helps both
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        theirs = peer(asked.width)
        for compiled in (False,) if asked.eager else (False, True):
            ours = converted(theirs, Path(name), compiled=compiled)
            if compiled:
                theirs.compile(dynamic=True)
            for size in asked.sizes:
                way = "compiled" if compiled else "eager"
                rows.append([way, str(size), *measured(ours, theirs, size, clock, asked.rounds)])
                print(rows[-1], flush=True)
    head = ["", "rows", "ours, ms", "diffusers' module, ms", "times as fast"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
