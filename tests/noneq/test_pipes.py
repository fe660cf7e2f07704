"""The command in a pipe: `-` is stdin and stdout; an address needs no scheme."""

import csv
import io
import json
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import noneq as package
from tests.noneq.conftest import Run

MIXTURE = ("-m", "gaussian-mixture")


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> object:
    def give(raw: bytes) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BytesIO(raw)))

    return give


def npy(x: np.ndarray) -> bytes:
    out = BytesIO()
    np.save(out, x)
    return out.getvalue()


def png(x: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(x).save(out, "PNG")
    return out.getvalue()


def test_what_is_drawn_can_be_scored_in_a_pipe(noneq: Run, piped) -> None:  # noqa: ANN001
    """A picture's numbers too; stdout holds the table alone, the rest is told beside it."""
    for model in ("gaussian-mixture", "grey"):
        status, out, err = noneq("sample", "-m", model, "-n", "3", "--seed", "7", "-o", "-")
        assert status == 0
        assert err == f"(model {model}, seed 7)\n"
        noneq("sample", "-m", model, "-n", "3", "--seed", "7", "-o", "a.csv")
        with open("a.csv", newline="") as file:  # noqa: PTH123
            assert file.read() == out
        piped(out.encode())
        status, scores, err = noneq("loglik", "-", "-m", model, "--terms", "4", "-o", "-")
        assert (status, err) == (0, "")
        rows = list(csv.DictReader(io.StringIO(scores)))
        assert [(row["file"], row["row"]) for row in rows] == [("-", str(i)) for i in range(3)]
        _, again, _ = noneq("loglik", "a.csv", "-m", model, "--terms", "4")
        assert [row["bound"] for row in rows] == [
            row["bound"] for row in csv.DictReader(io.StringIO(again))
        ]


@pytest.mark.parametrize("write", [npy, png])
def test_stdin_is_read_as_what_it_is(noneq: Run, piped, write) -> None:  # noqa: ANN001
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    piped(write(grey))
    ask = ("denoise", "-", "-m", "grey", "--noise-std", "5", "--seed", "1", "--json")
    status, out, _ = noneq(*ask, "-o", "-")
    assert status == 0
    assert np.shape(json.loads(out)["samples"]) == (1, 1, 1, 6, 8)


def test_what_is_wrong_with_stdin_is_said_of_it(noneq: Run, piped) -> None:  # noqa: ANN001
    piped(b"0.5,1\n0.5,many\n")
    status, _, err = noneq("loglik", "-", *MIXTURE)
    assert status == 1
    assert err.startswith("noneq: -: row 1, column 1, line 2: 'many' is no number")
    piped(b"")
    status, _, err = noneq("loglik", "-", *MIXTURE)
    assert (status, err) == (2, "noneq: -: nothing came from stdin\n")


def test_an_address_needs_no_scheme(noneq: Run, url: str) -> None:
    _, expected, _ = noneq("models")
    assert noneq("models", "--url", url.removeprefix("http://")) == (0, expected, "")
    status, _, err = noneq("models", "--url", "localhost:many")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("noneq: http://localhost:many is no address (Invalid port: 'many')")


def test_the_version_is_told(noneq: Run) -> None:
    assert noneq("--version") == (0, f"noneq {package.__version__}\n", "")
