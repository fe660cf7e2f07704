"""The classifier two-sample test, by the protocol of `sbibm`.

    C2ST = held-out accuracy of a classifier that tells draws of two distributions apart

One half if they are equal, 1 if no draw could be of both. The protocol (`sbibm.metrics.c2st`,
version 1.1.0): as many draws of each, standardised by the mean and deviation of the first; an
`MLPClassifier` of scikit-learn with two hidden layers of 10 D rectified units, Adam and at most
10,000 epochs; five folds, shuffled, seed 1; float32.
"""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

Rows = NDArray[np.floating]


def c2st(exact: Rows, drawn: Rows, seed: int = 1) -> float:
    """Test draws [n, D] against exact ones [n, D].

    Raises:
        ValueError: the numbers of draws or of their elements differ.
    """
    if exact.shape != drawn.shape:
        raise ValueError(
            f"the test takes as many draws of each, came {exact.shape} and {drawn.shape}"
        )
    one, other = np.float32(exact), np.float32(drawn)
    mean, deviation = one.mean(0), one.std(0, ddof=1)
    both = np.concatenate([(one - mean) / deviation, (other - mean) / deviation])
    which = np.repeat([0.0, 1.0], len(exact))
    width = 10 * exact.shape[1]
    classifier = MLPClassifier(
        hidden_layer_sizes=(width, width),
        activation="relu",
        solver="adam",
        max_iter=10_000,
        random_state=seed,
    )
    folds = KFold(n_splits=5, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        scores = cross_val_score(classifier, both, which, cv=folds, scoring="accuracy")
    return float(np.mean(scores))
