"""What a request multiplies p(x_0) by beside what was seen: a label, another served model.

    p~(x_0) = p(x_0) r(x_0) p(y | x_0) p_2(x_0) / Z

Which classifier reads the labels follows from the model, where only one fits it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.posterior.factors import Expert, Factor, Label
from service.catalogue import Catalogue, Reader, Served
from service.codecs.arrays import refusal
from service.errors import InvalidRequest
from service.schemas.conditions import AskedBeside

_TOGETHER = 256  # samples that are read at once


@dataclass(frozen=True)
class Beside:
    """The other factors of N posteriors.

    Attributes:
        factors: the library's, of N posteriors.
        labels: what each was asked to be, N names; None where no label was.
        reader: reads the samples; None where that was not asked.
        gained: what an evidence gains in data units by them, nats.
    """

    factors: tuple[Factor, ...] = ()
    labels: tuple[str, ...] | None = None
    reader: Reader | None = None
    gained: float = 0.0

    @torch.no_grad()
    def read(self, x_0: Tensor, weights: Tensor) -> list[dict[str, float]] | None:
        """Mean of p(label | x_0) over the samples of each of N data.

        Args:
            x_0: [N, n, *event], model units.
            weights: what each counts, float64 [N, n].
        """
        if self.reader is None:
            return None
        t = torch.zeros(1, dtype=torch.int64)
        parts = x_0.flatten(0, 1).split(_TOGETHER)
        p = torch.cat([self.reader.host.log_prob(part, t).exp() for part in parts])
        means = (weights[:, None] @ p.unflatten(0, x_0.shape[:2]))[:, 0]
        return [dict(zip(self.reader.labels, row, strict=True)) for row in means.tolist()]


def find_beside(asked: AskedBeside, count: int, served: Served, catalogue: Catalogue) -> Beside:
    """The factors of `count` posteriors; InvalidRequest where there are none such."""
    factors: list[Factor] = []
    reader, labels, gained = _reader(asked, served, catalogue), None, 0.0
    if reader is not None and asked.label is not None:
        y = _labels(asked.label, reader, count)
        labels = tuple(reader.labels[i] for i in y)
        factors.append(Label(reader.classifier, torch.tensor(y)))
    if asked.expert is not None:
        factors.append(_expert(asked.expert, served, catalogue))
        gained = served.model.space.log_jacobian()  # p_2 is a density too, but of bits
    return Beside(tuple(factors), labels, reader if asked.label_probabilities else None, gained)


def _reader(asked: AskedBeside, served: Served, catalogue: Catalogue) -> Reader | None:
    """The classifier that was named, or the only one that fits; None where none is needed."""
    if asked.label is None and not asked.label_probabilities:
        if asked.classifier is not None:
            raise InvalidRequest(
                "classifier says who reads labels, and the request asks for none.",
                location="classifier",
                fix="Send a label, or label_probabilities: true; or leave out classifier.",
            )
        return None
    fitting = {reader.name: reader for reader in served.readers}
    if asked.classifier is None and len(fitting) == 1:
        return served.readers[0]
    if asked.classifier in fitting:
        return fitting[asked.classifier]
    known = catalogue.classifiers.get(asked.classifier or "")
    if known is not None:
        try:
            known.classifier.check(served.model.process, served.model.space)
        except ValueError as error:
            raise refusal(error, "classifier", asked.classifier) from None
    if not fitting:
        place = "label_probabilities" if asked.label is None else "label"
        place = place if asked.classifier is None else "classifier"
        others = ", ".join(catalogue.classifiers) or "none"
        raise InvalidRequest(
            f"No classifier reads what {served.name} draws, so it has no labels.",
            location=place,
            received=asked.classifier,
            expected="a model whose `classifiers`, by GET /models, are not empty",
            fix="Name such a model, or leave out label and label_probabilities; "
            f"classifiers served: {others}.",
        )
    raise InvalidRequest(
        "Several classifiers read what this model draws."
        if asked.classifier is None
        else "There is no classifier of that name.",
        location="classifier",
        received=asked.classifier,
        expected=list(fitting),
        fix="Name one of them in classifier.",
    )


def _labels(label: str | int | list[str | int], reader: Reader, count: int) -> list[int]:
    """The place of each example's label among the classifier's."""
    each = label if isinstance(label, list) else [label] * count
    if len(each) != count:
        raise InvalidRequest(
            f"There are {len(each)} labels for {count} data.",
            location="label",
            fix="Send one for all, or one each.",
        )
    names, found = list(reader.labels), []
    for place, one in enumerate(each):
        index = names.index(one) if one in names else one
        if not isinstance(index, int) or not 0 <= index < len(names):
            raise InvalidRequest(
                f"{reader.name} knows no such label.",
                location="label",
                index=place,
                received=one if isinstance(one, int) else one[:100],
                expected=names,
                fix=f"Send one of these names, or its place, 0 to {len(names) - 1}.",
            )
        found.append(index)
    return found


def _expert(name: str, served: Served, catalogue: Catalogue) -> Expert:
    """The other model, if it is one of the same data and process."""
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
