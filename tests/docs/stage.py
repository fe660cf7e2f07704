"""Where a page's blocks are run: a folder like the reader's, bash, an interpreter, a service."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.docs import kept
from tests.docs.pages import ROOT, Block

ADDRESS = "localhost:8000"  # as the pages have it


class Stage:
    """One page's session.

    Args:
        folder: an empty one, in which the blocks are run.
        models: the folder of models, which `--local` serves and `models/` is.
        url: of the service.
    """

    def __init__(self, folder: Path, models: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.printed = ""
        self._names: dict[str, Any] = {"__name__": "__main__"}
        (folder / "examples").symlink_to(ROOT / "examples")
        (folder / "models").symlink_to(models)
        home = folder / ".home"
        home.mkdir()
        # curl would end well whatever the service answers.
        (home / ".curlrc").write_text("silent\nshow-error\nfail-with-body\n")
        for name, words in {"python": "", "noneq": " -m noneq"}.items():
            script = home / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
            script.chmod(0o755)
        self._environment = os.environ | {
            "CURL_HOME": str(home),
            "NONEQ_URL": url,
            "PATH": f"{home}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        self._run: dict[str, Callable[[Block], str]] = {"sh": self._bash, "python": self._python}

    def run(self, block: Block) -> None:
        """Run a block, all but what is kept, and check that; `printed` is then what it printed.

        Raises:
            AssertionError: it failed, or a picture it wrote is none.
        """
        if block.language not in self._run:
            raise AssertionError(f"no one knows what a block of {block.language!r} is: pages.py")
        before = {path: path.stat().st_mtime_ns for path in self.folder.rglob("*.png")}
        self.printed = self._run[block.language](block)
        for path in self.folder.rglob("*.png"):
            if path.stat().st_mtime_ns != before.get(path):
                assert path.read_bytes().startswith(b"\x89PNG"), path

    def _bash(self, block: Block) -> str:
        lines = []
        for command in block.commands:
            reason = kept.find(command)
            if reason is None:
                lines.append(command.replace(ADDRESS, self.url.removeprefix("http://")))
            else:
                kept.check(reason, command)
        if not lines:
            return ""
        script = "set -euo pipefail\n" + "\n".join(lines) + "\n"
        bash = shutil.which("bash")
        assert bash
        ended = subprocess.run(
            [bash, "-c", script],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        told = ended.stdout + ended.stderr
        assert ended.returncode == 0, f"{ended.returncode}\n{told}"
        assert "event: error" not in told, told
        return ended.stdout

    def _python(self, block: Block) -> str:
        text = block.text.replace("Client()", f"Client({self.url!r})")
        text = text.replace(f'"{ADDRESS}"', repr(self.url.removeprefix("http://")))
        out = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(out):
            exec(compile(text, block.place, "exec"), self._names)
        return out.getvalue()
