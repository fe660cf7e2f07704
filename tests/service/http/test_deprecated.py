"""Old spellings of a request's fields: answered as the new ones, with a note."""

from typing import Any

import httpx
import pytest

from service.schemas.conditions import DEPRECATED_SINCE
from tests.service.http.caller import MIXTURE, assert_problem

pytestmark = pytest.mark.anyio
SHORT = {"sampler": {"steps": 4}}
SEEN = {"observed": [[0.3, 0.1]], "known": [1, 0], **SHORT}
REPAINT = {"name": "repaint", "jump": 2, "repeats": 3}
FEW = {"name": "twisted", "particles": 2}
DIAGONAL = {"name": "twisted", "covariance": "diagonal", "particles": 2}

SPELLINGS: list[tuple[str, dict[str, Any], dict[str, Any], int]] = [
    ("/posterior", {"method": "resample"}, {"method": "repaint"}, 1),
    ("/inpaint", {"method": {"name": "resample", "jump": 2, "times": 3}}, {"method": REPAINT}, 2),
    ("/inpaint", {"particles": 2}, {"method": {"name": "auto", "particles": 2}}, 1),
    ("/posterior", {"method": "twisted", "particles": 2}, {"method": FEW}, 1),
    ("/posterior", {"method": FEW, "particles": 2}, {"method": FEW}, 1),
    ("/posterior", {"method": FEW, "particles": None}, {"method": FEW}, 1),
    ("/inpaint", {"method": "product", "particles": 1}, {"method": "product"}, 1),
    (
        "/posterior",
        {"times": "gaussian-mixture", "method": DIAGONAL},
        {"expert": "gaussian-mixture", "method": DIAGONAL},
        1,
    ),
    ("/posterior", {"read": False}, {"label_probabilities": False}, 1),
]


@pytest.mark.parametrize(("path", "old", "new", "count"), SPELLINGS)
async def test_the_old_spelling_is_answered_as_the_new_one(
    client: httpx.AsyncClient, path: str, old: dict[str, Any], new: dict[str, Any], count: int
) -> None:
    before = await client.post(path, json=MIXTURE | SEEN | old)
    after = await client.post(path, json=MIXTURE | SEEN | new)
    assert (before.status_code, after.status_code) == (200, 200), before.text + after.text
    assert before.headers["deprecation"] == DEPRECATED_SINCE
    assert "deprecation" not in after.headers
    found, expected = before.json(), after.json()
    notes = found.pop("deprecation")
    assert len(notes) == count
    assert all("now" in note for note in notes)
    assert expected.pop("deprecation") is None
    assert found == expected


async def test_a_stream_says_it_too(client: httpx.AsyncClient) -> None:
    asked = MIXTURE | SEEN | {"method": "resample"}
    response = await client.post("/posterior", json=asked, headers={"accept": "text/event-stream"})
    assert response.headers["deprecation"] == DEPRECATED_SINCE
    assert "`resample` is now `repaint`" in response.text


@pytest.mark.parametrize(
    ("asked", "location"),
    [
        ({"times": "gaussian-mixture", "expert": "gaussian-mixture"}, "times"),
        ({"read": True, "label_probabilities": True}, "read"),
        ({"method": {"name": "resample", "times": 2, "repeats": 2}}, "method"),
        ({"method": FEW, "particles": 3}, "method"),
        ({"method": "product", "particles": 3}, "method"),
        ({"method": "resample", "particles": 3}, "method"),
        ({"particles": 0}, "method.auto.particles"),
        ({"particles": "many"}, "method.auto.particles"),
        ({"method": "nothing", "particles": 2}, "method"),
        ({"method": 5, "particles": 2}, "method"),
        ({"method": {"particles": 2}, "particles": 2}, "method"),
        ({"method": {"name": ["resample"]}, "particles": 2}, "method"),
    ],
)
async def test_what_an_old_spelling_cannot_mean_is_refused(
    client: httpx.AsyncClient, asked: dict[str, Any], location: str
) -> None:
    response = await client.post("/posterior", json=MIXTURE | SEEN | asked)
    document = assert_problem(response, 422, "invalid-request")
    assert document["location"].startswith(location)


async def test_other_routes_know_no_old_names(client: httpx.AsyncClient) -> None:
    response = await client.post("/sample", json=MIXTURE | SHORT | {"times": "gaussian-mixture"})
    assert_problem(response, 422, "invalid-request")
    response = await client.post("/inpaint", json=MIXTURE | SEEN | {"read": True})
    document = assert_problem(response, 422, "invalid-request")
    assert document["location"] == "read"
