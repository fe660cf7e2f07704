"""Two devices behind one door: the answers are those of one."""

from pathlib import Path

import pytest

from service.settings import Settings
from tests.service.http.caller import MIXTURE, SHORT, ask, connect, starting

QUESTIONS = {
    "/sample": {**MIXTURE, **SHORT, "num_samples": 600},
    "/loglik": {**MIXTURE, "data": [[0.1 * i, -0.3] for i in range(300)], "terms": 20},
    "/posterior": {
        **MIXTURE,
        "num_samples": 40,
        "operator": {"kind": "dense", "rows": [[1, 0.5]]},
        "observed": [[0.3]],
        "noise_std": 0.1,
        "method": {"name": "twisted", "particles": 8},
    },
}


@pytest.mark.anyio
async def test_the_answers_are_those_of_one_device(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.router.MIN_SECONDS", 1e-9)
    answers = []
    for device in ("cpu", "cpu,cpu"):
        settings = Settings(models=folder, device=device, batch_size=8, deterministic=True)
        async with starting(settings) as app, connect(app) as client:
            answers.append([await ask(client, path, **asked) for path, asked in QUESTIONS.items()])
            metrics = (await client.get("/metrics")).text
            accepted = app.state.backend.engine.accepted
    assert accepted == 2 * len(QUESTIONS)  # each was split
    assert "noneq_queue_cost 0.0" in metrics
    assert "noneq_owed_seconds 0.0" in metrics
    one, two = answers
    if all(answer["exact"] for answer in one + two):
        assert one == two
    else:
        assert [set(answer) for answer in one] == [set(answer) for answer in two]
