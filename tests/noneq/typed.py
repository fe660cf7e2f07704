"""What an editor shows of the client; `make check` holds mypy to it, nothing runs it."""

from typing import assert_type

from noneq import (
    AsyncClient,
    Client,
    Imputed,
    Job,
    JobStatus,
    Likelihoods,
    Model,
    ModelFacts,
    Models,
    Posterior,
    Preview,
    Progress,
    Samples,
    Scores,
    requests,
)
from noneq.codec import Array


def answers(client: Client) -> None:
    samples = client.sample(16, model="mnist", steps=100)
    assert_type(samples, Samples)
    assert_type(samples[0], Array)
    assert_type(list(samples), list[Array])
    assert_type(client.loglik(samples, terms=20), Likelihoods)
    assert_type(client.inpaint(samples[0], [1, 0], num_samples=4), Posterior)
    assert_type(client.posterior(label="3"), Posterior)
    assert_type(client.denoise(samples, noise_std=8), Posterior)
    assert_type(client.models(), Models)
    assert_type(client.models()["mnist"], Model)
    assert_type(client.model("mnist"), ModelFacts)
    assert_type(client.examples("mnist"), Array)
    assert_type(client.impute("gaps.csv", draws=5, seed=7), Imputed)
    assert_type(client.score([{"mass": 4000}], terms=20), Scores)
    assert_type(client.generate(5, model="penguins").samples, Array)
    job = client.submit(requests.sample(4))
    assert_type(job, Job[Samples])
    assert_type(job.wait(progress=True), JobStatus)
    assert_type(job.result(), Samples)
    assert_type(client.jobs(state="done"), list[JobStatus])
    for event in client.stream(requests.sample(4)):
        assert_type(event, Progress | Preview | Samples)
    client.sample(4, modle="mnist")  # type: ignore[call-arg]  # an option that is misspelt


async def awaited(client: AsyncClient) -> None:
    assert_type(await client.sample(4), Samples)
    assert_type((await client.loglik([[0.5, 1.0]], terms=20)).bound, Array)
