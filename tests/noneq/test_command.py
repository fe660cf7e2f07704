"""The command: every verb, every exit status, files in and out."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noneq import Busy, DeadlineMissed, NoneqError, ServerFault, errors, load
from noneq.cli import local
from noneq.cli.main import STATUS
from noneq.client import Client
from tests.noneq.conftest import Run
from tests.noneq.scripted import CUT, response, scripted

MIXTURE = ("-m", "gaussian-mixture")


def test_models_are_listed_and_shown(noneq: Run) -> None:
    status, out, _ = noneq("models")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "bit-patterns", "gaussian-mixture", "grey"
    ]  # fmt: skip
    assert "animals: cat, dog, crow" in out.splitlines()[2]
    status, out, _ = noneq("models", "grey", "--json")
    assert json.loads(out)["shape"] == [1, 6, 8]


def test_samples_go_where_they_are_wanted(noneq: Run) -> None:
    status, out, _ = noneq("sample", "-m", "grey", "-n", "3", "--seed", "7", "-o", "a.npy")
    assert (status, out) == (0, "a.npy  (model grey, seed 7)\n")
    samples = np.load("a.npy")
    assert samples.shape == (3, 1, 6, 8)
    status, out, _ = noneq("sample", "-m", "grey", "-n", "3", "--seed", "7", "--json")
    assert np.allclose(json.loads(out)["samples"], samples, atol=1)
    Path("each").mkdir()
    assert noneq("sample", "-m", "grey", "-n", "3", "--seed", "7", "-o", "each")[0] == 0
    assert sorted(path.name for path in Path("each").iterdir()) == [
        f"grey-7-000{i}.png" for i in range(3)
    ]
    with Image.open("each/grey-7-0001.png") as picture:
        assert np.allclose(np.asarray(picture.convert("L")), samples[1, 0], atol=1)


@pytest.mark.parametrize(
    ("out", "told"),
    [
        ("foo", "ends in nothing"),
        ("a.doc", "ends in .doc"),
        ("file.txt/a.npy", "cannot be written"),
        ("file.txt/", "cannot be written"),
        ("full/a.npy", "cannot be written"),
    ],
)
def test_where_nothing_can_be_written_nothing_is_asked(
    noneq: Run, monkeypatch: pytest.MonkeyPatch, out: str, told: str
) -> None:
    Path("file.txt").write_text("kept")
    Path("full").symlink_to("/proc")  # where nobody can write, root included
    monkeypatch.setenv("NONEQ_URL", "http://127.0.0.1:9")  # nobody is there to ask
    status, _, err = noneq("sample", "-m", "grey", "-o", out)
    assert status == 2
    assert told in err
    assert Path("file.txt").read_text() == "kept"


@pytest.mark.parametrize("out", ["a.npy", "scores", "folder"])
def test_scores_are_a_table(noneq: Run, out: str) -> None:
    Path("folder").mkdir()
    Path("x.csv").write_text("0.5,1.5\n")
    status, _, err = noneq("loglik", "x.csv", *MIXTURE, "-o", out)
    assert status == 2
    assert "write .csv" in err


def test_folders_are_made(noneq: Run) -> None:
    ask = ("sample", "-m", "grey", "-n", "2", "--seed", "7", "-o")
    assert noneq(*ask, "new/each/")[0] == 0
    assert [path.name for path in sorted(Path("new/each").iterdir())] == [
        "grey-7-0000.png", "grey-7-0001.png"
    ]  # fmt: skip
    assert noneq(*ask, "deep/er/a.npy")[0] == 0
    assert np.load("deep/er/a.npy").shape == (2, 1, 6, 8)
    Path("x.csv").write_text("0.5,1.5\n")
    assert noneq("loglik", "x.csv", *MIXTURE, "-o", "other/scores.csv", "--terms", "5")[0] == 0
    assert len(Path("other/scores.csv").read_text().splitlines()) == 2


def test_a_look_at_where_to_write_changes_nothing(
    noneq: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("there.npy").write_text("kept")
    monkeypatch.setattr("noneq.retries._FIRST", 0.0)
    monkeypatch.setenv("NONEQ_URL", "http://127.0.0.1:9")
    for name in ("there.npy", "new.npy"):
        assert noneq("sample", "-m", "grey", "-o", name)[0] == 3
    assert Path("there.npy").read_text() == "kept"
    assert not Path("new.npy").exists()


def test_what_was_computed_is_never_lost(noneq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture can be made, the disk is full: the answer is kept whole, and it is told where."""
    ask = ("sample", *MIXTURE, "--seed", "7", "--steps", "3", "-o")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def unseen(*_: object) -> None:
        raise errors.NotPictured("there is no picture of these")

    monkeypatch.setattr("noneq.images.to_pillow", unseen)
    status, _, err = noneq(*ask, "sub/a.png")
    assert status == 2
    assert "no picture" in err
    assert "sub/gaussian-mixture-7.safetensors" in err
    first = load("sub/gaussian-mixture-7.safetensors").numpy()
    assert first.shape == (1, 2)
    monkeypatch.setattr("noneq.files.write_npy", full)
    status, _, err = noneq(*ask, "sub/b.npy")
    assert status == 2
    assert "No space left" in err
    assert "sub/gaussian-mixture-7-1.safetensors" in err  # nothing is written over
    assert np.allclose(load("sub/gaussian-mixture-7-1.safetensors").numpy(), first)
    monkeypatch.setattr("noneq.files.write", full)
    status, _, err = noneq(*ask, "sub/b.npy")
    assert status == 2
    assert "'samples': [[" in err


def test_without_a_terminal_a_picture_becomes_a_file(noneq: Run) -> None:
    status, out, _ = noneq("sample", "-m", "grey", "--seed", "7")
    assert (status, out) == (0, "grey-7.png  (model grey, seed 7)\n")
    with Image.open("grey-7.png") as picture:
        assert picture.size == (8, 6)
    noneq("sample", "-m", "bit-patterns", "--seed", "7", "--steps", "3")
    assert len(Path("bit-patterns-7.csv").read_text().splitlines()) == 2


def test_a_terminal_shows_the_picture(
    noneq: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for colour, mark in (("truecolor", "▀"), ("", "@")):
        monkeypatch.setenv("COLORTERM", colour)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        _, out, _ = noneq("sample", "-m", "bit-patterns", "-n", "4", "--seed", "1", "--steps", "3")
        assert mark in out
        assert "seed 1" in out
    assert list(tmp_path.iterdir()) == []


def test_what_is_transparent_or_empty_is_drawn(noneq: Run) -> None:
    pixels = np.full((6, 8, 2), 255, np.uint8)
    pixels[..., 0] = 90
    pixels[:, 4:, 1] = 0
    Image.fromarray(pixels).save("torn.png")
    ask = ("inpaint", "torn.png", "-m", "grey", "-n", "3", "--seed", "1", "-o", "a.npy")
    assert noneq(*ask)[0] == 0
    found = np.load("a.npy")
    assert found.shape == (1, 3, 1, 6, 8)
    assert np.all(found[..., :4] == 90)
    assert np.any(found[..., 4:] != 90)
    Image.fromarray(np.uint8(255 * (np.arange(48).reshape(6, 8) < 8))).save("mask.png")
    assert noneq(*ask, "--known", "mask.png")[0] == 0
    found = np.load("a.npy")
    assert np.all(found[..., 0, :4] == 90)
    assert np.any(found[..., 1:, :4] != 90)
    Path("gaps.csv").write_text("0.5,\n,1.25\n")
    steps = ("--steps", "5")
    assert noneq("inpaint", "gaps.csv", *MIXTURE, "-n", "2", *steps, "-o", "b.npy")[0] == 0
    found = np.load("b.npy")
    assert np.all(found[0, :, 0] == 0.5)
    assert np.all(found[1, :, 1] == 1.25)


def test_what_is_not_seen_is_neither_scored_nor_denoised(noneq: Run) -> None:
    """Under what is transparent lies any colour; a gap is a number that nobody knows."""
    pixels = np.full((6, 8, 2), 255, np.uint8)
    pixels[2, 3, 1] = 254
    Image.fromarray(pixels).save("torn.png")
    Path("gaps.csv").write_text("0.5,\n")
    for name, model in (("torn.png", "grey"), ("gaps.csv", "gaussian-mixture")):
        status, _, err = noneq("loglik", name, "-m", model)
        assert status == 1
        assert f"{name}: example 0 has a gap or is transparent" in err
        status, _, err = noneq("denoise", name, "-m", model, "--noise-std", "5")
        assert status == 2
        assert f"{name}: example 0 has a gap or is transparent" in err


def test_a_folder_says_what_it_skipped(noneq: Run, greys: Path) -> None:
    (greys / "small.png").unlink()
    (greys / "._0.png").write_bytes(b"\0")
    (greys / "notes.txt").write_text("to do")
    (greys / "below").mkdir()
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(greys / "below" / "4.png")
    status, out, err = noneq("loglik", str(greys), "-m", "grey")
    assert status == 0
    assert out.count("\n") == 1 + 5
    assert "2 files skipped: 1 hidden (._0.png); 1 neither a picture nor a table (notes.txt)" in err
    np.save("last.npy", np.zeros((2, 6, 8, 1)))
    status, _, err = noneq("loglik", "last.npy", "-m", "grey")
    assert status == 1
    assert "last.npy: it has shape [2, 6, 8, 1]" in err
    assert "numpy.moveaxis(x, -1, -3)" in err


def test_noisy_data_are_denoised(noneq: Run) -> None:
    np.save("noisy.npy", np.array([[0.5, -1.0]]))
    ask = ("denoise", "noisy.npy", *MIXTURE, "-n", "4", "--noise-std", "0.5", "--seed", "2")
    status, out, _ = noneq(*ask, "--json")
    assert status == 0
    assert json.loads(out)["method"] in ("matched", "twisted")  # by the noise of the steps
    status, out, err = noneq(*ask, "--method", "learned", "-o", "clean.npy")
    assert (status, out) == (0, "clean.npy  (model gaussian-mixture, seed 2, method learned)\n")
    assert "no held-out data confirm" in err
    status, _, err = noneq("denoise", "noisy.npy", *MIXTURE)
    assert status == 2
    assert "noise_std" in err


def test_a_posterior_of_anything_linear_or_of_a_label(noneq: Run) -> None:
    """Blocks' means, a blur, a matrix, elements; each is read in the shape of what is seen."""
    grey = np.uint8(np.arange(48).reshape(1, 6, 8) * 5)
    means = grey.reshape(3, 2, 4, 2).mean((1, 3))
    np.save("means.npy", means[None, None])
    ask = ("-m", "grey", "--seed", "1", "--noise-std", "0.5", "-o", "a.npy", "--particles", "2")
    assert noneq("posterior", "means.npy", *ask, "--pooling", "2")[0] == 0
    found = np.load("a.npy")[0, 0, 0]
    off = np.abs(found.reshape(3, 2, 4, 2).mean((1, 3)) - means)
    assert off.mean() < 10  # an untrained network in 8 steps; a draw of its own is off by 60
    np.save("kernel.npy", np.full((1, 3), 1 / 3))
    Image.fromarray(grey[0]).save("grey.png")
    words = ("posterior", "grey.png", *ask, "--blur", "kernel.npy", "--set", "covariance=diagonal")
    assert noneq(*words)[0] == 0
    Path("rows.csv").write_text("1.0,0.5\n0.0,1.0\n")
    Path("seen.csv").write_text("0.3,0.1\n")
    words = ("posterior", "seen.csv", *MIXTURE, "--matrix", "rows.csv", "--noise-std", "0.1")
    words += ("-n", "4", "--steps", "10", "--quantiles", "0.1", "0.9", "--set", "systems=joint")
    status, out, _ = noneq(*words, "--method", "twisted", "--json")
    assert status == 0
    assert np.shape(json.loads(out)["quantiles"]) == (1, 2, 2)
    Path("gaps.csv").write_text("0.5,\n")
    words = ("posterior", "gaps.csv", *MIXTURE, "--expert", "gaussian-mixture", "--steps", "10")
    assert noneq(*words, "--set", "covariance=diagonal", "-o", "b.npy")[0] == 0
    assert np.all(np.load("b.npy")[..., 0] == 0.5)
    assert noneq(*words, "--set", "covariance=diagonal", "-n", "3", "-o", "b.csv")[0] == 0
    names, *lines = Path("b.csv").read_text().splitlines()
    assert names == "example,sample,weight,x0,x1"
    assert [line.split(",")[:2] for line in lines] == [["0", "0"], ["0", "1"], ["0", "2"]]
    assert sum(float(line.split(",")[2]) for line in lines) == pytest.approx(1)
    words = (
        "posterior",
        "-m",
        "grey",
        "--label",
        "dog",
        "--label-probabilities",
        "-n",
        "2",
        "-o",
        "c.npy",
    )
    status, out, _ = noneq(*words, "--particles", "2")
    assert status == 0
    assert np.load("c.npy").shape == (1, 2, 1, 6, 8)
    assert {"cat", "dog", "crow"} <= set(out.split())


def test_what_is_not_to_be_trusted_is_said(noneq: Run) -> None:
    Path("seen.csv").write_text("30.0,\n")  # far from all that the model knows
    words = ("inpaint", "seen.csv", *MIXTURE, "--particles", "2", "--seed", "1", "-o", "a.npy")
    status, _, err = noneq(*words, "--steps", "5")
    assert status == 0
    assert "noneq: example 0: systems of 2 particles differ by" in err
    assert "may be off by half a posterior standard deviation" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("posterior", "x.csv", *MIXTURE, "--pooling", "1", "--known", "x.csv"), "--known"),
        (("posterior", "x.csv", *MIXTURE, "--set", "joint"), "NAME=VALUE"),
        (("posterior", "x.csv", *MIXTURE, "--matrix", "none.npy"), "none.npy"),
        (("posterior", *MIXTURE), "observed"),
        (("loglik", "nowhere.png", "-m", "grey"), "nowhere.png"),
        (("loglik", ".", "-m", "grey"), "holds no data"),
        (("sample", "-m", "grey", "-o", "a.doc"), ".npy"),
        (("sample",), "names no model"),
        (("loglik", "x.csv"), "which model?"),
        (("sample", "-m", "nobody"), "No such model"),
        (("sample", "-m", "grey", "-n", "0"), "num_samples"),
        (("loglik", "x.csv", *MIXTURE, "--terms", "1"), "terms"),
        (("dance",), "invalid choice"),
        ((), "VERB"),
    ],
)
def test_what_is_wrong_is_said_and_ends_in_2(noneq: Run, words: tuple[str, ...], told: str) -> None:
    if "." not in words:
        Path("x.csv").write_text("0.5,1.5\n")
    status, out, err = noneq(*words)
    assert (status, out.count("\n") > 1) == (2, False)
    assert told in err


def test_the_exit_status_says_what_to_do(
    noneq: Run, monkeypatch: pytest.MonkeyPatch, serve: Callable[..., AbstractContextManager[str]]
) -> None:
    with scripted([]) as (nobody, _):
        pass
    monkeypatch.setattr("noneq.retries._FIRST", 0.0)
    status, _, err = noneq("sample", "--url", nobody)
    assert status == 3
    assert "noneq serve" in err
    with scripted([CUT] * 3) as (url, _):
        assert noneq("sample", "--url", url)[0] == 3
    problem = json.dumps({"title": "The queue is full", "retry_after": 99}).encode()
    with scripted([response("503 Service Unavailable", problem)]) as (url, _):
        status, out, _ = noneq("sample", "--url", url, "--json")
    assert status == 4
    assert json.loads(out)["error"] == "Busy"
    assert json.loads(out)["problem"]["retry_after"] == 99
    with serve(api_keys="secret") as url:
        assert noneq("models", "--url", url)[0] == 5
        monkeypatch.setenv("NONEQ_API_KEY", "secret")
        assert noneq("models", "--url", url)[0] == 0
    fault = json.dumps({"title": "Internal error"}).encode()
    with scripted([response("500 Internal Server Error", fault)]) as (url, _):
        assert noneq("sample", "--url", url)[0] == 6


def test_every_exception_has_an_exit_status() -> None:
    def below(kind: type[NoneqError]) -> set[type[NoneqError]]:
        return {kind}.union(*(below(one) for one in kind.__subclasses__()))

    def status(kind: type[NoneqError]) -> int:
        return next(status for one, status in STATUS if issubclass(kind, one))

    found = {kind: status(kind) for kind in below(NoneqError)}
    assert set(found.values()) == {2, 3, 4, 5, 6, 7}
    assert (found[Busy], found[DeadlineMissed], found[ServerFault]) == (4, 4, 6)
    assert found[errors.TooLarge] == 2


def test_an_interruption_ends_in_130(noneq: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "send", interrupted)
    status, _, err = noneq("sample", "-m", "grey")
    assert status == 130
    assert "interrupted" in err


@pytest.mark.parametrize(
    ("words", "entered"),
    [
        (("serve", "--port", "9000"), ("-m", "service", "--port", "9000")),
        (
            ("train", "photos/", "--steps", "9"),
            ("-m", "training", "train", "photos/", "--steps", "9"),
        ),
        (("evaluate", "mnist", "--json"), ("-m", "training", "evaluate", "mnist", "--json")),
        (("export", "mnist"), ("-m", "training", "export", "mnist")),
        (("convert", "church", "-o", "m"), ("-m", "training", "convert", "church", "-o", "m")),
    ],
)
def test_the_other_verbs_become_the_parts_that_answer_them(
    noneq: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], entered: tuple[str, ...]
) -> None:
    class Entered(Exception):
        pass

    def execv(program: str, command: list[str]) -> None:
        assert program == command[0] == sys.executable
        raise Entered(*command[1:])

    monkeypatch.setattr("os.execv", execv)
    with pytest.raises(Entered) as found:
        noneq(*words)
    assert found.value.args == entered
    monkeypatch.setattr(local, "find_spec", lambda _: None)
    status, _, err = noneq(*words)
    assert status == 7
    assert "pip install 'noneq[" in err


@pytest.fixture
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service of one's own starts from this checkout, soon."""
    monkeypatch.setenv("NONEQ_BATCH_SIZE", "8")  # not found by trying, which takes a while
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.mark.usefixtures("quick_start")
def test_a_service_of_ones_own_lasts_as_long_as_the_command(noneq: Run, folder: Path) -> None:
    ask = ("sample", "--local", str(folder), "-m", "bit-patterns", "--steps", "2", "-o", "a.npy")
    assert noneq(*ask)[0] == 0
    assert np.load("a.npy").shape == (1, 4)


def test_without_models_there_is_no_service_of_ones_own(noneq: Run) -> None:
    status, _, err = noneq("models", "--local")
    assert status == 2
    assert "no models in models" in err
    assert noneq("models", "--local", "nowhere")[0] == 2


_PARENT = """
import subprocess, sys
child = subprocess.Popen(
    [sys.executable, "-m", "noneq.cli.local", "child_module"],
    stdin=subprocess.PIPE,
)
child.wait()
"""


@pytest.mark.parametrize(
    ("sig", "deaf"),
    [(signal.SIGTERM, False), (signal.SIGKILL, False), (signal.SIGKILL, True)],
)
def test_a_child_ends_with_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sig: signal.Signals, deaf: bool
) -> None:
    """However the parent ends, and even if the child ignores SIGTERM."""
    (tmp_path / "child_module.py").write_text(
        "import signal, time, os\n"
        f"signal.signal(signal.SIGTERM, signal.{'SIG_IGN' if deaf else 'SIG_DFL'})\n"
        "import noneq.cli.local\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}{os.pathsep}{tmp_path}")
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.send_signal(sig)
        assert parent.stdout.read() == ""  # ends when the child, which has it too, has ended
