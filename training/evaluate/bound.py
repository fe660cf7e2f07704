"""Evaluate the held-out bound: the mean of K over a split, with its standard error.

    bound = (1 / N) sum_n K_n,    standard error = std(K_n) / sqrt(N)

Each K_n is one example's estimate, stratified over the steps, so its spread includes both the data
and the noise. "paper" reuses the network's terms of the convention evaluated before it, because the
two differ only in parts with closed forms.
"""

import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from diffusion.checkpoint import Evaluation
from diffusion.likelihood.bound import (
    bound,
    check_convention,
    closed_last,
    null_log_prob,
    prior_part,
)
from diffusion.likelihood.estimator import Choice
from diffusion.likelihood.iwae import Trajectories, trajectory_bound
from diffusion.model import DiffusionModel
from diffusion.space import Convention
from training.config import EvaluationConfig
from training.data import SPLITS, Dataset, Split
from training.progress import progress_bar, rows_done

ALL_TERMS = Choice()
PERCENTILES = torch.linspace(0, 1, 101, dtype=torch.float64)
ROUNDING = 0.01  # standard errors by which a repeated bound may differ


def evaluate(
    model: DiffusionModel,
    dataset: Dataset,
    conventions: Sequence[Convention],
    *,
    split: Split = "test",
    count: int | None = None,
    choice: Choice = ALL_TERMS,
    trajectories: int | None = None,
    seed: int = 1,
    batch: int = 512,
    keep: dict[Convention, Tensor] | None = None,
) -> list[Evaluation]:
    """Evaluate the bound on the first `count` rows of a split, once per convention.

    Args:
        model: in evaluation mode.
        dataset: has the rows.
        conventions: which; the data's own if empty.
        split: "test", or "valid" for model selection.
        count: number of rows; None for the whole split.
        choice: which terms, of which chain.
        trajectories: number of trajectories in a multi-sample bound, T evaluations each; None for
            the ordinary bound.
        seed: of the noise.
        batch: rows per network call.
        keep: receives each row's bound in nats, by convention.

    Raises:
        ValueError: a convention that the data do not have; a choice of terms with trajectories; or
            fewer than two rows, which give no standard error.
    """
    if trajectories is not None and choice != ALL_TERMS:
        raise ValueError(
            "a trajectory's weight needs every step of the whole chain: leave out trajectories, or "
            "what chooses terms and steps"
        )
    rows = dataset.split(split)[:count]
    if len(rows) < 2:
        raise ValueError(
            f"a standard error needs two rows of {split} or more, came {len(rows)}: evaluate more, "
            "or hold out more of the data"
        )
    x_0, gaps = model.space.to_model(rows).to(model.device), model.left_out(rows)
    if gaps is not None and trajectories is not None:
        raise ValueError("trajectories are drawn of whole rows, and some have gaps: leave them out")
    found: list[Evaluation] = []
    steps: Tensor | None = None
    gain = 0.0
    # "paper" last, so that it can reuse another convention's terms.
    for convention in sorted(conventions or (model.space.default_convention,), key="paper".__eq__):
        check_convention(model, convention)
        prior = prior_part(model, x_0, convention, gaps).cpu()
        last = closed_last(model, x_0, convention, int(choice.path(model)[1]))
        if steps is not None and last is not None:
            values = prior + steps + last.cpu()
        else:
            if trajectories is None:
                place = torch.zeros(1, dtype=torch.int64)
                each = choice.resolve(model, place, seed, convention).count
                run = partial(bound, choice=choice, observation=gaps)
            else:
                each = trajectories * Trajectories(trajectories, model.T).count
                run = partial(trajectory_bound, trajectories=trajectories)
            work = each * len(x_0)
            with progress_bar(work, "term", convention, unit_scale=True) as bar:
                told = rows_done(bar)
                result = run(
                    model, x_0, seed=seed, convention=convention, batch=batch, progress=told
                )
            values, gain = result.bound, float(result.gain.mean())
            steps = result.steps if trajectories is None else None
        if keep is not None:
            keep[convention] = values
        mean = float(values.mean())
        quantiles = values.double().quantile(PERCENTILES) if values.isfinite().all() else None
        entropy = dataset.entropy
        if entropy is not None and convention == "paper":  # this convention is in model units
            entropy = (entropy[0] + model.space.log_jacobian(), entropy[1])
        found.append(
            Evaluation(
                convention=convention,
                split=split,
                count=len(x_0),
                terms=each if choice.terms or choice.target_error else None,
                steps=choice.steps,
                spacing=None if choice.steps is None else choice.spacing,
                strata=choice.strata,
                trajectories=trajectories,
                gain=None if trajectories is None else gain,
                seed=seed,
                bound=mean,
                standard_error=float(values.std()) / math.sqrt(len(values)),
                bits=mean / math.log(2),
                bits_per_dim=-mean / math.log(2) / model.space.dims,
                null=float(null_log_prob(model, x_0, convention, gaps).mean()),
                entropy=None if entropy is None else entropy[0],
                machine=f"{model.device.type}, {platform.machine()}",
                quantiles=None if quantiles is None else tuple(quantiles.tolist()),
            )
        )
    return found


def as_planned(
    model: DiffusionModel,
    dataset: Dataset,
    plan: EvaluationConfig,
    *,
    batch: int = 512,
    keep: dict[Convention, Tensor] | None = None,
) -> list[Evaluation]:
    """Evaluate the bound on the test split as the configuration specifies."""
    return evaluate(
        model,
        dataset,
        plan.conventions,
        count=plan.data,
        choice=plan.choice,
        seed=plan.seed,
        batch=batch,
        keep=keep,
    )


def measured_again(
    model: DiffusionModel,
    dataset: Dataset,
    evaluations: Sequence[Evaluation],
    *,
    data: int | None = None,
    batch: int = 512,
) -> list[Evaluation]:
    """Repeat the ordinary bounds on the same data and noise, to add their quantiles.

    Args:
        model: the model that was evaluated.
        dataset: the same data.
        evaluations: the artefact's.
        data: number of rows, evenly spaced because some splits are sorted by label; None for all.
        batch: rows per network call.

    Raises:
        ValueError: a mean or its standard error differs from the earlier one.
    """
    found: list[Evaluation] = []
    whole = [e for e in evaluations if e.whole]
    if data is not None:
        train, valid, test = (_some(dataset.split(name), data) for name in SPLITS)
        dataset = replace(dataset, train=train, valid=valid, test=test)
    for settings in dict.fromkeys((e.split, e.count, e.terms, e.strata, e.seed) for e in whole):
        split, count, terms, strata, seed = settings
        alike = {
            e.convention: e
            for e in whole
            if (e.split, e.count, e.terms, e.strata, e.seed) == settings
        }
        again = evaluate(
            model,
            dataset,
            list(alike),
            split=next(name for name in SPLITS if name == split),
            count=count if data is None else min(count, data),
            choice=Choice(terms=terms, strata=strata),
            seed=seed,
            batch=batch,
        )
        for new in again:
            old = alike[new.convention]
            _check_same(old, new)
            part = None if new.count == old.count else new.count
            changes = {"quantiles": new.quantiles, "quantiles_count": part}
            found.append(old.model_copy(update=changes))
    return found


def _some(rows: Tensor, count: int) -> Tensor:
    return rows[:: max(1, len(rows) // count)][:count]


def _check_same(old: Evaluation, new: Evaluation) -> None:
    """Raise ValueError if a repeated bound, perhaps on fewer rows, differs from the old one."""
    off, allowed = abs(new.bound - old.bound), 4.5 * new.standard_error
    if new.count == old.count:
        off = max(off, abs(new.standard_error - old.standard_error))
        allowed = ROUNDING * old.standard_error
    if not off <= allowed:
        raise ValueError(
            f"measured again on {new.count} data, the bound ({old.convention}) is {new.bound:.6g} "
            f"± {new.standard_error:.4g} nats, it was {old.bound:.6g} ± {old.standard_error:.4g} "
            f"on {old.count}: evaluate it anew with --write"
        )


def _chain(evaluation: Evaluation) -> str:
    """Describe the number of steps and their spacing."""
    return f"{evaluation.steps}, {evaluation.spacing}" if evaluation.steps else "all"


def steps_table(evaluations: Sequence[Evaluation]) -> str:
    """Format the bound by number of steps as a Markdown table, in bits per element."""
    columns = sorted({e.spacing for e in evaluations if e.spacing})
    lines = ["| steps | data | " + " | ".join(f"{spacing} spacing" for spacing in columns) + " |"]
    lines.append("|---|---|" + "---|" * len(columns))
    for steps in sorted({e.steps for e in evaluations if e.steps}):
        found = {e.spacing: e for e in evaluations if e.steps == steps}
        cells = [per_dim(found[s]) if s in found else "" for s in columns]
        count = ", ".join(sorted({str(e.count) for e in found.values()}))
        lines.append(f"| {steps} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def per_dim(evaluation: Evaluation) -> str:
    """Format the bits per element with their standard error."""
    error = evaluation.standard_error * evaluation.bits_per_dim / -evaluation.bound
    return f"{evaluation.bits_per_dim:.4f} ± {error:.4f}"


def table(evaluations: Sequence[Evaluation]) -> str:
    """Format evaluations as a Markdown table, in bits."""
    lines = [
        "| convention | split | data | steps | terms an example | K (bits) | standard error "
        "| bits/dim | K - L_null (bits) | minus entropy (bits) |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for e in evaluations:
        bit = math.log(2)
        limit = "" if e.entropy is None else f"{-e.entropy / bit:.4f}"
        lines.append(
            f"| {e.convention} | {e.split} | {e.count} | {_chain(e)} | {_terms(e)} | {e.bits:.4f} "
            f"| {e.standard_error / bit:.4f} | {e.bits_per_dim:.4f} "
            f"| {(e.bound - e.null) / bit:.4f} | {limit} |"
        )
    return "\n".join(lines)


def _terms(e: Evaluation) -> str:
    """Describe the terms that were evaluated."""
    if e.trajectories is None:
        return f"{e.terms or 'all'}{', by importance' if e.strata == 'importance' else ''}"
    assert e.gain is not None  # `evaluate` sets it with `trajectories`
    return f"all of {e.trajectories} trajectories (gain {e.gain / math.log(2):.4f})"
