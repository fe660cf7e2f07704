"""Strata: no bias whatever they are, the error that was foretold, and the least there can be."""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.likelihood.estimator import (
    Choice,
    Strata,
    choose_steps,
    even_strata,
    important_strata,
    min_terms,
    predicted_error,
    strata_for,
)
from diffusion.model import DiffusionModel
from diffusion.networks import GaussianMixture
from diffusion.profile import Profile, pack, shortest
from diffusion.space import Convention
from tests.diffusion.bounds import gaussian

T = 9


def divisions(count: int) -> list[Tensor]:
    """Every division of 2..T into `count` strata."""
    inner = itertools.combinations(range(2, T), count - 1)
    return [torch.tensor([1, *edges, T]) for edges in inner]


def made(spread: float = 1.0) -> Profile:
    """A profile of uneven terms; its strata the best of all divisions, found by trying them."""
    profile = Profile(T, T)
    profile.mean[1:] = -torch.tensor([2.0, 5, 3, 0.4, 0.5, 0.2, 0.1, 0.02, 0.01]).double()
    profile.spread[1:] = spread * profile.mean[1:].abs() / 3
    best = [
        min(divisions(n), key=lambda edges: predicted_error(profile, Strata(0, edges)))
        for n in range(1, T)
    ]
    profile.strata.copy_(pack([edges - 1 for edges in best]))
    profile.paths.copy_(pack(shortest(torch.rand(T + 1, T + 1).double(), T)[0]))
    profile.error[1:] = profile.last[1:] = 0.5
    profile.check()
    return profile


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_no_bias_and_the_error_foretold_by_enumeration(count: int) -> None:
    """Over every choice that can be drawn, each as likely as another: terms without noise sum to
    what all of them do, and their variance is the one predicted."""
    profile = made(spread=0.0)
    for edges in (even_strata(T, "paper", max(count, 2)).edges, profile.edges(count)):
        size = edges.diff()
        ranges = [range(int(a) + 1, int(b) + 1) for a, b in itertools.pairwise(edges)]
        every = torch.tensor(list(itertools.product(*ranges)))
        sums = profile.mean[every] @ size.double()
        assert_close(sums.mean(), profile.mean[2:].sum())
        predicted = predicted_error(profile, Strata(0, edges))
        assert_close(float(sums.var(correction=0).sqrt()), predicted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("convention", ["paper", "density"])
def test_what_is_drawn_is_what_was_enumerated(convention: Convention) -> None:
    """Each step's expected weight is 1, within 5 standard errors over 20,000 rows."""
    n, profile = 20_000, made()
    for terms in (5, 7):
        strata = important_strata(profile, convention, terms)
        assert strata.count == terms
        steps = choose_steps(T, torch.arange(n), 0, convention, strata=strata)
        assert torch.equal(steps.s, steps.t - 1)
        assert bool((steps.t[:, steps.last :].diff(dim=1) > 0).all())
        weight = torch.zeros(T + 1, dtype=torch.float64)
        weight.index_add_(0, steps.t.flatten(), steps.weight.repeat(n))
        wide = float(strata.edges.diff().max())
        assert float((weight[2:] / n - 1).abs().max()) < 5 * math.sqrt(wide / n)


def test_importance_leaves_no_more_error_than_any_other_choice() -> None:
    """Of as many terms: any strata, any number of draws of the last step."""
    profile = made()
    for terms in range(min_terms(T, "density"), T + 2):
        best = predicted_error(profile, important_strata(profile, "density", terms))
        for last in range(2, 9):
            if 1 <= terms - last < T:
                for edges in divisions(terms - last):
                    assert best <= predicted_error(profile, Strata(last, edges)) + 1e-12


def test_a_target_is_reached_by_the_fewest_terms() -> None:
    profile = made()

    def choose(terms: int) -> Strata:
        return important_strata(profile, "density", terms)

    least = predicted_error(profile, even_strata(T, "density"))
    for target in (least, 1.2 * least, 2 * least, 5 * least, 100 * least):
        found = strata_for(profile, "density", target, choose)
        assert predicted_error(profile, found) <= target
        if found.count > min_terms(T, "density"):
            fewer = important_strata(profile, "density", found.count - 1)
            assert predicted_error(profile, fewer) > target
    with pytest.raises(ValueError, match="leaves a standard error of about"):
        strata_for(profile, "density", 0.99 * least, choose)


def with_profile(mixture: GaussianMixture) -> DiffusionModel:
    model = gaussian(mixture, T)
    kinds = model.prediction, model.variance
    return DiffusionModel(model.process, model.network, model.space, *kinds, made()).eval()


def test_chains_of_fewer_steps_take_their_path(mixture: GaussianMixture) -> None:
    model, rows = with_profile(mixture), torch.arange(3)
    assert model.profile is not None
    for spacing, path in (("even", [0, 3, 6, 9]), ("optimal", model.profile.path(3).tolist())):
        choice = Choice(steps=3, spacing=spacing)  # type: ignore[arg-type]
        steps = choice.resolve(model, rows, 0, "density")
        assert steps.t[0].tolist() == [path[1]] * 8 + path[2:]
        assert steps.s[0].tolist() == [0] * 8 + path[1:3]
        assert steps.end == path[1]
    whole = Choice(steps=T).resolve(model, rows, 0, "density")
    assert torch.equal(whole.t, Choice().resolve(model, rows, 0, "density").t)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"steps": 3, "strata": "importance"}, "chain of all steps"),
        ({"steps": 3, "target_error": 1.0}, "chain of all steps"),
        ({"steps": 10}, "has 9 steps, came 10"),
        ({"terms": 5, "target_error": 1.0}, "exclude each other"),
        ({"terms": 3, "strata": "importance"}, "4 to 16 `terms`"),
        ({"terms": 3}, "at least 4"),
    ],
)
def test_what_cannot_be_had_is_refused(
    asked: dict[str, object], says: str, mixture: GaussianMixture
) -> None:
    with pytest.raises(ValueError, match=says):
        Choice.model_validate(asked).resolve(with_profile(mixture), torch.arange(2), 0, "density")


@pytest.mark.parametrize(
    "asked", [{"terms": 5, "strata": "importance"}, {"target_error": 1.0}, {"steps": 3}]
)
def test_what_a_profile_tells_needs_one(asked: dict[str, object], mixture: GaussianMixture) -> None:
    with pytest.raises(ValueError, match=r"there is none: measure it with .*training profile"):
        Choice.model_validate(asked).resolve(gaussian(mixture, T), torch.arange(2), 0, "density")
