"""The record of a calibration: its statistics, its verdict, and what follows from it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from diffusion.calibration import FALSE_ALARM, LEAST_DATA, Calibration, Coverage, Ranks, certified
from diffusion.checkpoint import Metadata, load, save
from diffusion.families import AnyFamily, Exact, Noisy
from diffusion.networks import GaussianMixture, GaussianMixtureConfig
from diffusion.observation import Observation
from diffusion.posterior import Auto, Learned, Twisted, sample_posterior
from diffusion.samplers import Ancestral, share_of
from tests.diffusion.artefacts import fresh, small

EXACT = Exact()
FLAT = (100,) * 10
STEEP = tuple(range(55, 155, 10))


def record(family: AnyFamily = EXACT, **changes: Any) -> Calibration:  # noqa: ANN401
    keys: dict[str, Any] = {
        "family": family,
        "case": "elements at random",
        "count": 1000,
        "draws": 19,
        "steps": 4,
        "ranks": (Ranks(scalar="sum", counts=FLAT),),
        "coverage": (Coverage(level=0.95, share=0.948, standard_error=0.003),),
        "crps": 1.5,
        "crps_error": 0.1,
    }
    return Calibration.model_validate(keys | changes)


def conditional(*calibration: Calibration, told: tuple[AnyFamily, ...] = (Exact(),)) -> Metadata:
    oracle = GaussianMixtureConfig(components=2, features=2)
    document = small(network=oracle, prediction="x_0", variance="moment")
    changes = {"told": told, "calibration": calibration}
    return Metadata.model_validate(document.model_dump() | changes)


def seen(noise: float = 0.0, of: int = 1) -> Observation:
    known = torch.tensor([[True, False]]).expand(of, 2)
    return Observation.of_reals(torch.full((of, 2), 0.3), known, noise)


@pytest.mark.parametrize("counts", [FLAT, STEEP, (3, 0, 9, 1), (17, 23)])
def test_the_statistic_and_its_chance_are_the_textbooks(counts: tuple[int, ...]) -> None:
    ranks = Ranks(scalar="sum", counts=counts)
    wanted = stats.chisquare(counts)
    assert ranks.chi_square == pytest.approx(wanted.statistic)
    assert ranks.p == pytest.approx(wanted.pvalue)
    assert ranks.degrees == len(counts) - 1


def test_the_verdict_counts_every_scalar() -> None:
    """p / S for S scalars: one in a hundred right posteriors fails, however many there are."""
    uneven = Ranks(scalar="ink", counts=(126, 74, *FLAT[2:]))
    for flat in (1, 5, 20):
        found = record(ranks=(*[Ranks(scalar="sum", counts=FLAT)] * flat, uneven))
        assert found.p == pytest.approx(min(1, (flat + 1) * uneven.p))
        assert found.passed == (found.p >= FALSE_ALARM)
    assert not record(ranks=(Ranks(scalar="sum", counts=STEEP),)).passed


@pytest.mark.parametrize(
    ("share", "error", "off"),
    [(0.91, 0.003, True), (0.91, 0.02, False), (0.93, 0.001, False), (0.99, 0.001, True)],
)
def test_coverage_fails_by_much_and_beyond_doubt_only(
    share: float, error: float, off: bool
) -> None:
    found = Coverage(level=0.95, share=share, standard_error=error)
    assert found.off == off
    assert record(coverage=(found,)).passed != off


def test_few_data_certify_nothing() -> None:
    assert record(count=LEAST_DATA).passed
    few = record(count=LEAST_DATA - 1)
    assert not few.passed
    assert not few.refuted


def test_a_family_is_certified_if_all_its_cases_passed() -> None:
    noisy = Noisy()
    bad = record(case="half", ranks=(Ranks(scalar="sum", counts=STEEP),))
    assert certified((Exact(), noisy), ()) == ()
    assert certified((Exact(), noisy), (record(),)) == (Exact(),)
    assert certified((Exact(), noisy), (record(), bad, record(noisy))) == (noisy,)
    other = Noisy(whole=0.1)  # as another family: a certificate is for what was measured
    assert certified((Exact(), other), (record(), record(noisy))) == (Exact(),)


def test_an_artefact_keeps_its_calibration_and_refuses_anothers(tmp_path: Path) -> None:
    document = conditional(record(), record(case="half"))
    path = tmp_path / "model.safetensors"
    save(path, fresh(document), document)
    model, again = load(path)
    assert again == document
    assert model.certified == (Exact(),)
    assert model.calibration == document.calibration
    with pytest.raises(ValidationError, match="told of"):
        conditional(record(Noisy()))


def test_auto_is_learned_only_where_certified() -> None:
    for calibration, wanted in (
        ((), Twisted),
        ((record(),), Learned),
        ((record(count=50),), Twisted),
    ):
        model = fresh(conditional(*calibration))
        assert isinstance(model.network, GaussianMixture)
        assert isinstance(Auto().resolve(model, seen()), wanted)
        assert isinstance(Auto().resolve(model, seen(0.5)), Twisted)  # of no family told
        assert isinstance(Learned().resolve(model, seen(0.5)), Learned)  # as asked


def test_a_case_that_failed_refutes_every_family_that_holds_it() -> None:
    """Two families of exact values, drawn by other patterns: what one sees the other may see."""
    halves = Exact(patterns=("half",))
    bad = record(halves, ranks=(Ranks(scalar="sum", counts=STEEP),))
    model = fresh(conditional(record(), bad, told=(Exact(), halves)))
    assert model.certified == (Exact(),)
    assert not model.certified_for(seen())
    assert isinstance(Auto().resolve(model, seen()), Twisted)


def test_a_family_is_as_good_as_its_parts_and_the_narrowest_is_named_first() -> None:
    wide, narrow = Exact(patterns=("scattered", "half")), Exact(patterns=("half",))
    part = record(narrow, case="left half seen")
    model = fresh(conditional(record(wide), part, told=(wide,)))
    assert model.certified == (wide,)
    assert model.calibrated_for(seen()) == (part, record(wide))
    bad = record(narrow, ranks=(Ranks(scalar="sum", counts=STEEP),))
    assert fresh(conditional(record(wide), bad, told=(wide,))).certified == ()
    with pytest.raises(ValueError, match="of none of them"):
        conditional(part, told=(Exact(),))


def test_an_answer_repeats_its_certificate_or_says_what_it_lacks() -> None:
    steep = record(case="half seen", ranks=(Ranks(scalar="sum", counts=STEEP),))
    for calibration, noise, steps, said, warned in (
        ((record(),), 0.0, 4, "95% intervals cover 94.8% ± 0.3% on 1,000 held-out data", None),
        ((record(),), 0.0, 3, "95% intervals cover", "chains of 4 steps, these have 3"),
        ((record(),), 0.5, 4, None, "training calibrate"),
        ((), 0.0, 4, None, "no held-out data confirm"),
        ((record(count=50),), 0.0, 4, "on 50 held-out data", "too few held-out data confirm"),
        ((record(), steep), 0.0, 4, "half seen", "refute"),
    ):
        model, sampler = fresh(conditional(*calibration)), Ancestral(steps=steps)
        found = sample_posterior(
            model, seen(noise, 3), 2, seed=1, method=Learned(), sampler=sampler
        )
        assert len(found.diagnostics) == 3
        for each in found.diagnostics:
            assert (each.calibration is None) == (said is None)
            assert said is None or said in (each.calibration or "")
            assert (each.warning is None) == (warned is None)
            assert warned is None or warned in (each.warning or "")
    twisted = sample_posterior(
        fresh(conditional(record())),
        seen(),
        2,
        seed=1,
        method=Twisted(),
        sampler=Ancestral(steps=4),
    )
    assert twisted.diagnostics[0].calibration is None


def test_an_answer_from_a_matched_step_repeats_what_was_found_at_its_pace() -> None:
    """At every step that it may start from, though its share of the steps is rounded."""
    family = Noisy(whole=1.0, levels=(1e-4, 1e4))
    good = record(family, method="matched", steps=4, level=0.3)
    steep = good.model_copy(update={"ranks": (Ranks(scalar="sum", counts=STEEP),)})
    for one in (good, steep):
        model = fresh(conditional(one))
        x = torch.zeros(2, 2)
        for t in range(1, model.T):
            at = float(model.process.alpha_bar[t])
            noisy = Observation.of_reals(x, torch.ones(2, 2).bool(), ((1 - at) / at) ** 0.5)
            for steps in (2, 4, model.T):
                found = sample_posterior(model, noisy, 2, seed=1, sampler=Ancestral(steps=steps))
                taken, measured = (share_of(each, t, model.T) for each in (steps, 4))
                for each in found.diagnostics:
                    warned, said = each.warning is not None, each.calibration is not None
                    assert warned == (one is steep and taken <= measured)
                    assert said == (warned or (one is good and taken >= measured))


def test_of_several_levels_the_nearest_is_told_and_what_failed_there() -> None:
    family = Noisy(whole=1.0, levels=(1e-4, 1e4))
    flat = {"family": family, "method": "matched", "steps": 4}
    far = record(**flat, case="far", level=30.0, ranks=(Ranks(scalar="sum", counts=STEEP),))
    narrow = (Coverage(level=0.5, share=0.4, standard_error=0.004),)
    model = fresh(conditional(far, record(**flat, case="near", level=0.4, coverage=narrow)))
    at = float(model.process.alpha_bar[model.T // 2])
    noise = ((1 - at) / at) ** 0.5
    assert noise < 3
    noisy = Observation.of_reals(torch.zeros(1, 2), torch.ones(1, 2).bool(), noise)
    found = sample_posterior(model, noisy, 2, seed=1, sampler=Ancestral(steps=4)).diagnostics[0]
    assert "50% intervals cover 40.0% ± 0.4%" in (found.warning or "")
    assert "(near)" in (found.warning or "")
    assert "chance" in far.fault
