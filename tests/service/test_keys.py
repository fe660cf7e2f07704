"""API keys: names, budgets in network evaluations, and a file that is read again."""

import logging
import random
from pathlib import Path

import httpx
import pytest

from diffusion.checkpoint import save
from service import keys as module
from service.errors import BudgetExceeded
from service.handlers.sample import SampleWork
from service.keys import Budget, Keys
from service.metrics import Metrics
from service.schemas.requests import SampleRequest
from service.settings import Settings
from tests.service.http.caller import assert_problem, connect, held, starting, until
from tests.service.http.conftest import gaussian_mixture

SECRET = "a-long-random-text"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module.time, "monotonic", found)
    return found


def test_a_budget_holds_a_minute_and_fills_within_one(clock: Clock) -> None:
    budget = Budget(600)
    budget.take(400)
    budget.take(200)
    with pytest.raises(BudgetExceeded) as refused:
        budget.take(100)
    assert refused.value.retry_after == 10
    clock.now += 9.9
    with pytest.raises(BudgetExceeded):
        budget.take(100)
    clock.now += 0.2
    budget.take(100)
    clock.now += 3600
    assert budget.left == 600


def test_one_that_costs_more_needs_a_full_bucket_and_leaves_a_debt(clock: Clock) -> None:
    budget = Budget(600)
    budget.take(1800)
    assert budget.left == -1200
    with pytest.raises(BudgetExceeded) as refused:
        budget.take(60)
    assert refused.value.retry_after == 126
    clock.now += 126
    budget.take(60)


@pytest.mark.parametrize("seed", range(5))
def test_whoever_waits_as_told_is_accepted_and_gets_no_more_than_the_rate(
    clock: Clock, seed: int
) -> None:
    dice, budget, taken, begun = random.Random(seed), Budget(1000), 0, 1000.0
    for _ in range(300):
        cost = dice.choice((1, 50, 700, 1000, 4000))
        try:
            budget.take(cost)
        except BudgetExceeded as refused:
            clock.now += refused.retry_after
            budget.take(cost)  # by then there is enough
        taken += cost
        clock.now += dice.random()
    minutes = (clock.now - begun) / 60
    assert taken <= 1000 * minutes + 1000 + 4000
    assert taken >= 0.8 * 1000 * minutes


@pytest.mark.usefixtures("clock")
def test_what_was_not_made_is_given_back_and_a_change_of_rate_keeps_what_was_spent() -> None:
    budget = Budget(600)
    budget.take(500)
    budget.give_back(200)
    assert budget.left == 300
    budget.resize(900)
    assert budget.left == 600
    budget.give_back(10_000)
    assert budget.left == 900


def written(path: Path, text: str) -> Keys:
    path.write_text(text)
    return Keys(Settings(api_key_file=path, api_keys="plain", admin_keys="boss"), Metrics())


def test_holders_have_names(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keys = written(path, f'[alice]\nkey = "{SECRET}"\nbudget = 600\n[ops]\nkey = "o"\nadmin=true\n')
    found = [keys.find(key) for key in (SECRET, "o", "plain", "boss")]
    assert [holder.name for holder in found if holder] == ["alice", "ops", "key-1", "admin-1"]
    assert [holder.admin for holder in found if holder] == [False, True, False, True]
    assert found[0] is not None
    assert found[0].budget is not None
    assert keys.find("other") is None
    assert keys.has_admin
    assert keys.required


def test_the_file_is_read_again_and_one_that_is_wrong_changes_nothing(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    keys = written(path, f'[alice]\nkey = "{SECRET}"\nbudget = 600\n')
    before = keys.find(SECRET)
    assert before is not None
    assert before.budget is not None
    before.budget.take(500)
    path.write_text(f'[alice]\nkey = "{SECRET}"\nbudget = 1200\n[bob]\nkey = "b"\n')
    assert keys.find("b") is None  # not looked yet
    clock.now += 1.1
    assert keys.find("b") is not None
    after = keys.find(SECRET)
    assert after is not None
    assert after.budget is before.budget  # what was spent stays spent
    assert before.budget.per_minute == 1200
    for wrong in (f'[alice]\nkey = "{SECRET}', f'[alice]\nkey = "{SECRET}"\nbudget = "x"\n', ""):
        path.write_text(wrong) if wrong else path.unlink()
        clock.now += 1.1
        with caplog.at_level(logging.ERROR):
            assert keys.find("b") is not None
        assert "stay as they were" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f'alice = "{SECRET}"\n', "alice"),
        (f'[alice]\nkey = "{SECRET}"\nbugdet = 3\n', "alice.bugdet"),
        (f'[alice]\nkey = "{SECRET}"\nbudget = -3\n', "alice.budget"),
        (f'[alice]\nkey = "{SECRET}"\n[bob]\nkey = "{SECRET}"\n', "bob has the same key as alice"),
        ('[alice]\nkey = "plain"\n', "alice has the same key as key-1"),
        (f'[alice]\nkey = {SECRET}"\n', "not TOML"),
        ('[alice]\nkey = ""\n', "alice.key"),
    ],
)
def test_a_file_that_is_wrong_is_told_without_its_keys(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as found:
        written(tmp_path / "keys.toml", text)
    assert SECRET not in str(found.value)
    assert "NONEQ_API_KEY_FILE" in str(found.value) or "same key" in why


def test_no_key_is_shown(tmp_path: Path) -> None:
    keys = written(tmp_path / "keys.toml", f'[alice]\nkey = "{SECRET}"\n')
    assert SECRET not in repr(vars(keys))


@pytest.mark.anyio
async def test_a_budget_over_http(tmp_path: Path) -> None:
    """It is charged at admission, refused with Retry-After, and given back for what was left."""
    save(tmp_path / "m" / "model.safetensors", *gaussian_mixture())
    path = tmp_path / "keys.toml"
    path.write_text('[alice]\nkey = "a"\nbudget = 100\n[bob]\nkey = "b"\n')
    settings = Settings(models=tmp_path, device="cpu", batch_size=8, api_key_file=path)
    asked = {"num_samples": 6, "sampler": {"steps": 10}}
    async with starting(settings) as app, connect(app) as client:

        async def ask(key: str) -> httpx.Response:
            return await client.post("/sample", json=asked, headers={"x-api-key": key})

        assert_problem(await client.post("/sample", json=asked), 401, "unauthorized")
        first = await ask("a")
        assert first.status_code == 200, first.text
        second = await ask("a")
        problem = assert_problem(second, 429, "budget-exceeded")
        assert second.headers["retry-after"] == str(problem["retry_after"])
        assert 1 <= problem["retry_after"] <= 12
        assert problem["received"] == 60
        assert (await ask("b")).status_code == 200
        # A request that the engine refuses costs nothing; nor what a cancelled one did not do.
        holder = app.state.keys.find("a")
        holder.budget.give_back(60)
        with held(app, "m"):
            request = SampleRequest.model_validate(asked)
            job = SampleWork.prepare(request, app.state.backend).job
            waiting = app.state.backend.submit(job, None, holder)
            assert holder.budget.left < 41
            waiting.cancel()
            await until(lambda: holder.budget.left > 99)
        metrics = (await client.get("/metrics", headers={"x-api-key": "b"})).text
    assert 'noneq_key_requests_total{key="alice",outcome="budget-exceeded"} 1.0' in metrics
    assert 'noneq_key_requests_total{key="alice",outcome="ok"} 1.0' in metrics
    assert 'noneq_key_evaluations_total{key="alice"} 60.0' in metrics
    assert 'noneq_key_evaluations_total{key="bob"} 60.0' in metrics
    assert 'noneq_key_budget{key="alice"} 100.0' in metrics
    assert 'noneq_refused_total{cause="budget-exceeded"} 1.0' in metrics
