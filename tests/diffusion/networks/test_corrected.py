"""A corrected density begins as the density itself, and is exact for it."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffusion.artefact import Provenance
from diffusion.checkpoint import Metadata, load, save
from diffusion.likelihood.bound import bound
from diffusion.model import DiffusionModel
from diffusion.networks import (
    BernoulliMixture,
    BernoulliMixtureConfig,
    Corrected,
    CorrectedConfig,
    GaussianMixture,
    GaussianMixtureConfig,
    MLPConfig,
)
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.process import BinomialConfig, GaussianConfig
from diffusion.schedule import LogSnrSchedule
from diffusion.space import DataSpace
from tests.diffusion.models import given_noisy

RATE = 0.4


def mixture(dims: int = 3) -> GaussianMixture:
    dice = torch.Generator().manual_seed(0)
    factors = torch.randn(2, dims, dims, generator=dice, dtype=torch.float64) / dims
    covariances = factors @ factors.mT + 0.02 * torch.eye(dims, dtype=torch.float64)
    means = torch.randn(2, dims, generator=dice, dtype=torch.float64)
    return GaussianMixture.from_values(torch.tensor([0.3, 0.7]), means, covariances)


def bits(dims: int = 4) -> BernoulliMixture:
    dice = torch.Generator().manual_seed(0)
    p = 0.05 + 0.9 * torch.rand(2, dims, generator=dice, dtype=torch.float64)
    return BernoulliMixture.from_values(torch.tensor([0.3, 0.7]), p, RATE)


def corrected(base: GaussianMixture | BernoulliMixture) -> Corrected:
    correction = MLPConfig(
        features=base.config.features,
        outputs=base.config.outputs,
        width=8,
        depth=2,
        embedding=4,
        clock="log_snr",
    )
    made = Corrected(CorrectedConfig(base=base.config, correction=correction))
    made.place(base)
    return made.eval().requires_grad_(False)


def every(dims: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=dims)))


@pytest.mark.parametrize("base", [mixture(), bits()])
@pytest.mark.parametrize("log_snr", [-torch.inf, -4.0, 0.5, 12.0])
def test_it_begins_as_its_base(base: GaussianMixture | BernoulliMixture, log_snr: float) -> None:
    x_t = torch.randn(5, 3) if isinstance(base, GaussianMixture) else every(4)[3:8]
    time = torch.full((5,), log_snr)
    made = corrected(base)
    assert torch.equal(made(x_t, time), base(x_t, time))
    torch.nn.init.ones_(made.correction.readout.bias)
    assert not torch.allclose(made(x_t, time), base(x_t, time))
    # One condition for all rows is each row's own.
    one = made.given(x_t, *made.condition(time[:1]))
    assert torch.allclose(one, made(x_t, time), atol=1e-6)


def test_a_correction_of_one_output_leaves_the_variance() -> None:
    base = mixture()
    correction = MLPConfig(features=3, width=8, depth=2, embedding=4, clock="log_snr")
    made = Corrected(CorrectedConfig(base=base.config, correction=correction))
    made.place(base)
    torch.nn.init.ones_(made.correction.readout.bias)
    x_t, time = torch.randn(5, 3), torch.full((5,), 0.5)
    (mean, log_var), (moved, left) = (net(x_t, time).chunk(2, 1) for net in (base, made))
    assert torch.equal(left, log_var)
    assert not torch.allclose(moved, mean)


def test_a_shift_of_one_is_one_posterior_deviation_of_a_gaussian() -> None:
    whole = GaussianMixture.from_values(
        torch.ones(1), torch.zeros(1, 2), torch.tensor([[[1.0, 0.9], [0.9, 1.0]]])
    )
    made = corrected(whole)
    torch.nn.init.ones_(made.correction.readout.bias)
    torch.nn.init.zeros_(made.correction.readout.weight)
    x_t, time = torch.zeros(1, 2), torch.tensor([0.3])
    moved = (made(x_t, time) - whole(x_t, time))[0, :2].double()
    _, posterior = given_noisy(whole, torch.zeros(1, 2), float((-time / 2).exp()))
    # |U^T moved| is the deviation along each axis, so moved^T Cov^-1 moved is their number.
    assert float(moved @ torch.linalg.solve(posterior[0], moved)) == pytest.approx(2, rel=1e-4)


def told_too(base: GaussianMixture | BernoulliMixture) -> Corrected:
    """A correction that is told what was seen, of a base."""
    made = corrected(base)
    again = Corrected(made.config.conditioned())
    again.place(base)
    return again.eval().requires_grad_(False)


@pytest.mark.parametrize("base", [mixture(), bits()])
def test_told_it_begins_as_its_base_told(base: GaussianMixture | BernoulliMixture) -> None:
    made, D = told_too(base), base.config.features
    assert made.conditional
    x_t, time = torch.randint(0, 2, (5, D)).float(), torch.linspace(-4, 4, 5)
    known = torch.arange(D).expand(5, D) < torch.arange(5)[:, None]
    real = isinstance(base, GaussianMixture)
    of = Observation.of_reals if real else Observation.of_bits
    told = of(x_t, known, 0.2).to_network().inputs
    assert told is not None
    x = torch.cat((x_t, told), 1)
    assert torch.equal(made(x, time), base(x, time))
    torch.nn.init.ones_(made.correction.readout.bias)
    assert not torch.allclose(made(x, time), base(x, time))


def test_a_correction_shrinks_as_what_is_told_leaves_less_to_correct() -> None:
    made = told_too(mixture())
    torch.nn.init.ones_(made.correction.readout.bias)
    torch.nn.init.zeros_(made.correction.readout.weight)
    x_t, time = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(4)
    known = torch.tensor([True, False, False]).expand(4, 3)

    def moved(noise: float) -> Tensor:
        told = Observation.of_reals(x_t, known, noise).to_network().inputs
        assert told is not None
        x = torch.cat((x_t, told), 1)
        return (made(x, time) - made.base(x, time))[:, :3].abs()

    free = (made(x_t, time) - made.base(x_t, time))[:, :3].abs()
    exact, noisy = moved(0.0), moved(1.0)
    assert bool((exact[:, 0] < 1e-3 * free[:, 0]).all())
    assert bool((exact[:, 0] < noisy[:, 0]).all())
    assert bool((noisy <= free * (1 + 1e-6)).all())


@pytest.mark.parametrize("log_snr", [-1.0, 1.5])
@pytest.mark.parametrize("flip", [0.0, 0.2])
def test_bits_told_are_those_of_enumeration(log_snr: float, flip: float) -> None:
    base, x_0 = bits(), every(4).double()
    signal, noise = torch.tensor(log_snr).sigmoid(), torch.tensor(-log_snr).sigmoid()
    one = torch.stack((noise * RATE, signal + noise * RATE)).double()  # P(x_t = 1 | x_0 = 0, 1)
    known, y = torch.tensor([True, False, True, False]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    each = one[x_0.long()]
    x_t = x_0[:, None]
    likelihood = torch.where(x_t > 0.5, each, 1 - each).prod(2)  # [x_t, x_0]
    agree = torch.where(x_0 == y, 1 - flip, flip).where(known, 1.0).prod(1)
    joint = likelihood * base.log_prob(x_0).exp() * agree
    wanted = (joint / joint.sum(1, keepdim=True)) @ x_0
    told = Observation.of_bits(y.expand(16, 4), known.expand(16, 4), flip).to_network().inputs
    assert told is not None
    found = base(torch.cat((every(4), told), 1), torch.full((16,), log_snr)).double().sigmoid()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("log_snr", [-1.0, 1.5])
def test_bits_given_noisy_bits_are_those_of_enumeration(log_snr: float) -> None:
    base, x_0 = bits(), every(4).double()
    signal, noise = torch.tensor(log_snr).sigmoid(), torch.tensor(-log_snr).sigmoid()
    stays = torch.stack((1 - noise * RATE, signal + noise * RATE)).double()
    flips = 1 - stays
    prior = base.log_prob(x_0).exp()
    assert float(prior.sum()) == pytest.approx(1, abs=1e-12)
    x_t = x_0[:, None]
    value = x_0[None]
    stay, flip = stays[value.long()], flips[value.long()]
    likelihood = torch.where(x_t == value, stay, flip).prod(2)
    joint = likelihood * prior
    wanted = (joint / joint.sum(1, keepdim=True)) @ x_0
    found = base(every(4), torch.full((16,), log_snr)).double().sigmoid()
    assert torch.allclose(found, wanted, atol=1e-6)


def model(base: GaussianMixture | BernoulliMixture) -> tuple[DiffusionModel, Metadata]:
    made = corrected(base)
    real = isinstance(base, GaussianMixture)
    document = Metadata(
        name="corrected",
        process=GaussianConfig(T=300, schedule=LogSnrSchedule(first=10.0, last=-7.0))
        if real
        else BinomialConfig(T=300, base_rate=RATE),
        network=made.config,
        prediction="x_0",
        variance="moment" if real else None,
        space=DataSpace(kind="vector" if real else "bits", shape=(made.config.base.features,)),
        training=Provenance(data="none"),
    )
    found = document.build()
    found.network.load_state_dict(made.state_dict())
    return found.eval(), document


@pytest.mark.parametrize("base", [mixture(), bits()])
def test_its_bound_is_the_density_of_its_base(base: GaussianMixture | BernoulliMixture) -> None:
    made, document = model(base)
    if isinstance(base, GaussianMixture):
        x_0 = base.sample(counter_noise(0, torch.arange(400), 0, Stream.DATA))
    else:
        x_0 = torch.bernoulli(torch.full((400, 4), 0.5), generator=torch.Generator().manual_seed(1))
    found = bound(made, x_0, seed=0, convention=document.space.default_convention, batch=8192).bound
    gap = base.log_prob(x_0) - found
    error = float(gap.std()) / 20
    # A bound within sampling error; what 300 diagonal steps lose is below .06 nats here.
    assert -4 * error < float(gap.mean()) < 4 * error + 0.06


def test_an_artefact_of_it_survives(tmp_path: Path) -> None:
    made, document = model(mixture())
    path = tmp_path / "model.safetensors"
    save(path, made, document)
    again, read = load(path)
    x_t, t = torch.randn(3, 3), torch.tensor([1, 50, 300])
    assert read == document
    assert torch.equal(again.predict(x_t, t).x_0, made.predict(x_t, t).x_0)


def test_what_does_not_fit_is_refused() -> None:
    keys = {"features": 3, "outputs": 2, "clock": "log_snr"}
    base = GaussianMixtureConfig(components=1, features=3)
    with pytest.raises(ValueError, match="3 features as its base has"):
        CorrectedConfig(base=base, correction=MLPConfig(**(keys | {"features": 2})))
    with pytest.raises(ValueError, match="log_snr"):
        CorrectedConfig(base=base, correction=MLPConfig(**(keys | {"clock": "step"})))
    with pytest.raises(ValueError, match="between 0 and 1"):
        BernoulliMixture.from_values(torch.ones(1), torch.tensor([[1.0, 0.5]]))
    assert BernoulliMixtureConfig(components=1, features=2).outputs == 1
