"""The pass over training data: what is known beforehand, it finds."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from diffusion.checkpoint import load
from diffusion.likelihood.bound import bound, evaluate, prior_part
from diffusion.likelihood.estimator import Choice, even_strata, important_strata, predicted_error
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import Stream, counter_noise
from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.profile import Profile, ProfileConfig
from diffusion.schedule import InverseTimeSchedule, LogSnrSchedule
from diffusion.space import DataSpace
from training.cli import main
from training.evaluate.profile import closed_costs, measured_points, profiled

T = 20
MEANS = torch.tensor([[1.1, -0.6], [-0.9, 0.7]]).double()
COVARIANCES = torch.tensor([[[0.2, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.1]]]).double()


def oracle(steps: int = T) -> tuple[DiffusionModel, Tensor]:
    """A mixture of two Gaussians and 4,000 draws from it."""
    mixture = GaussianMixture.from_values(torch.tensor([0.4, 0.6]), MEANS, COVARIANCES)
    process = GaussianProcess(LogSnrSchedule(first=7.0, last=-6.0).beta(steps))
    space = DataSpace(kind="vector", shape=(2,))
    model = DiffusionModel(process, mixture, space, "x_0", "moment").eval()
    return model, mixture.sample(counter_noise(5, torch.arange(4000), 0)).double()


def test_errors_are_the_oracles_own() -> None:
    """e_t = E Var(x_0 | x_t), of other draws than the pass had: within 4 of its standard errors."""
    model, x_0 = oracle()
    found = profiled(model, x_0, ProfileConfig(rows=4000, longest=1))
    assert found.profile is not None
    other = model.network.sample(counter_noise(6, torch.arange(4000), 0)).double()
    for step in range(1, T + 1):
        t = torch.full((4000,), step)
        x_t = model.process.marginal(other, t).sample(counter_noise(7, torch.arange(4000), step))
        prediction = model.predict(x_t, t)
        var = prediction.kernel(torch.zeros_like(t)).var.mean(1)
        square = (other - prediction.x_0).square().mean(1)
        # The pass has 2,000 data, twice each.
        error = math.hypot(float(var.std()) / 4000**0.5, float(square.std()) / 2000**0.5)
        assert abs(float(found.profile.error[step] - var.mean())) < 4 * error
    assert torch.equal(found.profile.last, found.profile.error)


@pytest.mark.parametrize("variance", ["lower", "upper", "optimal"])
def test_the_closed_costs_are_the_measured_ones(variance: str) -> None:
    """Every jump's KL, averaged over the rows that the errors came from, to rounding."""
    model, x_0 = oracle(6)
    config = ProfileConfig(rows=200, longest=6)
    scalar = profiled(model, x_0, config, variance)  # type: ignore[arg-type]
    closed = closed_costs(scalar)
    assert scalar.profile is not None
    rows = x_0[:100].repeat_interleave(2, 0)
    for t in range(2, 7):
        for s in range(1, t):
            at, to = torch.full((200,), t), torch.full((200,), s)
            # The pass's own draws: the same at every t.
            noise = counter_noise(0, torch.arange(200), 0, Stream.TRAINING)
            x_t = scalar.process.marginal(rows, at).sample(noise)
            posterior = scalar.process.posterior(rows, x_t, at, to)
            kl = posterior.kl(scalar.predict(x_t, at).kernel(to))
            # KL is affine in the row's square error, so its mean needs no more than theirs.
            assert_close(float(closed[t, s]), float(kl.mean()), rtol=1e-6, atol=1e-8)


class Coins(nn.Module):
    """E[x_0 | x_t] of elements that are -1 or 1: tanh(sqrt(a) x_t / (1 - a)), a = alpha_bar_t."""

    clock = "log_snr"

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        at = log_snr.sigmoid()[:, None]
        return (at.sqrt() * x / (1 - at)).tanh()


def coins(steps: int) -> tuple[DiffusionModel, Tensor]:
    """Four fair coins at the ends of a range of 256 levels, and 4,000 tosses."""
    process = GaussianProcess(LogSnrSchedule(first=5.0, last=-6.0).beta(steps))
    space = DataSpace(kind="vector", shape=(4,), shift=127.5, scale=127.5, levels=256)
    model = DiffusionModel(process, Coins(), space, "x_0", "lower").eval()
    tosses = counter_noise(4, torch.arange(4000), 0).uniform((4,)) < 0.5
    return model, tosses.double() * 2 - 1


def test_contrast_is_the_variance_of_two_values() -> None:
    """There Var(x_0 | x_t) = (1 - x_0hat)(1 + x_0hat) of each element, so e_t = m_t in the mean:
    within 5% over 16,000 draws, and no error remains in the kernel's variance but this."""
    model, x_0 = coins(20)
    found = profiled(model, x_0, ProfileConfig(rows=8000, longest=20), "contrast")
    profile = found.profile
    assert profile is not None
    assert profile.contrast is not None
    ratio = profile.error[8:] / profile.contrast[8:]  # below, next to none is left
    assert float((ratio - 1).abs().max()) < 0.05
    t, s = torch.full((100,), 12), torch.full((100,), 9)
    x_t = found.process.marginal(x_0[:100], t).sample(counter_noise(1, torch.arange(100), 0))
    prediction = found.predict(x_t, t)
    of_x_0, _, posterior = found.process.posterior_coefficients(t, s)
    exact = posterior[:, None] + of_x_0.square()[:, None] * (1 - prediction.x_0.square())
    assert_close(prediction.kernel(s).var, exact, rtol=0.05, atol=1e-4)


def test_contrast_costs_less_than_one_number_and_as_foretold() -> None:
    model, x_0 = coins(20)
    config = ProfileConfig(rows=4000, longest=20)
    one, each = (profiled(model, x_0, config, kind) for kind in ("optimal", "contrast"))
    assert one.profile is not None
    assert each.profile is not None
    assert bool((each.profile.costs[6:] < 0.95 * one.profile.costs[6:]).all())
    # What a chain of ten steps costs over other rows: within 5%, where one number costs 10% more.
    rows, path = x_0[2000:], each.profile.path(10)
    total = 0.0
    for t, s in zip(path[1:].tolist(), path[:-1].tolist(), strict=True):
        at, to = torch.full((2000,), t), torch.full((2000,), s)
        x_t = each.process.marginal(rows, at).sample(counter_noise(9, torch.arange(2000), t))
        prediction = each.predict(x_t, at)
        total -= float(evaluate(each, prediction, rows, x_t, at, "discretised", to).mean())
    assert total == pytest.approx(float(each.profile.costs[9]), rel=0.05)


def test_contrast_is_of_data_with_a_range() -> None:
    model, x_0 = oracle(6)
    with pytest.raises(ValueError, match=r"data with a range.*'optimal'"):
        profiled(model, x_0, ProfileConfig(rows=8, longest=6), "contrast")
    bounded, _ = coins(6)
    kinds = bounded.process, bounded.network, bounded.space, bounded.prediction
    with pytest.raises(ValueError, match="--variance contrast"):
        DiffusionModel(*kinds, "contrast", Profile(6, 6))


def test_the_path_of_all_steps_costs_what_the_terms_say() -> None:
    """The cost of the whole path is minus the sum of the terms' means: the same rows, one pass."""
    for variance in (None, "optimal"):
        model, x_0 = oracle(12)
        found = profiled(model, x_0, ProfileConfig(rows=8000), variance)  # type: ignore[arg-type]
        profile = found.profile
        assert profile is not None
        assert profile.longest == 12
        assert torch.equal(profile.path(12), torch.arange(13))
        assert_close(float(profile.costs[-1]), -float(profile.mean.sum()))
        # A chain of fewer steps, each the best there is, costs more where kernels are optimal.
        if variance:
            assert bool((profile.costs.diff() < 0).all())


def test_spread_is_the_noises_and_not_the_datas() -> None:
    """Of data that are all the same it is the whole spread; else less than the whole."""
    model, x_0 = oracle()
    config = ProfileConfig(rows=4000, longest=1)
    one = profiled(model, x_0[:1].expand(2000, 2), config).profile
    assert one is not None
    t = torch.full((4000,), 7)
    x = x_0[:1].expand(4000, 2)
    x_t = model.process.marginal(x, t).sample(counter_noise(9, torch.arange(4000), 1))
    kl = model.process.posterior(x, x_t, t, t - 1).kl(model.predict(x_t, t).kernel(t - 1))
    # The standard error of a deviation over n draws of kurtosis k is about sd sqrt((k - 1) / 4n).
    z = (kl - kl.mean()) / kl.std()
    error = float(kl.std()) * math.sqrt((float(z.pow(4).mean()) - 1) / (4 * 2000))
    assert abs(float(one.spread[7] - kl.std())) < 5 * error


def test_steps_between_two_points_are_interpolated() -> None:
    model, x_0 = oracle(40)
    whole = profiled(model, x_0, ProfileConfig(rows=400, longest=1)).profile
    part = profiled(model, x_0, ProfileConfig(rows=400, longest=1, points=14)).profile
    assert whole is not None
    assert part is not None
    points = measured_points(40, 14)
    assert (int(points[0]), int(points[-1]), len(points)) == (1, 40, 14)
    assert_close(part.error[points], whole.error[points])
    assert_close(part.error, whole.error, rtol=0.05, atol=1e-9)


def test_bits_are_profiled_too() -> None:
    """The costs of jumps, measured: the whole path's is the bound's, without the prior's part."""
    patterns = torch.tensor([[0, 0, 1], [1, 0, 1], [1, 1, 0]])
    network = BitPatterns.from_values(torch.tensor([0.5, 0.3, 0.2]), patterns, 0.5)
    process = BinomialProcess(InverseTimeSchedule().beta(8), 0.5)
    model = DiffusionModel(process, network, DataSpace(kind="bits", shape=(3,)), "x_0", None).eval()
    x_0 = network.sample(counter_noise(1, torch.arange(500), 0)).double()
    profile = profiled(model, x_0, ProfileConfig(rows=1000)).profile
    assert profile is not None
    profile.check()
    assert_close(float(profile.costs[-1]), -float(profile.mean.sum()))
    bound = float(prior_part(model, x_0, "discretised").mean()) - float(profile.costs[-1])
    entropy = float(-(network.weights * network.weights.log()).sum())
    assert -entropy - 0.3 < bound < 0
    assert bool((profile.costs.diff() < 0).all())


def test_export_reads_the_optimal_variance_from_the_profile_it_makes(
    small_file: Path, tmp_path: Path
) -> None:
    text = small_file.read_text().replace('"moment"', '"optimal"').replace("outputs = 2", "")
    small_file.write_text(text + "\n[profile]\nrows = 40\npoints = 5\nlongest = 7\n")
    out, models = str(tmp_path / "run"), str(tmp_path / "models")
    assert main(["fit", str(small_file), "--out", out, "--device", "cpu"]) == 0
    assert main(["export", str(small_file), "--out", out, "--models", models]) == 0
    path = tmp_path / "models" / "small" / "model.safetensors"
    model, metadata = load(path)
    assert (model.variance, metadata.variance) == ("optimal", "optimal")
    assert metadata.profile == ProfileConfig(rows=40, points=5, longest=7)
    assert len(metadata.evaluation) == 2
    assert model.profile is not None
    again = ["profile", "small", "--models", models]
    assert main([*again, "--rows", "8", "--write"]) == 0
    changed, document = load(path)
    assert document.profile == ProfileConfig(rows=8, points=5, longest=7)
    assert document.evaluation == metadata.evaluation
    assert changed.profile is not None
    assert not torch.equal(changed.profile.error, model.profile.error)
    assert main([*again, "--variance", "lower", "--write"]) == 0
    assert load(path)[1].evaluation == ()  # they were measured with another variance


def test_the_error_foretold_is_the_error_found() -> None:
    """Two seeds' difference over 1,500 other data, even strata and by importance, within 4 standard
    errors of its root mean square; by importance it is the smaller by more than 4."""
    model, x_0 = oracle(60)
    model = profiled(model, x_0, ProfileConfig(rows=4000, longest=40), "optimal")
    assert model.profile is not None
    observed, errors = [], []
    for kind in ("even", "importance"):
        choice = Choice(terms=12, strata=kind)  # type: ignore[arg-type]
        one, two = (
            bound(model, x_0[2500:], seed=seed, convention="density", choice=choice, batch=9000)
            for seed in (1, 2)
        )
        square = (one.bound - two.bound).square() / 2
        mean, error = float(square.mean()), float(square.std()) / 1500**0.5
        if kind == "even":
            predicted = predicted_error(model.profile, even_strata(60, "density", 12))
        else:
            predicted = predicted_error(
                model.profile, important_strata(model.profile, "density", 12)
            )
        assert abs(mean - predicted**2) < 4 * error
        # What each example's own answer reports, from its 12 terms alone, is about as large.
        reported = float(one.standard_error.square().mean())
        assert 0.7 < reported / mean < 2
        observed.append(mean)
        errors.append(error)
    assert observed[0] - observed[1] > 4 * math.hypot(*errors)


def test_a_target_is_met() -> None:
    """The observed error is the target, within 4 of its own standard errors."""
    model, x_0 = oracle(60)
    model = profiled(model, x_0, ProfileConfig(rows=4000, longest=40), "optimal")
    assert model.profile is not None
    target = predicted_error(model.profile, important_strata(model.profile, "density", 20))
    choice = Choice(target_error=target, strata="importance")
    one, two = (
        bound(model, x_0[2500:], seed=seed, convention="density", choice=choice, batch=9000)
        for seed in (1, 2)
    )
    square = (one.bound - two.bound).square() / 2
    error = float(square.std()) / 1500**0.5
    assert abs(float(square.mean()) - target**2) < 4 * error
    even = Choice(target_error=target)
    place = torch.arange(1)
    counts = [each.resolve(model, place, 0, "density").count for each in (choice, even)]
    assert counts[0] == 20 < counts[1] < 60


@pytest.mark.parametrize("steps", [2, 5, 30])
def test_the_best_paths_bound_is_the_one_foretold(steps: int) -> None:
    """Prior's part less the path's cost, within 4 standard errors over the profile's own data; and
    no lower than that of even steps, by the same measure."""
    model, x_0 = oracle(60)
    model = profiled(model, x_0, ProfileConfig(rows=4000, longest=30), "optimal")
    assert model.profile is not None
    rows = x_0[:2000]
    foretold = prior_part(model, rows, "density") - model.profile.costs[steps - 1]
    best, even = (
        bound(
            model,
            rows,
            seed=3,
            convention="density",
            choice=Choice(steps=steps, spacing=spacing),  # type: ignore[arg-type]
            batch=9000,
        ).bound
        for spacing in ("optimal", "even")
    )
    # An example's bound and what is foretold of all share the data: what differs is the noise.
    error = float((best - best.mean()).std()) / 2000**0.5
    assert abs(float(best.mean() - foretold.mean())) < 4 * error
    gap = best - even
    assert float(gap.mean()) > -4 * float(gap.std()) / 2000**0.5


def test_the_command_measures_chains_of_fewer_steps(small_file: Path, tmp_path: Path) -> None:
    out, models = str(tmp_path / "run"), str(tmp_path / "models")
    assert main(["fit", str(small_file), "--out", out, "--device", "cpu"]) == 0
    assert main(["export", str(small_file), "--out", out, "--models", models]) == 0
    asked = ["evaluate", "small", "--models", models, "--write"]
    for spacing in ("even", "optimal"):
        assert main([*asked, "--steps", "2", "4", "--spacing", spacing]) == 0
    assert main([*asked, "--steps", "4", "--seed", "9"]) == 0  # in place of the one before
    assert main([*asked, "--terms", "6", "--strata", "importance"]) == 0
    path = tmp_path / "models" / "small" / "model.safetensors"
    found = {(e.steps, e.spacing): e for e in load(path)[1].evaluation if e.convention == "density"}
    chains = [(2, "even"), (2, "optimal"), (4, "even"), (4, "optimal")]
    assert sorted(key for key in found if key[0]) == chains
    assert found[4, "optimal"].seed == 9
    assert found[None, None].strata == "importance"
    text = path.with_name("README.md").read_text()
    assert "| steps | data | even spacing | optimal spacing |" in text
    assert f"| 4 | 64 | {found[4, 'even'].bits_per_dim:.4f} ± " in text
