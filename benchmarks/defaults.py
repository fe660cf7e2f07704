"""Test a posterior's default settings on problems with exact answers that they once got wrong.

    python -m benchmarks.defaults [--only modes ...]

They are the weights of two and three modes, noise levels between the steps of a schedule or beyond
its ends, and an observation eight standard deviations out. Every number has a standard error over
independent answers.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import machine, table
from benchmarks.problems import real_model
from diffusion.checkpoint import load
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.observation import Observation
from diffusion.operators import Dense
from diffusion.posterior import Auto, Method, Posterior, Twisted, sample_posterior
from diffusion.samplers import Ancestral

#: The default number of steps of `twisted`.
STEPS = 100
#: Independent answers, of 64 samples each.
COUNT = 20
Row = tuple[str, ...]


def answers(
    model: DiffusionModel,
    seen: Observation,
    count: int,
    samples: int,
    seed: int = 0,
    method: Method | None = None,
) -> Posterior:
    """Draw `count` answers with the default settings, in one batch with independent noise."""
    method = method or Auto()
    same = seen.rows(torch.zeros(count, dtype=torch.long))
    sampler = Ancestral(steps=min(STEPS, model.T))
    return sample_posterior(model, same, samples, seed=seed, method=method, sampler=sampler)


def gaussian(covariance: Tensor) -> GaussianMixture:
    """Build a Gaussian with mean 0."""
    zero = torch.zeros(1, len(covariance), dtype=torch.float64)
    return GaussianMixture.from_values(torch.ones(1), zero, covariance[None].double())


def through(rows: Sequence[Sequence[float]], y: Sequence[float], std: float) -> Observation:
    """Build an observation of linear combinations of the elements plus noise."""
    dense = Dense(rows=tuple(tuple(row) for row in rows))
    return Observation.of_linear(dense, torch.tensor([list(y)]), (len(rows[0]),), std)


def told(value: Tensor | float, error: Tensor | float) -> str:
    """Format a mean and its standard error."""
    return f"{float(value):.3f} +- {float(error):.3f}"


def over(each: Tensor) -> str:
    """Format the mean of independent answers [n] and its standard error."""
    return told(each.mean(), each.std() / len(each) ** 0.5)


def evidence(found: Posterior, exact: float) -> Row:
    """Tabulate the RMS error of log p(y), how often the stated error holds, and the warnings."""
    kept = [one for one in found.diagnostics if one.log_evidence is not None]
    off = torch.tensor([(one.log_evidence or 0.0) - exact for one in kept])
    stated = torch.tensor([one.log_evidence_error or 0.0 for one in kept])
    held = (off.abs() < 1.96 * stated).double()
    warned = torch.tensor([float(one.warning is not None) for one in kept]).double()
    root = off.square().mean().sqrt()
    return f"{over(off)}, {float(root):.3f}", over(held), f"{float(warned.mean()):.2f}"


def modes() -> list[Row]:
    """Compare the shares of three and two modes with the exact weights, given one observation."""
    three = torch.tensor([[-2.0, 0.5], [0.5, -1.5], [2.0, 2.0]]).double()
    two = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]).double()
    cases = {
        "three modes": (three, [0.138, 0.826, 0.036], [-0.3, 1.0], [0.5], 0.8),
        "two modes": (two, [0.25, 0.75], [1.0, 0.3], [-0.742], 0.8),
    }
    rows = []
    for name, (means, prior, line, y, std) in cases.items():
        covariances = 0.05 * torch.eye(2).double().repeat(len(prior), 1, 1)
        network = GaussianMixture.from_values(torch.tensor(prior), means, covariances)
        matrix = torch.tensor([line]).double()
        exact, log_z = network.posterior(matrix, torch.tensor(y), torch.tensor([std**2]).double())
        model, seen = real_model(network, 2), through([line], y, std)
        for count, samples, method in (
            (2000, 1, Auto()),
            (60, 64, Auto()),
            (60, 64, Auto(systems="joint", particles=256)),
        ):
            found = answers(model, seen, count, samples, method=method)
            of = torch.cdist(found.samples.double(), exact.means.double()).argmin(2)
            each = torch.nn.functional.one_hot(of, len(prior)).double()
            each = (each * found.weights[:, :, None]).sum(1)  # [answers, modes]
            title = f"{name}, {samples} samples, {found.method.name}"
            if isinstance(found.method, Twisted):
                title += f", {found.method.systems}, {found.method.particles} particles"
            weights = ", ".join(f"{float(w):.3f}" for w in exact.weights)
            shares = ", ".join(map(over, each.unbind(1)))
            rows.append((title, weights, shares, *evidence(found, log_z)))
    return rows


def noises() -> list[Row]:
    """Observe everything at noise levels of no step: mean and deviation of the first element."""
    rows = []
    coarse = (
        gaussian(torch.tensor([[1.0]])),
        GaussianMixture.from_values(
            torch.tensor([0.4, 0.6]),
            torch.tensor([[-1.0], [1.0]]),
            torch.tensor([[[0.2]], [[0.2]]]).double(),
        ),
    )
    oracle, _ = load(Path("models/gaussian-mixture/model.safetensors"))
    assert isinstance(oracle.network, GaussianMixture)
    for name, model, y, std in (
        *(
            (f"one mode, T = 10, noise {s:g}", real_model(coarse[0], 1, 10), [0.8], s)
            for s in (0.3, 1)
        ),
        *(
            (f"two modes, T = 10, noise {s:g}", real_model(coarse[1], 1, 10), [0.8], s)
            for s in (0.3, 1)
        ),
        ("gaussian-mixture, noise 20000, 5000", oracle, [20001.0, 4998.0], 2e4),
        ("gaussian-mixture, noise 1e-5", oracle, [0.5, -1.0], 1e-5),
    ):
        network = model.network
        assert isinstance(network, GaussianMixture)
        D = len(y)
        noise = torch.tensor([std, std / 4]) if std > 1e3 else torch.full((D,), std)
        shift, scale = model.space.affine
        z = (torch.tensor(y) - shift) / scale
        inner = (noise / scale).double()
        seen = Observation.of_reals(
            z[None].float(), torch.ones(1, D, dtype=torch.bool), inner[None].float()
        )
        exact, log_z = network.posterior(torch.eye(D).double(), z.double(), inner**2)
        found = answers(model, seen, COUNT, 64)
        x = found.samples[:, :, 0].double() * scale.flatten()[0] + shift.flatten()[0]
        weights = found.weights
        mean = (weights * x).sum(1)
        grand = mean.mean()
        var = (weights * (x - grand).square()).sum(1)
        spread = var.mean().sqrt()
        error = var.std() / len(var) ** 0.5 / (2 * spread)
        right = exact.mean()[0] * scale.flatten()[0] + shift.flatten()[0]
        right_std = exact.covariance()[0, 0].sqrt() * scale.flatten()[0]
        rest = evidence(found, log_z) if found.method.name == "twisted" else ("", "", "")
        rows.append(
            (
                f"{name} ({found.method.name})",
                f"{float(right):.4g}, {float(right_std):.4g}",
                f"{float(grand):.4g} +- {float(mean.std() / COUNT**0.5):.2g}, "
                f"{float(spread):.4g} +- {float(error):.2g}",
                *rest,
            )
        )
    return rows


def surprises() -> list[Row]:
    """Observe a correlated Gaussian far out: means and deviations of its elements."""
    rows = []
    for D in (2, 8):
        place = torch.arange(D)
        covariance = 0.9 ** (place[:, None] - place).abs().double()
        network = gaussian(covariance)
        line = [1.0, 0.5] + [0.0] * (D - 2)
        matrix = torch.tensor([line]).double()
        total = float(matrix @ covariance @ matrix.mT) + 0.01
        for out in (0, 8):
            y = [out * total**0.5]
            _, log_z = network.posterior(matrix, torch.tensor(y), torch.tensor([0.01]).double())
            model, seen = real_model(network, D), through([line], y, 0.1)
            for samples in (1, 64):
                found = answers(model, seen, 100 if samples == 1 else COUNT, samples)
                title = f"{D} elements, {out} deviations out, {samples} samples"
                values = torch.tensor([one.log_evidence or 0.0 for one in found.diagnostics])
                rows.append((title, f"{log_z:.3f}", over(values), *evidence(found, log_z)))
    return rows


CASES: dict[str, Callable[[], list[Row]]] = {
    "modes": modes,
    "noises": noises,
    "surprises": surprises,
}
HEADS = ["case", "exact", "found", "log p(y) off: mean, root mean square", "error holds", "warned"]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), flush=True)
    for name in asked.only:
        print(f"\n{name}\n\n{table(HEADS, [list(row) for row in CASES[name]()])}", flush=True)


if __name__ == "__main__":
    main()
