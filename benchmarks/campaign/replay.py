"""Replay the same requests against two versions of the service and compare the answers.

    python -m benchmarks.campaign.replay keep answers.jsonl --requests 200     # in the old checkout
    python -m benchmarks.campaign.replay compare answers.jsonl                 # in the new one

Requests are sent one at a time, because the bits of an answer may depend on what shares its batch.
Each difference is printed with its field; a field that only one version has is printed once.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.campaign.__main__ import targets
from benchmarks.campaign.questions import Questions
from benchmarks.http import post
from benchmarks.server import serving

_OF_THE_CALL = {"request_id"}  # unique to each call


async def keep(port: int, path: Path, requests: int, seed: int) -> None:
    """Send `requests` requests drawn from a seed and write each with its answer as a line."""
    questions = Questions(await targets(port), seed)
    with path.open("w") as file:
        for _ in range(requests):
            question = questions.draw()
            answer = await post(port, question.path, question.fields)
            line = {"path": question.path, "fields": question.fields, "status": answer.status}
            file.write(json.dumps({**line, "answer": json.loads(answer.body)}) + "\n")


async def compare(port: int, path: Path) -> int:
    """Send the same requests, print the differences, and return how many requests differ."""
    differing, fields, count = 0, Counter[str](), 0
    with path.open() as file:
        for line in map(json.loads, file):
            answer = await post(port, line["path"], line["fields"])
            found = set(differences(line["answer"], json.loads(answer.body)))
            count += 1
            values = {name for name in found if not name.startswith(("only", "in another"))}
            if values or answer.status != line["status"]:
                differing += 1
                told = f"status {line['status']} -> {answer.status}, {', '.join(sorted(values))}"
                print(f"{told}: {line['path']} {json.dumps(line['fields'])[:300]}")
            fields.update(found - values)
    for told, times in sorted(fields.items()):
        print(f"{told}: {times} answers")
    print(f"{count} requests: {differing} differ in a value or a status")
    return differing


def differences(old: Any, new: Any, name: str = "") -> list[str]:  # noqa: ANN401 - JSON
    """Return the fields that differ, by their dotted name without list indices."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = [f"only before: {name}.{key}" for key in old.keys() - new.keys()]
        found += [f"only now: {name}.{key}" for key in new.keys() - old.keys()]
        for key in (old.keys() & new.keys()) - _OF_THE_CALL:
            found += differences(old[key], new[key], f"{name}.{key}")
        return found
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [told for a, b in zip(old, new, strict=True) for told in differences(a, b, name)]
    return [] if old == new else [name]


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["keep", "compare"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--requests", type=int, default=200, help="to keep (200)")
    parser.add_argument("--seed", type=int, default=7, help="of the requests to keep (7)")
    parser.add_argument("--models", type=Path, default=Path("models"), help="the folder")
    given = parser.parse_args()
    # One batch size and one thread, so that the bits do not depend on the batch-size search.
    arguments = ["--models", str(given.models), "--device", "cpu"]
    arguments += ["--batch-size", "16", "--threads", "1", "--deterministic"]
    with serving("service", arguments, "/health/ready") as server:
        if given.verb == "keep":
            asyncio.run(keep(server.port, given.file, given.requests, given.seed))
            return 0
        return min(1, asyncio.run(compare(server.port, given.file)))


if __name__ == "__main__":
    sys.exit(main())
