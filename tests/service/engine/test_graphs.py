"""Batches at fixed sizes: the ordinary batch's bits, whatever slots, and nobody else's touched."""

import logging
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffusion.model import DiffusionModel
from diffusion.networks import MLP, BitPatterns, GaussianMixture, MLPConfig
from diffusion.posterior import Observation
from diffusion.process import BinomialConfig, GaussianConfig, PredictionKind, Process, VarianceKind
from diffusion.samplers import DDIM, Ancestral, DPMSolver, Sampler
from diffusion.space import DataSpace
from service.engine import Engine, SampleJob
from service.engine.device.graphs import ChainGraphs, Play, graph_recorder
from service.engine.device.runner import ChainRunner
from service.engine.scheduling.batch import Batch, Entry, Lane

T, SLOTS, BATCH = 9, 24, 8


class Elementwise(nn.Module):
    """A network without products of matrices: a row's bits are its own at any number of rows."""

    clock = "step"

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        return (x_t + 0.01 * time[:, None]).tanh().repeat(1, self.outputs)


class Told(Elementwise):
    """The same, of x_t and what was seen."""

    conditional = True

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        seen = x_t[:, 3:].unflatten(1, (-1, 3)).sum(1)  # 0 where it is told nothing
        return super().forward(x_t[:, :3] + seen, time)


def mixture() -> GaussianMixture:
    return GaussianMixture.from_values(
        torch.tensor([0.4, 0.6]), torch.eye(3)[:2], 0.2 * torch.eye(3).expand(2, 3, 3)
    )


def patterns() -> BitPatterns:
    return BitPatterns.from_values(torch.tensor([0.4, 0.6]), torch.eye(3)[:2])


def model_of(
    prediction: PredictionKind,
    variance: VarianceKind | None,
    bits: bool = False,
    network: nn.Module | None = None,
) -> DiffusionModel:
    space = DataSpace(kind="bits" if bits else "vector", shape=(3,))
    process: Process = BinomialConfig(T=T).build() if bits else GaussianConfig(T=T).build()
    two = not bits and (prediction == "perturbation" or variance == "moment")
    found = Elementwise(2 if two else 1) if network is None else network
    return DiffusionModel(process, found, space, prediction, variance).eval()


MODELS: dict[str, Callable[[], DiffusionModel]] = {
    "v, lower": lambda: model_of("v", "lower"),
    "eps, moment": lambda: model_of("eps", "moment"),
    "perturbation": lambda: model_of("perturbation", None),
    "bits": lambda: model_of("x_0", None, bits=True),
    "bits, perturbation": lambda: model_of("perturbation", None, bits=True),
    "told": lambda: model_of("v", "lower", network=Told()),
    "told bits": lambda: model_of("x_0", None, bits=True, network=Told()),
    "told, closed form": lambda: model_of("x_0", "moment", network=mixture()),
    "told bits, closed form": lambda: model_of("x_0", None, bits=True, network=patterns()),
}


def as_it_is(play: Play) -> Play:
    return play


def jobs_of(model: DiffusionModel, dice: random.Random) -> dict[int, SampleJob]:
    """Of every sampler, every other one with something seen; a conditional network is told."""
    bits = model.space.kind == "bits"
    samplers: list[Sampler] = [Ancestral(), Ancestral(steps=4)]
    if not bits:
        samplers += [DPMSolver(steps=5), DDIM(steps=3, eta=0.5)]
    found = {}
    for key, sampler in enumerate(samplers):
        seen = None
        if key % 2:
            of = Observation.of_bits if bits else Observation.of_reals
            values = torch.ones(SLOTS, 3)
            seen = of(values, torch.rand(SLOTS, 3) < 0.5)
            if model.conditional and (key > 1 or bits):
                seen = seen.to_network()
        plan = sampler.plan(model)
        found[key] = SampleJob("m", SLOTS, dice.randrange(2**62), plan, observation=seen)
    return found


def runner_of(model: DiffusionModel, jobs: dict[int, SampleJob], recorded: bool) -> ChainRunner:
    runner = ChainRunner(model, SLOTS)
    runner.batch_size = BATCH
    for tensor in (runner.chains.x, runner.chains.previous):
        tensor.zero_()  # slots that nothing has used yet hold anything
    for key, job in jobs.items():
        runner.open(key, job)
    if recorded:
        runner.record(as_it_is)
    return runner


@torch.inference_mode()
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_the_same_bits_as_the_ordinary_batch(make: Callable[[], DiffusionModel]) -> None:
    """Any rows of any jobs in any slots, one step or several: every slot of the state agrees."""
    model, dice = make(), random.Random(0)
    jobs = jobs_of(model, dice)
    runners = [runner_of(model, jobs, recorded) for recorded in (False, True)]
    begun: dict[tuple[int, int], list[int]] = {}  # row of a job: its slot, its next position
    for _ in range(40):
        free = sorted(set(range(SLOTS)) - {slot for slot, _ in begun.values()})
        while free and len(begun) < BATCH:
            row = (dice.choice(list(jobs)), dice.randrange(SLOTS))
            if row not in begun:
                begun[row] = [free.pop(dice.randrange(len(free))), 0]
        chosen = dice.sample(sorted(begun), dice.randint(1, len(begun)))
        left = min(len(jobs[key].plan) - begun[key, row][1] for key, row in chosen)
        length = dice.randint(1, min(3, left))
        entries = [Entry(key, row, *begun[key, row]) for key, row in chosen]
        for runner in runners:
            runner.run(Batch(Lane("m"), entries, num_steps=length))
        ordinary, fixed = (runner.chains for runner in runners)
        for name in ("x", "previous", "finite"):
            one, other = getattr(ordinary, name)[:SLOTS], getattr(fixed, name)[:SLOTS]
            assert torch.equal(one, other), (name, entries, length)
        for key, row in chosen:
            begun[key, row][1] += length
            if begun[key, row][1] == len(jobs[key].plan):
                del begun[key, row]


@torch.inference_mode()
def test_padding_leaves_everybody_else_alone() -> None:
    """Five rows in a batch of eight: the other slots keep what they had, finite or not."""
    model = MODELS["v, lower"]()
    job = SampleJob("m", 5, 1, Ancestral().plan(model))
    runner = runner_of(model, {0: job}, recorded=True)
    runner.chains.x[5:SLOTS] = torch.nan
    runner.chains.previous[5:SLOTS] = 7.0
    runner.chains.finite[5:SLOTS] = False
    runner.run(Batch(Lane("m"), [Entry(0, row, row, 0) for row in range(5)]))
    assert bool(runner.chains.x[:5].isfinite().all())
    assert bool(runner.chains.finite[:5].all())
    assert bool(runner.chains.x[5:SLOTS].isnan().all())
    assert bool((runner.chains.previous[5:SLOTS] == 7.0).all())
    assert not bool(runner.chains.finite[5:SLOTS].any())
    assert runner.chains.spare == SLOTS


@torch.inference_mode()
def test_what_is_played_is_what_was_recorded() -> None:
    """Not the function called again: a recorder that plays nothing leaves the state as it was."""
    model = MODELS["v, lower"]()
    runner, played = ChainRunner(model, SLOTS), 0

    def record(play: Play) -> Play:
        def replay() -> None:
            nonlocal played
            played += 1
            play()

        return replay

    runner.batch_size = BATCH
    runner.record(record)
    runner.open(0, SampleJob("m", 3, 1, Ancestral().plan(model)))
    before = played
    runner.run(Batch(Lane("m"), [Entry(0, row, row, 0) for row in range(3)], num_steps=4))
    assert played == before + 4


@torch.inference_mode()
def test_a_size_that_is_wrong_or_fails_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    model = MODELS["v, lower"]()
    runner, made = ChainRunner(model, SLOTS), 0
    runner.chains.x.zero_()

    def record(play: Play) -> Play:
        """Sizes come largest first, each with nothing seen and then with something."""
        nonlocal made
        made += 1
        if made == 3:  # of 4 rows
            raise RuntimeError("operation not permitted when stream is capturing")
        return (lambda: None) if made == 5 else play  # the second of 2 rows

    with caplog.at_level(logging.WARNING):
        batches = ChainGraphs(model, runner.chains, BATCH, record)
    assert sorted(batches.failed) == [2, 4]
    assert "not permitted" in batches.failed[4]
    assert "are off by" in batches.failed[2]
    assert [batches.find(rows, observed=False) is None for rows in (1, 2, 3, 4, 5, 8, 9)] == [
        False,
        True,
        True,
        True,
        False,
        False,
        True,
    ]
    assert caplog.text.count("without a recording") == 2
    assert not bool(runner.chains.x.any())  # as before the trial


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["dense", *MODELS])
def test_graphs_are_the_ordinary_batches(kind: str, make_engine: Callable[..., Engine]) -> None:
    """On the device, through the engine: within rounding of the eager one, and all sizes used."""
    torch.manual_seed(0)
    network = MLP(MLPConfig(features=3, outputs=1, width=32, zero_out=False))
    model = model_of("v", "lower", network=network) if kind == "dense" else MODELS[kind]()
    model = model.to("cuda")
    with torch.inference_mode():
        runner = ChainRunner(model, SLOTS)
        batches = ChainGraphs(model, runner.chains, BATCH, graph_recorder(model.device))
    assert not batches.failed
    job = SampleJob("m", 5, 3, Ancestral().plan(model))
    graphs, eager = (
        make_engine(limits={"graphs": on}, m=model).submit(job).result(120).samples
        for on in (True, False)
    )
    near = (graphs - eager).abs() <= 1e-3 * eager.abs().clamp_min(1.0)
    assert near.float().mean() > 0.98
