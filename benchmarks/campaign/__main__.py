"""Send random valid requests; check for 5xx, non-finite answers and changed observed values.

    python -m benchmarks.campaign --requests 2000 --seed 0

starts a service with the shipped models, sends the requests, and prints a count of answers by
route, kind of data and status, and each failure as a curl command that reproduces it. A request for
the impossible (bits that match no pattern of the model) may get a 422 that says "no probability";
these are counted separately. The exit status is 1 if anything failed.
"""

import argparse
import asyncio
import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.campaign.questions import Question, Questions, Target
from benchmarks.http import get, post
from benchmarks.server import serving

_TOGETHER = 6  # concurrent requests, so that their rows share batches
#: Fields that may be null, as documented in docs/api.md.
_EMPTY_ALLOWED = {
    *("std", "quantiles", "label", "labels", "trajectory", "per_step", "warning", "reason"),
    *("start", "start_noise", "columns", "uncompared", "bands", "terms", "trajectories"),
    *("log_evidence", "log_evidence_error", "deprecation"),
}


async def targets(port: int) -> list[Target]:
    """List the served models, with held-out data for each."""
    found = []
    for summary in json.loads((await get(port, "/models")).body)["models"]:
        name = summary["name"]
        artefact = json.loads((await get(port, f"/models/{name}")).body)["artefact"]
        examples = json.loads((await get(port, f"/models/{name}/examples")).body)["data"]
        readers = summary["classifiers"]
        found.append(
            Target(
                name=name,
                kind=summary["kind"],
                shape=tuple(summary["shape"]),
                levels=artefact["space"]["levels"],
                steps=summary["steps"],
                base_rate=artefact["process"].get("base_rate"),
                labels=tuple(readers[0]["labels"]) if readers else (),
                examples=np.asarray(examples, np.float64),
            )
        )
    return found


def fault(question: Question, status: int, body: bytes) -> str | None:
    """Describe what is wrong with an answer; None if nothing is."""
    if status == 422 and b"no probability" in body:
        return None
    if status != 200:
        return f"status {status}: {body[:300].decode('utf-8', 'replace')}"
    answer = json.loads(body)
    empty = _empty(answer)
    if empty:
        return f"not finite: {', '.join(sorted(empty)[:5])}"
    if question.exact is not None:
        values, known = question.exact
        for result, wanted, where in zip(answer["results"], values, known, strict=True):
            samples = np.asarray(result["samples"], np.float32)  # from JSON
            if not (samples[:, where] == wanted[where].astype(np.float32)).all():
                return "what was observed did not come back exactly"
    return None


def _empty(value: Any, key: str = "") -> set[str]:  # noqa: ANN401 - JSON
    """Name the fields that hold a null or non-finite number but may not."""
    if isinstance(value, dict):
        if "bound" in value and value["bound"] is None and value.get("reason"):
            return set()  # an example that the model excludes, reported as such
        return set().union(*(_empty(part, name) for name, part in value.items()))
    if isinstance(value, list):
        return set().union(*(_empty(part, key) for part in value))
    if value is None:
        return set() if key in _EMPTY_ALLOWED or key.startswith(("rarer", "typical")) else {key}
    return {key} if isinstance(value, float) and not math.isfinite(value) else set()


async def campaign(port: int, requests: int, seed: int) -> int:
    """Send the requests, print the results, and return the number of failures."""
    served = await targets(port)
    kinds = {target.name: target.kind for target in served}
    questions = Questions(served, seed)
    waiting = [questions.draw() for _ in range(requests)]
    counts: Counter[tuple[str, str, str]] = Counter()
    failures: list[tuple[Question, str]] = []

    async def work() -> None:
        while waiting:
            question = waiting.pop()
            answer = await post(port, question.path, question.fields)
            wrong = fault(question, answer.status, answer.body)
            told = "failed" if wrong else str(answer.status)
            counts[question.path, kinds[question.fields["model"]], told] += 1
            if wrong:
                failures.append((question, wrong))
                print(f"\n{wrong}\n  {question.path} {json.dumps(question.fields)[:2000]}")
            if len(waiting) % 100 == 0:
                print(f"{requests - len(waiting)} asked, {len(failures)} failed", file=sys.stderr)

    await asyncio.gather(*(work() for _ in range(_TOGETHER)))
    print("\n| route | data | answer | requests |\n|---|---|---|---|")
    for (path, kind, told), count in sorted(counts.items()):
        print(f"| `{path}` | {kind} | {told} | {count} |")
    print(f"\n{requests} requests of seed {seed}, {len(served)} models: {len(failures)} failed")
    return len(failures)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000, help="how many (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests (0)")
    parser.add_argument("--models", type=Path, default=Path("models"), help="the folder")
    parser.add_argument("--port", type=int, help="of a service that runs, in place of a new one")
    given = parser.parse_args()
    if given.port is not None:
        return min(1, asyncio.run(campaign(given.port, given.requests, given.seed)))
    arguments = ["--models", str(given.models), "--device", "cpu"]
    with serving("service", arguments, "/health/ready") as server:
        return min(1, asyncio.run(campaign(server.port, given.requests, given.seed)))


if __name__ == "__main__":
    sys.exit(main())
