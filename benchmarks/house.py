"""Measure the codebase: files that a request enters, checks of kind, files and lines by folder.

    python -m benchmarks.house            # this checkout
    python -m benchmarks.house --checks   # where the checks of family or kind are

A trace follows one warm request through every thread of a service with the closed-form models, from
the route to the device and back, and counts the project's files that it enters.
"""

import argparse
import ast
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from fastapi.testclient import TestClient

from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parents[1]
FOLDERS = ("noneq", "diffusion", "training", "service", "benchmarks", "tests")
HOUSE = FOLDERS[:4]
#: The families and kinds that only their own classes should know about.
FAMILIES = {
    "Normal", "Bernoulli", "GaussianProcess", "BinomialProcess", "GaussianPrediction",
    "BinomialPrediction", "GaussianConfig", "BinomialConfig",
}  # fmt: skip
METHODS = {"Twisted", "Matched", "Product", "Repaint", "Auto"}
KINDS = {"image", "vector", "bits", "table"}
#: Modules that define them.
OWNERS = {"space.py", "distributions.py", "gaussian.py", "binomial.py", "methods.py"}

SAMPLE = {"model": "gaussian-mixture", "num_samples": 4, "seed": 1, "sampler": {"steps": 10}}
LOGLIK = {"model": "gaussian-mixture", "data": [[0.1, 0.2]], "terms": 20, "seed": 1}
POSTERIOR = {
    "model": "gaussian-mixture", "observed": [[0.3]], "noise_std": 0.1, "num_samples": 2, "seed": 1,
    "operator": {"kind": "dense", "rows": [[1, 0.5]]}, "sampler": {"steps": 10},
}  # fmt: skip
REQUESTS: dict[str, dict[str, Any]] = {
    "/sample": SAMPLE,
    "/loglik": LOGLIK,
    "/posterior": POSTERIOR,
}
MOST = {"/sample": 24, "/loglik": 26, "/posterior": 30}


class Trace:
    """A context that records the project's files that calls enter, in all threads."""

    def __init__(self) -> None:
        self.open, self.files = False, set[str]()

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Record a call; the signature is that of `sys.setprofile`."""
        if self.open and event == "call" and frame.f_code.co_name != "<module>":
            path = frame.f_code.co_filename
            if path.startswith(str(ROOT)):
                self.files.add(str(Path(path).relative_to(ROOT)))


def entered() -> dict[str, set[str]]:
    """Return the files that one warm request of each route enters."""
    trace = Trace()
    threading.setprofile(trace)
    sys.setprofile(trace)
    found = {}
    try:
        settings = Settings(models=ROOT / "models", device="cpu", batch_size=16)
        with TestClient(create_app(settings), base_url="http://localhost") as client:
            while client.get("/health/ready").status_code != 200:
                pass
            for path, asked in REQUESTS.items():
                client.post(path, json=asked)
                trace.files, trace.open = set(), True
                client.post(path, json=asked).raise_for_status()
                trace.open = False
                found[path] = {f for f in trace.files if f.partition("/")[0] in HOUSE}
    finally:
        threading.setprofile(None)
        sys.setprofile(None)
    return found


def checks() -> Iterator[tuple[str, int, str]]:
    """Yield each check of a family or kind outside the owning modules."""
    for folder in HOUSE:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if file.name in OWNERS and folder == "diffusion":
                continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                told = _check(node)
                if told:
                    yield str(file.relative_to(ROOT)), getattr(node, "lineno", 0), told


def _check(node: ast.AST) -> str | None:
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
        names = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
        if names & METHODS:
            return "method"
        return "family" if names & FAMILIES else None
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        of_kind = any(isinstance(s, ast.Attribute) and s.attr == "kind" for s in sides)
        named = {c.value for s in sides for c in ast.walk(s) if isinstance(c, ast.Constant)}
        return "kind" if of_kind and named & KINDS else None
    return None


def sizes() -> dict[str, tuple[int, int]]:
    """Count files and lines of Python by folder."""
    found = {}
    for folder in (*FOLDERS, "service/engine", "diffusion/posterior"):
        files = list((ROOT / folder).rglob("*.py"))
        lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        found[folder] = len(files), lines
    return found


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checks", action="store_true", help="print where they stand")
    parser.add_argument("--files", action="store_true", help="print which files were entered")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    given = parser.parse_args()
    asked, files, lines = list(checks()), entered(), sizes()
    if given.json:
        print(json.dumps({"files": {k: sorted(v) for k, v in files.items()}, "checks": asked,
                          "sizes": lines}))  # fmt: skip
        return
    print("| request | files entered | of the engine | at most |\n|---|---|---|---|")
    for path, found in files.items():
        engine = sum(name.startswith("service/engine") for name in found)
        print(f"| `{path}` | {len(found)} | {engine} | {MOST[path]} |")
        if given.files:
            print("  " + "\n  ".join(sorted(found)))
    print("\n| asked outside its class | times | at most |\n|---|---|---|")
    for kind, most in (("method", 0), ("family", 20), ("kind", 20)):
        print(f"| {kind} | {sum(told == kind for _, _, told in asked)} | {most} |")
    print("\n| folder | files | lines |\n|---|---|---|")
    for folder, (count, total) in lines.items():
        print(f"| `{folder}` | {count} | {total} |")
    if given.checks:
        print("\n" + "\n".join(f"{path}:{line}: {told}" for path, line, told in asked))


if __name__ == "__main__":
    main()
