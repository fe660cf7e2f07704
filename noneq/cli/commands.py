"""The commands that call a service: parsed arguments in, an exit status out."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from noneq import reading
from noneq.answer import Answer
from noneq.answers import Posterior
from noneq.cli import environment, local, scores, terminal
from noneq.cli.output import Place
from noneq.client import Client
from noneq.codec import Array
from noneq.errors import FileError, NotPictured
from noneq.models import Model, ModelFacts
from noneq.retries import Patience

SOME_FAILED = 1
#: A command that somebody waits for gives up soon; one that runs over night does not.
ASKING = Patience(retries=2)
SCORING = Patience(retries=100, seconds=900.0)

Counts = tuple[int, int]


@contextmanager
def asking(given: argparse.Namespace) -> Iterator[Client]:
    """A client of the service that the arguments name, or of one started for the call."""
    if given.local is None:
        with _client(given.url or environment.url()) as client:
            yield client
        return
    with local.local_service(given.local) as url, _client(url) as client:
        yield client


def _client(url: str, patience: Patience = ASKING) -> Client:
    return Client(url, api_key=environment.api_key(), patience=patience)


def find_model(client: Client, name: str | None) -> ModelFacts:
    """The model of that name, or the one that answers where none is named."""
    if name is None:
        name = client.models().default
    if name is None:
        names = ", ".join(model.name for model in client.models().models)
        raise FileError(f"which model? --model one of {names or 'none: none is served'}")
    return client.model(name)


def do_models(given: argparse.Namespace) -> int:
    """List the models that are served, or show one's facts and card."""
    with asking(given) as client:
        if given.name is not None:
            facts = client.model(given.name)
            text = json.dumps(asdict(facts)) if given.json else facts.card or f"{facts}"
            print(text)
            return 0
        found = client.models()
    if given.json:
        print(json.dumps(asdict(found)))
        return 0
    for model in found.models:
        mark = "*" if model.name == found.default else " "
        size = "x".join(map(str, model.shape))
        line = f"{model.name:<24} {model.kind:<7} {size:<9} T={model.steps:<5} {model.network}"
        labels = [f"{one.name}: {', '.join(one.labels)}" for one in model.classifiers]
        print(f"{mark} {'  '.join([line, *labels])}")
    for refused in found.refused:
        print(f"  {refused['file']}: not served: {refused['reason']}", file=sys.stderr)
    return 0


def do_sample(given: argparse.Namespace) -> int:
    """Draw samples."""
    with asking(given) as client, terminal.progress("sample") as listener:
        answer = client.sample(
            given.num_samples,
            model=given.model,
            seed=given.seed,
            sampler=given.sampler,
            steps=given.steps,
            progress=listener,
        )
    return deliver(answer, given)


def do_inpaint(given: argparse.Namespace) -> int:
    """Draw what was not observed, given what was."""
    with asking(given) as client:
        model = find_model(client, given.model)
        observed, known = _seen(given, model)
        with terminal.progress("inpaint") as listener:
            answer = client.inpaint(observed, known, **_posterior(given, model), progress=listener)
    return deliver(answer, given)


def do_denoise(given: argparse.Namespace) -> int:
    """Draw the data behind noisy observations."""
    with asking(given) as client:
        model = find_model(client, given.model)
        observed = reading.read_whole(_files(given), model)
        with terminal.progress("denoise") as listener:
            answer = client.denoise(observed, **_posterior(given, model), progress=listener)
    return deliver(answer, given)


def do_posterior(given: argparse.Namespace) -> int:
    """Draw data given what was seen of them, through anything linear, or what they are to show."""
    names = ("classifier", "expert", "label_probabilities")
    asked: dict[str, Any] = {name: getattr(given, name) for name in names}
    if given.label is not None:
        asked["label"] = given.label[0] if len(given.label) == 1 else given.label
    with asking(given) as client:
        model = find_model(client, given.model)
        operator, space = _operator(given, model)
        if operator is not None:
            asked |= {"operator": operator, "observed": reading.read_whole(_files(given), space)}
        elif given.files:
            asked["observed"], asked["known"] = _seen(given, model)
        with terminal.progress("posterior") as listener:
            answer = client.posterior(**asked, **_posterior(given, model), progress=listener)
    return deliver(answer, given)


def _operator(given: argparse.Namespace, model: Model) -> tuple[dict[str, Any] | None, Model]:
    """Through what was seen, and the model as if it were of what is seen."""
    shape = model.shape
    if given.pooling is not None:
        operator: dict[str, Any] = {"kind": "average-pooling", "size": given.pooling}
        size = max(1, given.pooling)
        sides = shape[-2:] if len(shape) == 3 else shape
        shape = (*shape[: -len(sides)], *(side // size for side in sides))
    elif given.blur is not None:
        operator = {"kind": "blur", "kernel": reading.read_table(given.blur)}
    elif given.matrix is not None:
        operator = {"kind": "dense", "rows": reading.read_table(given.matrix)}
        shape = (len(operator["rows"]),)
    else:
        return None, model
    if given.known is not None:
        raise FileError("--known says which elements were seen, not through an operator")
    name = f"{model.name} through {operator['kind']}"
    return operator, replace(model, name=name, shape=shape, columns=None)


def _files(given: argparse.Namespace) -> list[Path]:
    """The files that were named; on stderr, what was skipped of folders."""
    found = reading.find(given.files)
    skipped = reading.told(found.skipped)
    if skipped is not None:
        print(f"noneq: {skipped}", file=sys.stderr)
    return found.files


def _seen(given: argparse.Namespace, model: Model) -> tuple[Array, Array]:
    """What was observed, and where it is known."""
    observed, known = reading.read_all(_files(given), model)
    if given.known is not None:
        mask = reading.read_mask(given.known, model)
        if len(mask) not in (1, len(known)):
            raise FileError(f"{given.known}: {len(mask)} masks, for {len(known)} data points")
        known = known & mask
    return observed, known


def _posterior(given: argparse.Namespace, model: Model) -> dict[str, Any]:
    names = ("num_samples", "noise_std", "flip_probability", "quantiles", "steps")
    asked = {name: getattr(given, name) for name in (*names, "seed")}
    return {"model": model.name, "method": _method(given), **asked}


def _method(given: argparse.Namespace) -> str | dict[str, Any] | None:
    """A method by its name, or with the fields that were set."""
    fields: list[str] = list(given.set)
    if given.particles is not None:
        fields.append(f"particles={given.particles}")
    if not fields:
        name: str | None = given.method
        return name
    found: dict[str, Any] = {"name": given.method or "auto"}
    for field in fields:
        key, equals, value = field.partition("=")
        if not equals:
            raise FileError(f"--set {field}: write NAME=VALUE, as --set systems=joint")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value  # a word
    return found


def do_loglik(given: argparse.Namespace) -> int:
    """Score data: lower bits_per_dim is likelier."""
    names = ("convention", "terms", "trajectories", "steps", "strata", "target_error")
    settings = {name: value for name in names if (value := getattr(given, name)) is not None}
    with asking(given) as client, _client(client.url, SCORING) as patient:
        model = find_model(client, given.model)
        files = _files(given)
        scoring = scores.Scoring(patient, model, given.seed, settings, given.parallel)
        if given.out is None:
            lines = scores.Lines(sys.stdout, as_json=given.json)
            _, faults = _write(scores.run(scoring, files), lines)
            return SOME_FAILED if faults else 0
        table = scores.Table.read(given.out.path, scoring)
        if table.done:
            told = f"{given.out} has {len(table.done)} scores already; they are skipped"
            print(f"noneq: {told}", file=sys.stderr)
        with table.writing() as lines:
            count, faults = _write(scores.run(scoring, files, table), lines)
    if table.replaced:
        told = f"{given.out}: {table.replaced} of another content than before were scored anew"
        print(f"noneq: {told}", file=sys.stderr)
    before = len(table.done)
    about = {"file": str(given.out), "scored": count, "before": before, "faults": faults}
    words = f"{given.out}: {count} scored, {before} were there, {faults} faults"
    print(json.dumps(about) if given.json else words)
    return SOME_FAILED if faults else 0


def _write(found: Iterator[list[scores.Score] | scores.Fault], lines: scores.Lines) -> Counts:
    """Write scores as they come, and tell of faults: how many there were of each."""
    count = faults = 0
    with terminal.counter("scored") as counted:
        for one in found:
            if isinstance(one, scores.Fault):
                print(f"noneq: {one.said}", file=sys.stderr)
                faults += 1
            else:
                lines.put(one)
                count += len(one)
                counted(len(one))
    return count, faults


def deliver(answer: Answer, given: argparse.Namespace) -> int:
    """Save, print or show an answer, as the arguments say."""
    place: Place | None = given.out
    if isinstance(answer, Posterior):
        _warn(answer)
    if given.json and place is None:
        print(json.dumps(answer.document(), allow_nan=False))
        return 0
    shown = False
    if place is None and sys.stdout.isatty():
        try:
            terminal.show(answer.pixels(), sys.stdout)
            shown = True
        except NotPictured:
            pass
    if place is None and not shown:
        ending = ".png" if answer.numpy().ndim >= 4 else ".csv"
        place = Place.of_answer(f"{answer.model}-{answer.seed}{ending}")
    out = None if place is None else place.save(answer)
    told: Mapping[str, Any] = {**answer.body.fields, "file": None if out is None else str(out)}
    where = f"{out}  " if out is not None else ""
    print(json.dumps(told) if given.json else f"{where}(model {answer.model}, seed {answer.seed})")
    if isinstance(answer, Posterior) and not given.json:
        for likely in answer.labels or ():
            print("  ".join(f"{name} {p:.3f}" for name, p in _first(likely)))
    return 0


def _warn(answer: Posterior) -> None:
    """Tell on stderr where samples are not to be trusted."""
    for i, one in enumerate(answer.diagnostics):
        if one.get("warning"):
            print(f"noneq: example {i}: {one['warning']}", file=sys.stderr)


def _first(likely: Mapping[str, float], most: int = 5) -> list[tuple[str, float]]:
    """The likeliest labels."""
    return sorted(likely.items(), key=lambda label: -label[1])[:most]
