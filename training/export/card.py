"""Write an artefact's model card and the text of `inspect`."""

import json
import shlex
from pathlib import Path
from typing import Any

from diffusion.checkpoint import Metadata, read_metadata
from diffusion.families import Given
from diffusion.table import AnySpace, TableSpace
from training.config import ConvertedConfig, is_converted
from training.data import DataSetConfig
from training.evaluate.baselines import beside, verdict
from training.evaluate.bound import steps_table, table
from training.evaluate.calibration import by_column
from training.evaluate.calibration import table as calibration_table

CONVENTIONS = {
    "discretised": "the log-probability of the exact 8-bit or binary value",
    "density": "the log-density in data units, with the model's own last step",
    "paper": "Equation 14 of Sohl-Dickstein et al. 2015, with its fixed last step, in model units",
}

#: Numbers of a list that `describe` shows one by one.
_MOST_SHOWN = 8


def card(
    metadata: Metadata,
    title: str,
    parameters: int,
    *,
    reported: bool = False,
    pictured: bool = True,
    compared: bool = False,
) -> str:
    """Format the model card as Markdown.

    Args:
        metadata: of the artefact.
        title: heading of the card.
        parameters: the number of fitted weights.
        reported: whether the entropy report is beside the artefact.
        pictured: whether the sheet of samples is.
        compared: whether the terms of held-out data are.
    """
    m, training = metadata, metadata.training
    space = f"{m.space.kind}, shape {list(m.space.shape)}"
    if m.space.levels:
        space += f", {m.space.levels} levels"
    facts = [
        ("data", space),
        *_columns(m.space),
        ("process", f"{m.process.kind}, T = {m.process.T}, {settings(m.process.schedule)}"),
        ("network", f"{settings(m.network)}"),
        ("weights", f"{parameters:,}" if parameters else "none: closed form"),
        ("prediction", m.prediction),
        ("variance", m.variance or "none (bits)"),
        ("trained on", training.data + (f" ({training.checksum})" if training.checksum else "")),
    ]
    if m.process.kind == "binomial":
        facts.insert(2, ("base rate", str(m.process.base_rate)))
    if training.steps:
        batch = training.config.get("batch")
        minutes = (training.seconds or 0.0) / 60
        done = f"{training.steps:,} steps of {batch} rows, {minutes:.0f} minutes"
        initial, told = training.config.get("initial"), training.config.get("observations") or {}
        if initial:
            first = f"the first {told['after']:,} steps" if told.get("after") else "the weights"
            done += f"; {first} from an earlier artefact of {initial!r}"
        if training.kept is not None:
            done += f"; the best weights by `valid`, of step {training.kept:,}, were kept"
        if training.kept == 0:
            done += ": the network adds nothing to the density that it began from"
        facts += [
            ("training", done),
            ("on", training.device or "unknown"),
            ("seed", str(training.seed)),
        ]
    facts += [
        ("code", training.commit or "uncommitted"),
        ("libraries", ", ".join(f"{k} {v}" for k, v in sorted(training.versions.items()))),
    ]
    picture = ["![samples](samples.png)", ""] if pictured else []
    lines = [f"# {m.name}: {title}", "", *picture, "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts]
    fitted = "No row of `test` was fitted to."
    if is_converted(training.config):
        converted = ConvertedConfig.model_validate(training.config)
        lines += _conversion(converted)
        if converted.data is not None:
            fitted = (
                f"{named(converted.data)}: whether\nany row was fitted to elsewhere is not known."
            )
    lines += ["", "## Evaluation", ""]
    if m.evaluation:
        whole = [e for e in m.evaluation if e.steps is None]
        lines += [table(whole or m.evaluation), ""]
        for name in dict.fromkeys(e.convention for e in m.evaluation):
            lines.append(f"- `{name}`: {CONVENTIONS[name]}.")
        lines += [
            "",
            "K is a lower bound on the mean log-likelihood: higher is better (bits/dim: lower).",
            f"The standard error is over data and noise. {fitted} `minus",
            "entropy` is what a perfect model would reach, where it is known.",
        ]
        if any(e.trajectories for e in m.evaluation):
            lines += [
                "Several trajectories are weighed together (Equation 9): a tighter bound, by their",
                "`gain` over the mean of single ones, in bits.",
            ]
    else:
        lines.append("Not evaluated yet: `python -m training evaluate " + m.name + " --write`.")
    if compared:
        lines += [
            "",
            "`rarer_than` and `typicality` of `/loglik` hold data against the terms of held-out",
            "ones ([reference.safetensors](reference.safetensors)), at the noise of the request.",
        ]
    if m.told:
        lines += ["", "## Posteriors", "", *_posteriors(m)]
    if m.baselines:
        lines += ["", "## Beside simple densities", "", *_beside(m), ""]
    shorter = [e for e in m.evaluation if e.steps and e.convention == m.space.default_convention]
    if shorter:
        lines += ["", "## Chains of fewer steps", "", steps_table(shorter), ""]
        lines += ["The bound of the chain that takes only so many of the T steps, in bits/dim: at"]
        lines += ["as many network evaluations. `optimal` steps are the best by the profile."]
    if reported:
        lines += [
            "",
            "## Entropy of each reverse step",
            "",
            "![entropy of each reverse step](entropy.png)",
            "",
            "Bits an element, model units, for t = 2..T ([table](entropy.csv)). That of the",
            "exact reverse step, H_q(x_{t-1} | x_t), lies between the bounds (Equation 24 of",
            "Sohl-Dickstein et al. 2015): the lower is that of one who knows x_0 too, the",
            "upper that of the forward step. The model's own is a mean over data of `test`;",
            "its band is one standard error.",
        ]
    lines += ["", "## To remake it", "", "```", *_commands(m), "```", ""]
    return "\n".join(lines)


def _columns(space: AnySpace) -> list[tuple[str, str]]:
    """State what the columns of a table hold."""
    if not isinstance(space, TableSpace):
        return []
    return [("columns", "; ".join(f"{each.name}: {each.words}" for each in space.columns))]


def _posteriors(metadata: Metadata) -> list[str]:
    """Format the calibration of a network that is told what was seen."""
    if not metadata.calibration:
        return [
            "The network is told what was seen (method `learned`). Whether its posteriors hold on",
            "held-out data is not measured yet, so `auto` does not use it:",
            f"`python -m training calibrate {metadata.name} --write`.",
        ]
    kinds = [f"`{family.words}`" for family in metadata.certified]
    uses = f"observations of {', '.join(kinds)}" if kinds else "no observation"
    uses = f"`auto` uses it for {uses}: of these every case holds."
    if not metadata.process.build().by_particles:
        uses = "`auto` uses it for all that is seen of a table."
    return [
        "The network is told what was seen (method `learned`). Held-out data were observed, and",
        "ranked among draws from their posteriors:",
        "",
        calibration_table(metadata.calibration),
        "",
        f"{uses} p is the chance that",
        "the right posterior has ranks as uneven, all scalars of a case together, and at least .01",
        "where a case holds. Intervals are the middle of the draws, with the share of uncertain",
        "elements that they cover; the CRPS is of a hidden element, in data units (of a table, in",
        "units of a column's spread).",
        *(["", by_column(metadata.calibration)] if by_column(metadata.calibration) else []),
    ]


def _beside(metadata: Metadata) -> list[str]:
    """Format the verdict and the comparison with simple densities."""
    found = verdict(metadata)
    said = [] if found is None else [f"**{line}.**" for line in str(found).splitlines()]
    return [
        *said,
        "",
        beside(metadata),
        "",
        "Each was fitted to `train` and `valid` and measured on the same rows of `test`, which",
        "neither the model nor they have seen: what the fit begins from is chosen by",
        "cross-validation within `train` and `valid`, its end by `valid`. The model's gain is its",
        "bound less the simple density's, row by row.",
    ]


def _conversion(config: ConvertedConfig) -> list[str]:
    """Describe the source of a conversion and the settings that were not kept."""
    lines = [
        "",
        "## Converted",
        "",
        f"From files of {config.library}, every tensor of them used:",
        "",
    ]
    lines += [f"- `{name}` ({checksum})" for name, checksum in config.files.items()]
    if config.notes:
        lines += ["", "What they say of their sampler, and this artefact does otherwise:", ""]
        lines += [f"- {note}" for note in config.notes]
    return lines


def _commands(metadata: Metadata) -> list[str]:
    if is_converted(metadata.training.config):
        return [str(metadata.training.config["command"])]
    own = _own(metadata)
    if own is not None:
        return [own]
    name = metadata.training.config.get("file") or metadata.name
    export = f"python -m training export {name}"
    return [f"python -m training fit {name}", export] if metadata.training.steps else [export]


def _own(metadata: Metadata) -> str | None:
    """Return the `noneq train` command for a model of a user's own data, otherwise None."""
    data = metadata.training.config.get("data") or {}
    place = data.get("folder") if data.get("kind") == "pictures" else data.get("file")
    if data.get("kind") not in ("pictures", "table") or place is None:
        return None
    words = ["noneq", "train", place, "--name", metadata.name]
    if data["kind"] == "pictures":
        words += ["--side", str(data["side"])] + ([] if data["colour"] else ["--grey"])
    limits = [f"{name}={low}:{high}" for name, (low, high) in data.get("limits", {}).items()]
    words += ["--limits", ",".join(limits)] if limits else []
    kinds = [f"{name}={kind}" for name, kind in (data.get("columns") or {}).items()]
    words += ["--columns", ",".join(kinds)] if kinds else []
    given = [family for family in metadata.told if isinstance(family, Given)]
    words += ["--reals"] if data.get("reals") and not given else []
    for family in given:
        words += ["--given", ",".join(family.named(metadata.space.names))]
    return shlex.join(words)


def named(config: DataSetConfig) -> str:
    """Name the kind of data and the user's folder or file, without its full path."""
    keys = config.model_dump()
    own = keys.get("folder") or keys.get("file")
    return f"Data: {config.kind}" + (f" of {Path(own).name}" if own else "")


def settings(config: Any) -> str:  # noqa: ANN401  (any frozen configuration)
    """Format a configuration's kind and keys on one line."""
    keys = config.model_dump(mode="json")
    kind = keys.pop("kind")
    return " ".join([str(kind), *(f"{k}={json.dumps(v)}" for k, v in keys.items())])


def describe(path: Path) -> str:
    """Describe an artefact as text.

    Raises:
        ArtefactError: there is no artefact at the path.
    """
    metadata = read_metadata(path)
    lines = [f"{metadata.name}  ({path}, {path.stat().st_size:,} bytes)"]
    document = metadata.model_dump(
        mode="json", exclude={"name", "evaluation", "calibration", "training"}
    )
    document |= {
        f"training.{key}": value
        for key, value in metadata.training.model_dump(mode="json", exclude={"config"}).items()
    }
    width = max(len(key) for key in document)
    lines += [f"  {key:<{width}}  {_value(value)}" for key, value in document.items()]
    lines += ["", table(metadata.evaluation) if metadata.evaluation else "  not evaluated"]
    if metadata.calibration:
        lines += ["", calibration_table(metadata.calibration)]
    return "\n".join(lines)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(_brief(value))


def _brief(value: object) -> object:
    """Put its length and its ends in the place of a long list of numbers."""
    if isinstance(value, dict):
        return {key: _brief(each) for key, each in value.items()}
    if not isinstance(value, list):
        return value
    if len(value) > _MOST_SHOWN and all(isinstance(each, int | float) for each in value):
        return f"{len(value)} numbers from {min(value):g} to {max(value):g}"
    return [_brief(each) for each in value]
