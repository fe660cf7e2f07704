"""What is sent keeps what tells values apart, in as few bytes as do."""

import numpy as np
import pytest

from noneq.codec import packed


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([[0, 255], [3, 4]], np.uint8),
        ([[0.1, 0.2], [0.3, 0.5]], np.float32),
        ([[-1, 2], [3, 4]], np.float32),
        ([[1e4 + 1e-3, 0.5], [1e4 + 2e-3, 0.7]], np.float64),
        ([[1e4 + 1e-3, 0.5]], np.float64),
        ([[1e300, 0.5], [1e299, 0.5]], np.float32),  # becomes infinite, which the service refuses
    ],
)
def test_float64_is_sent_where_float32_would_round_the_spread(
    values: list[list[float]], dtype: type
) -> None:
    found = packed(values)
    assert found.dtype == dtype
    if dtype == np.float64:
        assert (found == np.asarray(values)).all()
