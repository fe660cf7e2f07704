"""Reads the other factors of a /posterior request: a label's classifier, another served model.

p~(x_0) = p(x_0) r(x_0) p(y | x_0) p_2(x_0) / Z
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.posterior.factors import Expert, Factor, Label
from service.catalogue import Catalogue, Served, ServedClassifier
from service.errors import InvalidRequest, refusal
from service.schemas.conditions import PosteriorRequest

_BATCH = 256  # samples classified at once


@dataclass(frozen=True)
class OtherFactors:
    """The factors that multiply p(x_0) r(x_0) in N posteriors.

    Attributes:
        factors: the library's factors for N posteriors.
        labels: the N labels' names; None without labels.
        classifier: the classifier for the samples; None if label probabilities were not requested.
        gained: the change of log Z when p_2 is a density in data units, nats.
    """

    factors: tuple[Factor, ...] = ()
    labels: tuple[str, ...] | None = None
    classifier: ServedClassifier | None = None
    gained: float = 0.0

    @torch.no_grad()
    def label_probabilities(self, x_0: Tensor, weights: Tensor) -> list[dict[str, float]] | None:
        """Average p(label | x_0) over the samples of each of N posteriors.

        Args:
            x_0: [N, n, *event], model units.
            weights: the samples' weights, float64 [N, n].
        """
        if self.classifier is None:
            return None
        t = torch.zeros(1, dtype=torch.int64)
        parts = x_0.flatten(0, 1).split(_BATCH)
        p = torch.cat([self.classifier.host.log_prob(part, t).exp() for part in parts])
        means = (weights[:, None] @ p.unflatten(0, x_0.shape[:2]))[:, 0]
        return [dict(zip(self.classifier.labels, row, strict=True)) for row in means.tolist()]


def read_factors(request: PosteriorRequest, served: Served, catalogue: Catalogue) -> OtherFactors:
    """Read the request's other factors.

    Raises:
        InvalidRequest: a classifier, label or model that does not exist or does not fit.
    """
    factors: list[Factor] = []
    classifier, labels, gained = _classifier(request, served, catalogue), None, 0.0
    if classifier is not None and request.label is not None:
        y = _labels(request.label, classifier, request.count)
        labels = tuple(classifier.labels[i] for i in y)
        factors.append(Label(classifier.classifier, torch.tensor(y)))
    if request.expert is not None:
        if served.model.space.limits is not None:
            raise InvalidRequest(
                "A product of models whose elements have limits has no known evidence.",
                location="expert",
                fix="Leave out expert.",
            )
        factors.append(_expert(request.expert, served, catalogue))
        gained = served.model.space.log_jacobian()  # p_2 is a density too, except for bits
    asked = classifier if request.label_probabilities else None
    return OtherFactors(tuple(factors), labels, asked, gained)


def _classifier(
    request: PosteriorRequest, served: Served, catalogue: Catalogue
) -> ServedClassifier | None:
    """Find the classifier that the request names, or the only one that fits; None if unused."""
    name = request.classifier
    if request.label is None and not request.label_probabilities:
        if name is not None:
            raise InvalidRequest(
                "classifier is given, but the request asks for no labels.",
                location="classifier",
                fix="Send a label, or label_probabilities: true; or leave out classifier.",
            )
        return None
    fitting = {classifier.name: classifier for classifier in served.classifiers}
    if name is None and len(fitting) == 1:
        return served.classifiers[0]
    if name in fitting:
        return fitting[name]
    known = catalogue.classifiers.get(name or "")
    if known is not None:
        try:
            known.classifier.check(served.model.process, served.model.space)
        except ValueError as error:
            raise refusal(error, "classifier", name) from None
    if not fitting:
        place = "label_probabilities" if request.label is None else "label"
        others = ", ".join(catalogue.classifiers) or "none"
        raise InvalidRequest(
            f"No classifier fits {served.name}, so it has no labels.",
            location=place if name is None else "classifier",
            received=name,
            expected="a model whose `classifiers` in GET /models are not empty",
            fix="Name such a model, or leave out label and label_probabilities; "
            f"classifiers served: {others}.",
        )
    raise InvalidRequest(
        "Several classifiers fit this model."
        if name is None
        else "There is no classifier of that name.",
        location="classifier",
        received=name,
        expected=list(fitting),
        fix="Name one of them in classifier.",
    )


def _labels(
    label: str | int | list[str | int], classifier: ServedClassifier, count: int
) -> list[int]:
    """Find the position of each posterior's label among the classifier's labels."""
    each = label if isinstance(label, list) else [label] * count
    if len(each) != count:
        raise InvalidRequest(
            f"There are {len(each)} labels for {count} observations.",
            location="label",
            fix="Send one for all, or one each.",
        )
    names, found = list(classifier.labels), []
    for place, one in enumerate(each):
        index = names.index(one) if one in names else one
        if not isinstance(index, int) or not 0 <= index < len(names):
            raise InvalidRequest(
                f"{classifier.name} has no such label.",
                location="label",
                index=place,
                received=one if isinstance(one, int) else one[:100],
                expected=names,
                fix=f"Send one of these names, or its position, 0 to {len(names) - 1}.",
            )
        found.append(index)
    return found


def _expert(name: str, served: Served, catalogue: Catalogue) -> Expert:
    """Find the other model, and check that it has the same data and process."""
    other = catalogue.served.get(name)
    if other is None:
        raise InvalidRequest(
            "No model of that name is served.",
            location="expert",
            received=name[:200],
            expected=list(catalogue.served),
            fix="GET /models lists the models.",
        )
    expert = Expert(other.model)
    try:
        expert.check(served.model, 1)
    except ValueError as error:
        raise refusal(error, "expert", name) from None
    return expert
