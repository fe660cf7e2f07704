"""The command: every verb and exit status, files in and out, scores that are gone on with."""

import csv
import io
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client import Busy, DeadlineMissed, NoneqError, ServerFault, errors
from client.client import Client
from client.command import offline, scores
from client.command.main import STATUS, main
from client.command.reading import Block
from client.models import Model
from tests.client.scripted import CUT, response, scripted

Run = Callable[..., tuple[int, str, str]]
MIXTURE = ("-m", "gaussian-mixture")


@pytest.fixture
def noneq(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The command in a folder of its own: its exit status, stdout and stderr."""
    monkeypatch.setenv("NONEQ_URL", url)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            status = main(words)
        except SystemExit as ended:  # argparse's own
            status = int(ended.code or 0)
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


@pytest.fixture
def greys(tmp_path: Path) -> Path:
    """A folder of five pictures, one of which is of another size."""
    found = tmp_path / "greys"
    found.mkdir()
    for i in range(4):
        pixels = (np.arange(48, dtype=np.uint8) * (i + 1)).reshape(6, 8)
        Image.fromarray(pixels).save(found / f"{i}.png")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(found / "small.png")
    return found


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_models_are_listed_and_shown(noneq: Run) -> None:
    status, out, _ = noneq("models")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "bit-patterns", "gaussian-mixture", "grey"
    ]  # fmt: skip
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


def test_a_folder_is_scored(noneq: Run, greys: Path, url: str) -> None:
    status, out, err = noneq("loglik", str(greys), "-m", "grey", "--seed", "3")
    assert status == 1  # one of them is no datum of this model
    assert "small.png" in err
    assert "8 x 6" in err
    lines = table(out)
    assert [line["file"] for line in lines] == [str(greys / f"{i}.png") for i in range(4)]
    with Client(url) as client:  # a score is that of its datum, with the seed of its block
        values = np.asarray(Image.open(greys / "2.png"))[None, None]
        block = Block("", 0, values, np.ones_like(values))
        seed = scores.block_seed(3, block)
        found = client.loglik(values, model="grey", seed=seed)
    assert float(lines[2]["bound"]) == pytest.approx(found.bound[0], rel=1e-5)
    assert float(lines[2]["bits_per_dim"]) == pytest.approx(found.bits_per_dim[0], rel=1e-5)
    _, out, _ = noneq("loglik", str(greys / "1.png"), "-m", "grey", "--seed", "3", "--json")
    assert json.loads(out)["bound"] == pytest.approx(float(lines[1]["bound"]), rel=1e-5)


def test_an_interrupted_table_is_gone_on_with(noneq: Run, greys: Path) -> None:
    """What is there is kept, a torn line is done again; the whole is as if never interrupted."""
    (greys / "small.png").unlink()
    ask = ("loglik", str(greys), "-m", "grey", "-o")
    assert noneq(*ask, "whole.csv")[0] == 0
    whole = Path("whole.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    Path("torn.csv").write_bytes(b"".join(lines[:3]) + lines[3][:20])
    status, out, err = noneq(*ask, "torn.csv", "--json")
    assert status == 0
    told = json.loads(out)
    assert (told["scored"], told["before"], told["faults"]) == (2, 2, 0)
    assert "2 scores already" in err
    torn, found = table(Path("torn.csv").read_text()), table(whole.decode())
    assert [line["file"] for line in torn] == [line["file"] for line in found]
    assert np.allclose(*([float(x["bound"]) for x in rows] for rows in (torn, found)), rtol=1e-5)
    assert json.loads(noneq(*ask, "torn.csv", "--json")[1])["scored"] == 0
    status, _, err = noneq(*ask, "torn.csv", "--seed", "5")
    assert status == 2
    assert "with seed 0" in err
    Path("else.csv").write_text("a,b\n1,2\n")
    assert noneq(*ask, "else.csv")[0] == 2
    assert Path("else.csv").read_text() == "a,b\n1,2\n"


def test_tables_are_scored_by_rows(noneq: Run) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 2))
    np.save("rows.npy", rows)
    text = "\n".join(f"{a!r},{b!r}" for a, b in rows.tolist())
    Path("rows.csv").write_text(f"x,y\n{text}\n")
    ask = ("loglik", *MIXTURE, "--terms", "5")
    by_array, by_text = (noneq(*ask, name) for name in ("rows.npy", "rows.csv"))
    assert by_array[0] == by_text[0] == 0
    one, other = table(by_array[1]), table(by_text[1])
    assert [line["row"] for line in one] == [str(i) for i in range(300)]
    assert len({line["bound"] for line in one}) == 300
    assert np.allclose(*([float(x["bound"]) for x in rows] for rows in (one, other)), rtol=1e-6)
    with Path("scores.csv").open("w") as out:
        csv.writer(out, lineterminator="\n").writerows(
            [scores.COLUMNS, *(line.values() for line in one[:100])]
        )
    told = json.loads(noneq(*ask, "rows.npy", "-o", "scores.csv", "--json")[1])
    assert (told["before"], told["scored"]) == (100, 200)


def test_no_more_is_read_than_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many data there are, a bounded number of them is held."""
    read: list[int] = []
    written: list[int] = []

    def blocks(*_: object) -> Any:  # noqa: ANN401
        for i in range(100):
            read.append(i)
            assert len(read) - len(written) <= 2 * 3 + 1
            yield Block("a.npy", i, np.zeros((1, 2)), np.ones((1, 2)))

    def score(self: scores.Scoring, block: Block) -> list[scores.Score]:
        return [scores.Score("a.npy", block.start, "m", "density", self.seed, 0, 0, 0, 0)]

    monkeypatch.setattr(scores, "_blocks", blocks)
    monkeypatch.setattr(scores.Scoring, "score", score)
    model = Model("m", "vector", (2,), "gaussian", 10, "mlp", 1)
    with Client() as client:
        scoring = scores.Scoring(client, model, 0, {}, parallel=3)
        for found in scores.run(scoring, ["a.npy"], set()):
            assert not isinstance(found, scores.Fault)
            written.extend(one.row for one in found)
    assert written == list(range(100))


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


def test_noisy_data_are_denoised(noneq: Run) -> None:
    np.save("noisy.npy", np.array([[0.5, -1.0]]))
    ask = ("denoise", "noisy.npy", *MIXTURE, "-n", "4", "--noise-std", "0.5", "--seed", "2")
    status, out, _ = noneq(*ask, "--json")
    assert status == 0
    assert json.loads(out)["method"] == "matched"
    status, _, err = noneq("denoise", "noisy.npy", *MIXTURE)
    assert status == 2
    assert "noise_std" in err


@pytest.mark.parametrize(
    ("words", "told"),
    [
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
    monkeypatch.setattr("client.retries._FIRST", 0.0)
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
    with scripted([response("500 Internal Server Error", b"{}")]) as (url, _):
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

    monkeypatch.setattr(Client, "sample", interrupted)
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
    monkeypatch.setattr(offline, "find_spec", lambda _: None)
    status, _, err = noneq(*words)
    assert status == 7
    assert "pip install 'noneq[" in err


def test_a_service_of_ones_own_lasts_as_long_as_the_command(
    noneq: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NONEQ_BATCH_SIZE", "8")  # not found by trying, which takes a while
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    ask = ("sample", "--local", str(folder), "-m", "bit-patterns", "--steps", "2", "-o", "a.npy")
    assert noneq(*ask)[0] == 0
    assert np.load("a.npy").shape == (1, 4)
