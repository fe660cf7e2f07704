"""Counter-based noise: the published answers, purity, and the distributions it claims."""

import random

import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from diffusion.noise import MAX_SEED, CounterNoise, Stream, counter_noise, philox

MASK = 0xFFFFFFFF
ROWS = torch.arange(6)

#: Random123's own known answers for philox4x32-10: counter, key, output.
KNOWN_ANSWERS = [
    (
        (0x00000000, 0x00000000, 0x00000000, 0x00000000),
        (0x00000000, 0x00000000),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_of_integers(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's unbounded integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) ^ b ^ k, q & MASK, (p >> 32) ^ d ^ m, p & MASK
        k, m = (k + 0x9E3779B9) & MASK, (m + 0xBB67AE85) & MASK
    return [a, b, c, d]


def many(normal: bool) -> Tensor:
    """200,000 draws over rows, steps and elements, float64."""
    noise = counter_noise(11, torch.arange(2000), torch.arange(2000) % 7)
    return (noise.normal((100,)) if normal else noise.uniform((100,))).double().flatten()


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(
    counter: tuple[int, ...], key: tuple[int, ...], output: tuple[int, ...]
) -> None:
    assert philox(torch.tensor(counter), torch.tensor(key)).tolist() == list(output)


def test_philox_is_right_wherever_its_products_wrap() -> None:
    draw = random.Random(0)
    counters = [[draw.getrandbits(32) for _ in range(4)] for _ in range(200)]
    keys = [[draw.getrandbits(32) for _ in range(2)] for _ in range(200)]
    wanted = [philox_of_integers(c, k) for c, k in zip(counters, keys, strict=True)]
    assert philox(torch.tensor(counters), torch.tensor(keys)).tolist() == wanted


def test_the_counter_is_block_step_row_stream_and_the_key_is_the_seed() -> None:
    """The layout is part of the promise: the same seed gives the same answer in a year's time."""
    seed, row, step = (0x1234567 << 32) + 0x89ABCDEF, 5, 9
    noise = counter_noise(seed, torch.tensor([row]), step, Stream.OBSERVATION)
    words = [w for block in range(2) for w in philox_of_integers([block, step, row, 2], _key(seed))]
    wanted = torch.tensor([(word // 512 + 0.5) / 2**23 for word in words[:7]])
    assert torch.equal(noise.uniform((7,))[0], wanted)


def _key(seed: int) -> list[int]:
    return [seed & MASK, seed >> 32]


@pytest.mark.parametrize("event", [(), (1,), (5,), (2, 3, 3)])
def test_a_row_alone_is_the_row_in_a_batch(event: tuple[int, ...]) -> None:
    seeds, steps = ROWS * 10**12, ROWS.flip(0)
    whole = CounterNoise(seeds, ROWS, steps)
    for i in range(len(ROWS)):
        alone = CounterNoise(seeds[i : i + 1], ROWS[i : i + 1], steps[i : i + 1])
        assert torch.equal(alone.normal(event)[0], whole.normal(event)[i])
        assert torch.equal(alone.uniform(event)[0], whole.uniform(event)[i])


def test_noise_is_a_function_and_touches_no_generator() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = counter_noise(3, ROWS, 2).normal((4,))
    torch.manual_seed(2)
    assert torch.equal(counter_noise(3, ROWS, 2).normal((4,)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("longer", [(6,), (7,), (2, 2, 2), (100,)])
def test_an_element_does_not_depend_on_how_many_there_are(longer: tuple[int, ...]) -> None:
    noise = counter_noise(3, ROWS, 2)
    assert torch.equal(noise.normal(longer).flatten(1)[:, :5], noise.normal((5,)))
    assert torch.equal(noise.uniform(longer).flatten(1)[:, :5], noise.uniform((5,)))


def test_seeds_rows_steps_and_streams_are_all_independent() -> None:
    """20,000 numbers each: no correlation beyond 5 standard errors between any two."""
    row = torch.tensor([4])
    noises = [
        counter_noise(1, row, 7),
        counter_noise(2, row, 7),
        counter_noise(1 + 2**32, row, 7),  # the seed's high word counts too
        counter_noise(MAX_SEED, row, 7),
        counter_noise(1, row + 1, 7),
        counter_noise(1, torch.tensor([7]), 4),  # row and step are not interchangeable
        counter_noise(1, row, 8),
        *(counter_noise(1, row, 7, stream) for stream in Stream if stream != Stream.CHAIN),
    ]
    draws = torch.stack([noise.normal((20_000,))[0] for noise in noises]).double()
    off = draws.corrcoef() - torch.eye(len(noises), dtype=torch.float64)
    assert off.abs().max() < 5 / 20_000**0.5


def test_one_step_for_all_is_a_step_for_each() -> None:
    each = counter_noise(3, ROWS, torch.full_like(ROWS, 9)).normal((3,))
    assert torch.equal(counter_noise(3, ROWS, 9).normal((3,)), each)


def test_normal_is_normal() -> None:
    """Moments within 5 standard errors; Kolmogorov and Smirnov see nothing."""
    x = many(normal=True)
    n = len(x)
    for power, wanted, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(x.pow(power).mean()) - wanted) < 5 * (variance / n) ** 0.5
    assert stats.kstest(x.numpy(), "norm").pvalue > 1e-3


def test_elements_of_a_row_are_independent() -> None:
    """Box and Muller's pairs share a radius: neither values nor squares may be correlated."""
    x = counter_noise(5, torch.arange(20_000), 0).normal((8,)).double()
    for y in (x, x.square(), x.abs()):
        off = y.T.corrcoef() - torch.eye(8, dtype=torch.float64)
        assert off.abs().max() < 5 / 20_000**0.5


def test_uniform_is_uniform() -> None:
    x = many(normal=False)
    assert stats.kstest(x.numpy(), "uniform").pvalue > 1e-3
    assert 0 < x.min() < 1e-4
    assert 1 > x.max() > 1 - 1e-4


@pytest.mark.parametrize("word", [0, 1, MASK - 1, MASK])
def test_no_word_leaves_the_open_interval(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def constant(counter: Tensor, _: Tensor) -> Tensor:
        return torch.full_like(counter, word)

    monkeypatch.setattr("diffusion.noise.philox", constant)
    noise = counter_noise(0, ROWS, 0)
    assert bool(((noise.uniform((3,)) > 0) & (noise.uniform((3,)) < 1)).all())
    assert bool((noise.normal((3,)).abs() < 7).all())


@pytest.mark.gpu
def test_the_device_does_not_matter() -> None:
    here, there = (counter_noise(3, ROWS.to(device), 2) for device in ("cpu", "cuda"))
    assert torch.equal(here.uniform((50,)), there.uniform((50,)).cpu())
    torch.testing.assert_close(there.normal((50,)).cpu(), here.normal((50,)), rtol=1e-5, atol=1e-5)
