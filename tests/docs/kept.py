"""Commands of the pages that no test can run: why, and what is checked of each in its place."""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from service.settings import Settings
from tests.docs.pages import ROOT
from training.cli import parser as training_parser

Words = list[str]


@dataclass(frozen=True)
class Kept:
    """Commands that begin alike.

    Attributes:
        beginning: of the command.
        reason: why it is not run.
        check: what holds of its words all the same; raises where it does not.
    """

    beginning: str
    reason: str
    check: Callable[[Words], object]


def has_targets(words: Words) -> None:
    """`make TARGET ...`: make knows what to do, without doing it."""
    subprocess.run([*words, "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def has_extras(words: Words) -> None:
    """`pip install '.[EXTRA]'`: pyproject.toml has the extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[2:]:
        asked = re.fullmatch(r"\.(?:\[(.*)\])?", word)
        assert asked, f"{word} is not of this checkout"
        wanted = set(asked[1].split(",")) if asked[1] else set()
        assert wanted <= set(project["optional-dependencies"])


def composes(words: Words) -> None:
    """`docker compose [-f FILE ...] up`: the files are there and name the one service."""
    files = [file for flag, file in pairwise(words) if flag == "-f"]
    for file in files or ["docker-compose.yml"]:
        assert list(yaml.safe_load((ROOT / file).read_text())["services"]) == ["noneq"]
    assert "up" in words


def serves(words: Words) -> None:
    """`noneq serve ...`: the flags are settings."""
    Settings.from_command_line(words[2:])


def trains(words: Words) -> None:
    """`python -m training VERB ...`, or `noneq VERB ...`, which is the same."""
    start = words.index("training") + 1 if "training" in words else 1
    given = training_parser().parse_args(words[start:])
    if given.command in ("fit", "classifier"):
        assert (ROOT / "training" / "configs" / f"{given.name}.toml").is_file()
    elif given.command in ("evaluate", "inspect", "parzen", "profile", "report"):
        assert (ROOT / "models" / given.name).is_dir()


def is_there(words: Words) -> None:
    """`source .venv/bin/activate`: the Makefile makes that folder."""
    folder = Path(words[1]).parts[0]
    assert re.search(rf"^VENV \?= {re.escape(folder)}$", (ROOT / "Makefile").read_text(), re.M)


KEPT = (
    Kept("make ", "installs from the internet, then serves or computes for long", has_targets),
    Kept("source .venv/", "a test has its interpreter already", is_there),
    Kept("pip install ", "a test leaves its environment as it is", has_extras),
    Kept("docker compose ", "needs Docker, and builds for minutes", composes),
    Kept("noneq serve", "serves until it is stopped", serves),
    Kept("noneq train", "fits for minutes; tests/noneq/test_train.py does it small", trains),
    Kept(
        "noneq convert", "needs what was trained elsewhere; tests/training makes it small", trains
    ),
    Kept("python -m training ", "fits for hours; tests/training does it small", trains),
)


def find(command: str) -> Kept | None:
    """Why a command is not run; None where it is."""
    if "--plan" in command:  # which only tells what would be done
        return None
    return next((kept for kept in KEPT if command.startswith(kept.beginning)), None)


def check(kept: Kept, command: str) -> None:
    """Raise where what can be checked does not hold."""
    kept.check(shlex.split(command, comments=True))
