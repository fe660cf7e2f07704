"""How often a calibration fails, of posteriors that are right and of such as are wrong by so much.

    python -m benchmarks.calibration [--right 400] [--wrong 40]

Data of normal elements that correlate by .9 (or of bits: which of them are above 1), and draws that
are exchangeable with them, or `width` times as wide and shifted by standard deviations.
"""

import argparse
import math

import torch

from benchmarks.measure import machine, table
from diffusion.calibration import Calibration
from diffusion.families import Exact
from diffusion.noise import counter_noise
from diffusion.space import DataSpace
from training.evaluate.calibration import Ranked, over_data, scalars

DRAWS = 19
KINDS = {"1 element": 1, "2 elements": 2, "20 elements": 20, "20 bits": 20}
CASES = (*((1000, kind) for kind in KINDS), (200, "2 elements"), (200, "20 elements"))
WRONG = ((0.9, 0.0), (0.8, 0.0), (0.7, 0.0), (1.2, 0.0), (1.0, 0.1), (1.0, 0.2), (1.0, 0.5))


def calibrated(kind: str, data: int, width: float, shift: float, seed: int) -> Calibration:
    """Calibrate posteriors of the kind, with draws that are so much off."""
    D, dice = KINDS[kind], torch.Generator().manual_seed(seed)
    common, own = (
        torch.randn(data, DRAWS + 1, size, generator=dice, dtype=torch.float64) for size in (1, D)
    )
    z = math.sqrt(0.9) * common + math.sqrt(0.1) * own
    truth, x = z[:, 0], width * z[:, 1:] + shift
    if kind.endswith("bits"):
        truth, x = (truth > 1).double(), (x > 1).double()
    named = scalars(DataSpace(kind="vector", shape=(D,)))
    exact, ties = torch.zeros(data, D, dtype=torch.bool), torch.arange(data)
    weights = torch.stack(list(named.values()))
    found = Ranked.of(truth, x, exact, weights, counter_noise(seed, ties, 0))
    crps, error = over_data(found.crps)
    return Calibration(
        family=Exact(),
        case=kind,
        count=data,
        draws=DRAWS,
        steps=1,
        ranks=found.histograms(list(named), DRAWS),
        coverage=found.coverage(),
        crps=crps,
        crps_error=error,
    )


def failing(kind: str, data: int, width: float, shift: float, repeats: int) -> str:
    """Return the share of calibrations that fail."""
    found = (calibrated(kind, data, width, shift, 1000 + i) for i in range(repeats))
    return f"{sum(not each.passed for each in found) / repeats:.3g}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--right", type=int, default=400, help="calibrations of right posteriors")
    parser.add_argument("--wrong", type=int, default=40, help="calibrations of each wrong one")
    asked = parser.parse_args()
    head = ["data", "of", "right", *(f"{s:g} off" if s else f"{w:g} wide" for w, s in WRONG)]
    rows = []
    for data, kind in CASES:
        right = failing(kind, data, 1.0, 0.0, asked.right)
        wrong = [failing(kind, data, *each, asked.wrong) for each in WRONG]
        rows.append([str(data), kind, right, *wrong])
    print(f"Share of calibrations that fail; {machine()}\n")
    print(table(head, rows))


if __name__ == "__main__":
    main()
