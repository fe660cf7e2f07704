"""The commands that call a service: parsed arguments in, an exit status out."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from noneq import reading, requests
from noneq.cli import inputs, local, score, terminal
from noneq.cli.outputs import Target
from noneq.client import Client
from noneq.errors import FileError, NotPictured
from noneq.jobs import JobStatus
from noneq.models import ModelChange, ModelFacts
from noneq.requests import Request
from noneq.responses import Posterior, Response
from noneq.retries import Patience

SOME_FAILED = 1
#: Interactive commands give up soon; scoring, which may run overnight, does not.
INTERACTIVE = Patience(retries=2)
SCORING = Patience(retries=100, seconds=900.0, restarts=True)


@contextmanager
def connected(given: argparse.Namespace) -> Iterator[Client]:
    """Connect to the service that the arguments name, or start one for this command."""
    if given.local is not None and getattr(given, "submit", False):
        raise ValueError(
            "--submit leaves the answer with the service, and that of --local ends with the "
            "command: start one with `noneq serve`"
        )
    if given.local is None:
        with _client(given.url) as client:
            yield client
        return
    with local.local_service(given.local) as url, _client(url) as client:
        yield client


def _client(url: str | None, patience: Patience = INTERACTIVE) -> Client:
    return Client(url, patience=patience)


def find_model(client: Client, name: str | None) -> ModelFacts:
    """Find the model of that name, or the default if the name is None."""
    if name is None:
        name = client.models().default
    if name is None:
        names = ", ".join(model.name for model in client.models().models)
        raise FileError(f"which model? --model one of {names or 'none: none is served'}")
    return client.model(name)


def do_models(given: argparse.Namespace) -> int:
    """List the served models, show one's facts and card, or load or unload one."""
    with connected(given) as client:
        if given.load is not None or given.unload is not None:
            change = client.unload(given.unload) if given.load is None else client.load(given.load)
            print(json.dumps(asdict(change)) if given.json else _told(change))
            return 0
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


def _told(change: ModelChange) -> str:
    """What a change of a model did, in a line."""
    if change.checksum is None:
        return f"{change.name} is served no longer"
    if change.checksum == change.replaced:
        return f"{change.name} is served already, sha256 {change.checksum[:12]}"
    done = "loaded" if change.replaced is None else "reloaded"
    return f"{done} {change.name} in {change.seconds:.1f} s, sha256 {change.checksum[:12]}"


def do_sample(given: argparse.Namespace) -> int:
    """Draw samples."""
    request = requests.sample(
        given.num_samples,
        model=given.model,
        seed=given.seed,
        sampler=given.sampler,
        steps=given.steps,
    )
    with connected(given) as client:
        return _answer(client, request, given)


def _answer(client: Client, request: Request[Any], given: argparse.Namespace) -> int:
    """Send a request and deliver its answer; with --submit, print the job that it becomes."""
    if given.submit:
        return _submitted(client.submit(request).status(), as_json=given.json)
    with terminal.progress(given.verb) as listener:
        response = client.send(replace(request, listener=listener))
    return deliver(response, given)


def _submitted(status: JobStatus, *, as_json: bool) -> int:
    """Print the id of a job that has been submitted, and to people how to get its answer."""
    print(json.dumps(asdict(status)) if as_json else status.id)
    if not as_json:
        kept = "" if status.durable else "; it does not survive a restart of the service"
        print(f"noneq: get its answer with: noneq jobs wait {status.id}{kept}", file=sys.stderr)
    return 0


def do_inpaint(given: argparse.Namespace) -> int:
    """Draw the unobserved values given the observed ones."""
    with connected(given) as client:
        model = find_model(client, given.model)
        options = inputs.posterior_options(given, model)
        values, known = inputs.observed(given, model)
        return _answer(client, requests.inpaint(values, known, **options), given)


def do_denoise(given: argparse.Namespace) -> int:
    """Draw the data behind noisy observations."""
    with connected(given) as client:
        model = find_model(client, given.model)
        options = inputs.posterior_options(given, model)
        values = reading.read_whole(inputs.files(given), model)
        return _answer(client, requests.denoise(values, **options), given)


def do_posterior(given: argparse.Namespace) -> int:
    """Draw data given a linear observation, a label, or both."""
    names = ("classifier", "expert", "label_probabilities")
    options: dict[str, Any] = {name: getattr(given, name) for name in names}
    if given.label is not None:
        options["label"] = given.label[0] if len(given.label) == 1 else given.label
    with connected(given) as client:
        model = find_model(client, given.model)
        options |= inputs.posterior_options(given, model)
        operator, seen_as = inputs.operator(given, model)
        if operator is not None:
            options["operator"] = operator
            options["observed"] = reading.read_whole(inputs.files(given), seen_as)
        elif given.files:
            options["observed"], options["known"] = inputs.observed(given, model)
        return _answer(client, requests.posterior(**options), given)


def do_loglik(given: argparse.Namespace) -> int:
    """Score data: lower bits_per_dim is likelier."""
    names = ("convention", "terms", "trajectories", "steps", "strata", "target_error")
    settings = {name: value for name in names if (value := getattr(given, name)) is not None}
    with connected(given) as client, _client(client.url, SCORING) as patient:
        model = find_model(client, given.model)
        files = inputs.files(given)
        scoring = score.Scoring(patient, model, given.seed, settings, given.parallel)
        if given.out is None or given.out.stdout:
            lines = score.Lines(sys.stdout, as_json=given.json)
            _, failures = _write(score.run(scoring, files), lines)
            return SOME_FAILED if failures else 0
        table = score.Table.read(given.out.path, scoring)
        if table.done:
            note = f"{given.out} has {len(table.done)} scores already; they are skipped"
            print(f"noneq: {note}", file=sys.stderr)
        with table.writing() as lines:
            count, failures = _write(score.run(scoring, files, table), lines)
    if table.replaced:
        note = f"{given.out}: {table.replaced} of another content than before were scored again"
        print(f"noneq: {note}", file=sys.stderr)
    before = len(table.done)
    about = {"file": str(given.out), "scored": count, "before": before, "faults": failures}
    words = f"{given.out}: {count} scored, {before} were there, {failures} faults"
    print(json.dumps(about) if given.json else words)
    return SOME_FAILED if failures else 0


def _write(
    found: Iterator[list[score.Score] | score.Failure], lines: score.Lines
) -> tuple[int, int]:
    """Write scores as they arrive, and print failures; return the number of each."""
    count = failures = 0
    with terminal.counter("scored") as counted:
        for one in found:
            if isinstance(one, score.Failure):
                print(f"noneq: {one.message}", file=sys.stderr)
                failures += 1
            else:
                lines.put(one)
                count += len(one)
                counted(len(one))
    return count, failures


def deliver(response: Response, given: argparse.Namespace) -> int:
    """Save, print or show a response, as the arguments say."""
    target: Target | None = given.out
    if isinstance(response, Posterior):
        _warn(response)
    if given.json and (target is None or target.stdout):
        print(json.dumps(response.document(), allow_nan=False))
        return 0
    shown = False
    if target is None and sys.stdout.isatty():
        try:
            terminal.show(response.pixels(), sys.stdout)
            shown = True
        except NotPictured:
            pass
    if target is None and not shown:
        ending = ".png" if response.numpy().ndim >= 4 else ".csv"
        target = Target.for_response(f"{response.model}-{response.seed}{ending}")
    path = None if target is None else target.save(response)
    about: Mapping[str, Any] = {
        **response.body.fields,
        "file": None if path is None else str(path),
    }
    to_stdout = target is not None and target.stdout
    where = "" if path is None or to_stdout else f"{path}  "
    about_it = sys.stderr if to_stdout else sys.stdout
    facts = f"model {response.model}, seed {response.seed}"
    if isinstance(response, Posterior):
        facts += f", method {response.method}"
    print(json.dumps(about) if given.json else f"{where}({facts})", file=about_it)
    if isinstance(response, Posterior) and not given.json:
        for sentence in dict.fromkeys(one.get("calibration") for one in response.diagnostics):
            if sentence:
                print(f"  {sentence}", file=about_it)
        for probabilities in response.labels or ():
            line = "  ".join(f"{name} {p:.3f}" for name, p in _most_probable(probabilities))
            print(line, file=about_it)
    return 0


def _warn(response: Posterior) -> None:
    """Print to stderr which samples cannot be trusted."""
    for i, one in enumerate(response.diagnostics):
        if one.get("warning"):
            print(f"noneq: example {i}: {one['warning']}", file=sys.stderr)


def _most_probable(labels: Mapping[str, float], most: int = 5) -> list[tuple[str, float]]:
    return sorted(labels.items(), key=lambda label: -label[1])[:most]
