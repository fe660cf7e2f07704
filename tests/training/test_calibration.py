"""Calibration: a right posterior passes at the rate stated, a wrong one does not."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffusion.calibration import Calibration
from diffusion.checkpoint import Metadata, load, rewrite
from diffusion.families import Exact, Noisy
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture, MLPConfig
from diffusion.noise import Stream, counter_noise
from diffusion.posterior import Auto, Learned, Matched, sample_posterior
from diffusion.process import VarianceKind
from diffusion.profile import ProfileConfig
from diffusion.samplers import Ancestral
from diffusion.space import DataSpace
from tests.diffusion.artefacts import small
from tests.diffusion.models import binomial, gaussian
from training.cli import main
from training.data import Dataset
from training.evaluate.calibration import (
    LIKELIHOOD,
    TOGETHER,
    Ranked,
    calibrate,
    measure,
    over_data,
    scalars,
    table,
)
from training.export import export

SPACE = DataSpace(kind="vector", shape=(8,))


def ranked(
    seed: int, width: float = 1.0, shift: float = 0.0, *, data: int = 1000, draws: int = 19
) -> Ranked:
    """Eight normal elements, correlated by .9; draws are `width` times as wide as the truth."""
    dice = torch.Generator().manual_seed(seed)
    common = torch.randn(data, draws + 1, 1, generator=dice, dtype=torch.float64)
    own = torch.randn(data, draws + 1, 8, generator=dice, dtype=torch.float64)
    z = math.sqrt(0.9) * common + math.sqrt(0.1) * own
    weights, ties = torch.stack(list(scalars(SPACE).values())), torch.arange(data)
    exact = torch.zeros(data, 8, dtype=torch.bool)
    return Ranked.of(
        z[:, 0], width * z[:, 1:] + shift, exact, weights, counter_noise(seed, ties, 0)
    )


def passed(of: Ranked) -> bool:
    crps, error = over_data(of.crps)
    return Calibration(
        family=Exact(), case="", count=len(of.crps), draws=19, steps=1, crps=crps, crps_error=error,
        ranks=of.histograms(list(scalars(SPACE)), 19), coverage=of.coverage(),
    ).passed  # fmt: skip


def test_right_posteriors_fail_once_in_a_hundred_times_and_wrong_ones_nearly_always() -> None:
    """Of 100 right ones at most 6 fail: more have a chance below .005 if two in a hundred do."""
    assert sum(not passed(ranked(seed)) for seed in range(100)) <= 6
    for width, shift in ((0.8, 0.0), (1.25, 0.0), (1.0, 0.2)):
        assert not any(passed(ranked(seed, width, shift)) for seed in range(5))


def test_the_error_of_a_coverage_is_its_spread_over_repeated_data() -> None:
    """Pooled: (30 L (1 - L) + N v) / (30 + N) / N, with v the variance of an example's share.

    Elements of an example vary together, so that v is far more than L (1 - L) / 8. The deviation of
    200 repeats has a relative error of 1 / sqrt(400), .05.
    """
    found = [ranked(seed, data=100).coverage() for seed in range(200)]
    for i, level in enumerate((0.5, 0.8, 0.95)):
        shares = torch.tensor([each[i].share for each in found]).double()
        errors = torch.tensor([each[i].standard_error for each in found]).double()
        assert abs(float(shares.mean()) - level) < 4 * float(shares.std()) / math.sqrt(200)
        single = level * (1 - level)
        wanted = (30 * single / 100 + 100 * float(shares.var())) / 130
        assert float(errors.square().mean()) == pytest.approx(wanted, rel=0.3)
        assert float(shares.var()) > 1.7 * single / 800  # as if elements were independent


def test_a_few_uncertain_data_refute_nothing_by_chance() -> None:
    """All of eight covered: 100% where 95% should be, which is no surprise."""
    place, nan = torch.full((1000, 1), 0.5).double(), torch.nan
    covered = torch.where(torch.arange(1000)[:, None] < 8, 1.0, nan).double().expand(1000, 3)
    assert not Ranked(place, covered, place).coverage()[-1].off
    many = torch.where(torch.arange(1000)[:, None] < 400, 1.0, nan).double().expand(1000, 3)
    assert all(each.off for each in Ranked(place, many, place).coverage())
    assert Ranked(place, torch.full_like(covered, nan), place).coverage() == ()


@pytest.mark.parametrize("draws", [2, 19])
def test_the_score_is_that_of_infinitely_many_draws(draws: int) -> None:
    """E|x - y| - E|x - x'| / 2 = 1 / sqrt(pi) for standard normal numbers, with few draws too."""
    score, error = over_data(ranked(3, data=4000, draws=draws).crps)
    assert abs(score - 1 / math.sqrt(math.pi)) < 4 * error


def test_ties_are_broken_at_random_and_what_is_certain_is_left_out() -> None:
    """Bits that are one in a tenth of cases: places are uniform where not all are alike."""
    dice = torch.Generator().manual_seed(0)
    bits = (torch.rand(20_000, 20, 1, generator=dice) < 0.1).double()
    exact = torch.zeros(20_000, 1, dtype=torch.bool)
    noise = counter_noise(1, torch.arange(20_000), 0)
    found = Ranked.of(bits[:, 0], bits[:, 1:], exact, torch.ones(1, 1).double(), noise)
    alike = (bits == bits[:, :1]).all(1)[:, 0]
    assert torch.equal(found.place[:, 0].isnan(), alike)
    assert torch.equal(found.covered.isnan().all(1), alike)
    (ranks,) = found.histograms(["sum"], 19)
    assert sum(ranks.counts) == int((~alike).sum())
    assert ranks.p > 0.001
    for each in found.coverage():
        assert abs(each.share - each.level) < 4 * each.standard_error


@pytest.mark.parametrize(("draws", "bins"), [(2, 3), (3, 4), (5, 6), (9, 10), (12, 10), (19, 10)])
def test_bins_hold_as_many_ranks_each_where_they_can(draws: int, bins: int) -> None:
    """So ties that are broken otherwise move nothing, and the right posterior still passes."""
    of = ranked(7, data=4000, draws=draws)
    names = list(scalars(SPACE))
    found = of.histograms(names, draws)
    assert {len(each.counts) for each in found} == {bins}
    assert min(each.p for each in found) > 0.001
    if bins == draws + 1:
        middle = ((of.place * bins).floor() + 0.5) / bins  # of each rank
        assert replace(of, place=middle).histograms(names, draws) == found


def test_elements_seen_exactly_count_for_nothing() -> None:
    truth, x = torch.zeros(4, 2).double(), torch.ones(4, 3, 2).double()
    exact = torch.tensor([[True, False]]).expand(4, 2)
    weights, noise = torch.eye(2).double(), counter_noise(0, torch.arange(4), 0)
    found = Ranked.of(truth, x, exact, weights, noise)
    assert bool(found.place[:, 0].isnan().all())
    assert bool((found.place[:, 1] < 0.25).all())
    assert bool((found.crps == 1).all())
    with pytest.raises(ValueError, match="two data or more"):
        over_data(Ranked.of(truth, x, torch.ones_like(exact), weights, noise).crps)


def mixture(width: float = 1.0) -> GaussianMixture:
    """Two correlated components in the plane, their deviations times `width`."""
    covariances = torch.tensor([[[0.2, 0.1], [0.1, 0.3]], [[0.3, -0.1], [-0.1, 0.1]]]).double()
    means = torch.tensor([[1.1, -0.6], [-0.9, 0.7]]).double()
    return GaussianMixture.from_values(torch.tensor([0.4, 0.6]), means, width**2 * covariances)


def heartbeat(first: float = 0.2) -> BitPatterns:
    """20 bits, a one in every fifth, at any of five phases; the first has this probability."""
    place = torch.arange(20)
    patterns = torch.stack([(place % 5 == phase).double() for phase in range(5)])
    weights = torch.tensor([first, *[(1 - first) / 4] * 4])
    return BitPatterns.from_values(weights, patterns, 0.2)


def held_out(network: GaussianMixture | BitPatterns) -> Tensor:
    return network.sample(counter_noise(9, torch.arange(1000), 0, Stream.DATA))


@pytest.mark.parametrize("family", [Exact(), Noisy(levels=(0.3, 2.0))])
def test_an_oracle_passes_and_one_that_is_too_narrow_does_not(family: Exact | Noisy) -> None:
    """Posteriors of the data's own mixture, and of one with .7 of its deviations."""
    rows = held_out(mixture())
    for width, passes in ((1.0, True), (0.7, False)):
        model = gaussian(mixture(width), 100, first=10.0)
        for case in family.cases(model.process, model.space):
            found = measure(model, rows, family, case, count=240, draws=9, batch=2160)
            assert (found.count, found.steps) == (240, 40)
            assert found.passed == passes, case


class Deaf(nn.Module):
    """A mixture that makes nothing of what it is told."""

    clock, conditional = "log_snr", True

    def __init__(self) -> None:
        super().__init__()
        self.inner = mixture()

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        out: Tensor = self.inner(x_t[:, :2], time)
        return out


@pytest.mark.parametrize(
    ("family", "scalar"), [(Noisy(levels=(0.5, 1.0), whole=0.0), LIKELIHOOD), (Exact(), TOGETHER)]
)
def test_draws_of_the_prior_are_uniform_in_all_but_one_scalar(
    family: Exact | Noisy, scalar: str
) -> None:
    """That of x_0 and y together: log r, or for exact values the sum by what was seen."""
    rows, oracle = held_out(mixture()), gaussian(mixture(), 100, first=10.0)
    model = DiffusionModel(oracle.process, Deaf(), oracle.space, "x_0", "moment").eval()
    found = measure(model, rows, family, family.words, count=240, draws=9, batch=2160)
    *others, fit = found.ranks
    assert fit.scalar == scalar
    assert fit.p < 1e-6
    assert min(each.p for each in others) > 0.001
    assert not any(each.off for each in found.coverage)
    assert not found.passed


def test_what_is_certain_and_true_passes() -> None:
    """A single pattern: no draw can differ from it, and the table says so."""
    one = BitPatterns.from_values(torch.ones(1), torch.tensor([[1.0, 0, 1, 0, 1, 1, 0]]), 0.4)
    found = measure(binomial(one, 20), held_out(one), Exact(), Exact().words, draws=2, steps=5)
    assert found.passed
    assert found.coverage == ()
    assert "all draws are the truth on 614 held-out data" in str(found)
    assert "| certain | certain | certain |" in table((found,))


@pytest.mark.parametrize("family", [Exact(), Noisy()])
def test_bits_of_an_oracle_pass_and_of_one_that_prefers_a_phase_do_not(
    family: Exact | Noisy,
) -> None:
    rows = held_out(heartbeat())
    for first, passes in ((0.2, True), (0.6, False)):
        model, case = binomial(heartbeat(first), 50), family.words
        found = measure(model, rows, family, case, count=400, draws=9, batch=3600)
        assert found.passed == passes


def test_a_calibration_goes_into_the_artefact_its_card_and_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models"
    path = export.export(
        "gaussian-mixture", out=None, models=models, device=torch.device("cpu"), measure=False
    )
    card = path.with_name("README.md")
    assert "is not measured yet" in card.read_text()
    words = ["calibrate", "gaussian-mixture", "--models", str(models), "--data", "220"]
    words += ["--steps", "40", "--draws", "4", "--batch", "880", "--write"]
    assert main(words) == 0
    model, metadata = load(path)
    kinds = ["exact: scattered", "half of the elements seen", "noisy: scattered"]
    assert [each.case for each in metadata.calibration][:3] == kinds
    assert all(each.passed for each in metadata.calibration)
    assert metadata.told == (Exact(), Noisy())
    assert model.certified == (Exact(), Noisy(whole=0.0))  # noise on all is for `matched`
    methods = {each.case: each.method for each in metadata.calibration}
    assert [name for name, method in methods.items() if method == "matched"] == [
        f"noise of {level} (model units) on all" for level in ("0.063", "0.2", "0.63")
    ]
    printed = capsys.readouterr().out
    for each in metadata.calibration:
        assert each.case in printed
        assert each.case in card.read_text()
    one = torch.tensor([[0.2, 0.0]])
    level = 0.02 * 100**0.25  # the first of them, as `Noisy.cases` has it
    noisy = model.process.saw(one, torch.ones_like(one).bool(), torch.full_like(one, level))
    found = sample_posterior(model, noisy, 2, seed=1, sampler=Ancestral(steps=40))
    assert found.method == Matched()
    said = found.diagnostics[0].calibration
    assert said is not None
    assert "noise of 0.063 (model units) on all" in said
    seen = model.process.saw(one, torch.tensor([[True, False]]), torch.zeros_like(one))
    assert isinstance(Auto().resolve(model, seen), Learned)
    # Again it has nothing left to do, and finds the same.
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "runs").rglob("*.json")}
    assert len(kept) == len(metadata.calibration)
    assert main(words) == 0
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert load(path)[1] == metadata


def test_a_model_that_was_told_nothing_has_nothing_to_calibrate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = export.export(
        "gaussian-mixture", out=None, models=tmp_path, device=torch.device("cpu"), measure=False
    )
    rewrite(path, load(path)[1].model_copy(update={"told": ()}))
    assert main(["calibrate", str(path)]) == 2
    assert "conditional = true" in capsys.readouterr().err


def test_a_case_of_two_families_is_measured_once(tmp_path: Path) -> None:
    model, rows = gaussian(mixture(), 20), held_out(mixture())
    told = (Noisy(), Exact(), Noisy(levels=(0.02, 2.0), whole=0.9))
    found = calibrate(model, told, rows, tmp_path, count=10, draws=2, steps=2)
    places = [next(i for i, one in enumerate(told) if one.includes(each.family)) for each in found]
    noise = [f"noise of {level} (model units) on all" for level in ("0.063", "0.2", "0.63")]
    names = ["noisy: scattered", *noise, "exact: scattered", "half of the elements seen"]
    assert [each.case for each in found] == [*names, "noisy: scattered"]
    assert places == [0, 0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize(("variance", "kept"), [("lower", True), ("optimal", False)])
def test_a_profile_that_changes_the_kernel_drops_the_calibration(
    variance: VarianceKind, kept: bool
) -> None:
    """An `optimal` variance is read from it, and the draws with it."""
    network = MLPConfig(features=8, width=8, depth=2, zero_out=False, conditional=True)
    document = small(network=network, space=SPACE, variance=variance, profile=ProfileConfig())
    one = Calibration(
        family=Exact(), case="x", count=4, draws=2, steps=1, crps=1.0, crps_error=0.1,
        ranks=ranked(0, data=4, draws=2).histograms(list(scalars(SPACE)), 2),
        coverage=ranked(0, data=400).coverage(),
    )  # fmt: skip
    parts = document.model_dump() | {"told": (Exact(),), "calibration": (one,)}
    before = Metadata.model_validate(parts)
    rows = torch.randn(20, 8)
    dataset = Dataset("x", SPACE, rows, rows, rows, "sha256:00")
    profile = ProfileConfig(rows=8, points=4, longest=1)
    _, after = export.with_profile(before.build().eval(), before, dataset, profile, variance)
    assert after.calibration == ((one,) if kept else ())
