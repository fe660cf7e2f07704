"""Run all tests and benchmarks that need a CUDA device and write a JSON report.

    python -m benchmarks.gpu [--out gpu.json] [--seconds 480]

It is meant for a borrowed machine that may lack packages: parts with missing imports are reported
and skipped. Each part runs in its own process with a share of the remaining time, so that one that
fails or hangs does not affect the others. The exit status is 1 if a part failed.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.measure import machine

_ENGINE: Final = (
    "pydantic",
    "pydantic_settings",
    "safetensors",
    "typing_extensions",
    "prometheus_client",
)
_TESTS: Final = ("tests/diffusion", "tests/service/engine")
_PARTS: Final[dict[str, tuple[tuple[str, ...], list[str]]]] = {  # what it imports, its arguments
    "tests": ((*_ENGINE, "pytest", "hypothesis"), ["pytest", "-q", "-m", "gpu", "-rA", *_TESTS]),
    "engine": (_ENGINE, ["benchmarks.engine", "--seconds", "8", "--rounds", "3"]),
    "engine, 256 rows": (
        _ENGINE,
        ["benchmarks.engine", "--seconds", "8", "--rounds", "3", "--batch", "256"],
    ),
    "loglik": (_ENGINE, ["benchmarks.loglik", "--rounds", "5"]),
    "small": ((*_ENGINE, "diffusers"), ["benchmarks.small", "--rounds", "3"]),
}


def missing(names: tuple[str, ...]) -> list[str]:
    """Return the names that cannot be imported here."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def run(arguments: list[str], seconds: float) -> dict[str, Any]:
    """Run `python -m` with these arguments; report its output, exit status and duration."""
    command, begun = [sys.executable, "-m", *arguments], time.monotonic()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds
        )
        status, said = str(done.returncode), done.stdout
    except subprocess.TimeoutExpired as late:
        status, said = f"not done after {seconds:.0f} seconds", (late.stdout or b"").decode()
    return {
        "command": " ".join(["python", *command[1:]]),
        "status": status,
        "seconds": round(time.monotonic() - begun, 1),
        "output": said.splitlines(),
    }


def main() -> None:
    """Run the parts, writing the report after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--seconds", type=float, default=480.0, help="for all of it")
    parser.add_argument("--device", default="cuda", help="cpu: to see that this command works")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no CUDA device")
    report: dict[str, Any] = {"machine": machine(), "device": asked.device, "parts": {}}
    print(report["machine"], flush=True)
    ends = time.monotonic() + asked.seconds
    for place, (name, (imports, arguments)) in enumerate(_PARTS.items()):
        lacking = missing(imports)
        if lacking:
            part: dict[str, Any] = {"status": "left out", "missing": lacking}
        else:
            device = [] if name == "tests" else ["--device", asked.device]
            share = (ends - time.monotonic()) / (len(_PARTS) - place)
            part = run([*arguments, *device], max(30.0, 2 * share if place else share))
        report["parts"][name] = part
        print(f"\n== {name}: {part['status']} {', '.join(lacking)}", flush=True)
        print("\n".join(part.get("output", [])[-40:]), flush=True)
        asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.exit(any(part["status"] not in ("0", "left out") for part in report["parts"].values()))


if __name__ == "__main__":
    main()
