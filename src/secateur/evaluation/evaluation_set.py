"""Networks judged on images that they were not fitted to: one at a time, or many on one set."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secateur.core.outputs import Judge, judge_of
from secateur.data.batches import class_numbers, in_words
from secateur.data.preprocess import Transform
from secateur.data.sources import Data, open_images
from secateur.data.streams import ImageStream
from secateur.errors import DataError, ModelError, SecateurWarning
from secateur.evaluation.inference import answer
from secateur.evaluation.metric import DenseMetric, check_metric, measured
from secateur.evaluation.metrics import check_labels, compare, one_answer
from secateur.evaluation.results import Evaluation
from secateur.frontends import asked_or_own, open_to_run
from secateur.support.group import Group
from secateur.support.settings import at_least, check_arguments
from secateur.support.wording import counted


def evaluate(
    model: nn.Module | str | Path | Any,
    data: Data,
    labels: Int[Tensor, "batch ..."] | Any = None,
    *,
    reference: nn.Module | str | Path | Any = None,
    batch_size: int | None = None,
    preprocess: Transform | None = None,
    output: str | int | None = None,
    judge: Judge | None = None,
    mask: str | None = None,
    metric: Callable[[Any], float] | None = None,
) -> Evaluation:
    """Evaluates a network, alone or against a reference (usually the dense network).

    What it is judged by depends on its output: class scores, scores per token, embeddings, or other
    values, which are compared with the reference's.

    Example:
        >>> import secateur
        >>> from secateur import example
        >>> images, labels = example.test()
        >>> net = example.trained()
        >>> found = secateur.evaluate(net, images, labels, reference=net)
        >>> found.top1 > 90, found.agreement
        (True, 100.0)

    Args:
        model: a module, run in eval mode (its mode is restored), an ONNX model (a path or an
            `onnx.ModelProto`), run by ONNX Runtime, or the path of an OpenVINO file (.xml), run
            by OpenVINO.
        data: images from any source as for `prune` (`secateur.Data`), with labels if it has them.
            They are read batch by batch and need not fit into memory.
        labels: class numbers; None = those of the source. Without any, a reference is needed. For
            scores per token (samples, positions), a number for each score's position (of a language
            model that is the next token), negative where there is none.
        reference: the network to compare with.
        batch_size: images per forward pass; None = as many as a CPU runs fastest, 8 of 224 pixels
            and more of smaller ones, at most 100. A GPU runs more of them faster.
        preprocess: from images to inputs, see `Preprocess`; for folders and uint8 data. None =
            what a network from a hub prescribes; no preprocessing for any other network.
        output, judge, mask: as for `prune`.
        metric: your own function of the network, as for `prune`; told beside everything else.

    Raises:
        OptionError: there is no such output, or it has another shape than what it is to be judged
            by, or the metric gives no finite number.
        DataError: there are neither labels nor a reference, the numbers of labels and images
            differ, or a label is not the number of a class.
        ModelError: labels are given and the model does not return scores (batch, classes), or its
            output has another shape than the reference's.
        MissingExtraError: the runtime of the model is not installed.
    """
    check_arguments(evaluate, locals(), batch_size=at_least(1), output=at_least(0))
    check_metric(metric)
    numbers = None if labels is None else label_numbers(labels)
    if numbers is not None and isinstance(data, Tensor | np.ndarray):
        _check_count(numbers, len(data))
    models = [open_to_run(of) for of in (model, *[reference] * (reference is not None))]
    how = asked_or_own(preprocess, *models)
    takes = models[0].signature.masking(mask)
    stream = open_images(data, preprocess=how, labelled=labels is None, takes=takes)
    answers = answer(
        models,
        stream,
        batch_size=batch_size,
        needs_labels=numbers is reference is None and metric is None,
        output=output,
    )
    numbers = answers.labels if numbers is None else numbers
    if numbers is not None:
        _check_count(numbers, answers.images, answers.noun)
    judge = judge or judge_of(answers.outputs[-1], name=answers.name, labels=numbers)
    cautions = stream.warnings_for(answers.classes if judge == "classes" else 0)
    if numbers is None and reference is not None:
        images = f"{answers.noun}s"
        cautions += one_answer(answers.outputs[1], images, judge=judge, weight=answers.weight)
    for warning in cautions:
        warnings.warn(warning, SecateurWarning, stacklevel=2)
    dense = None if reference is None else answers.outputs[1]
    found = compare(answers.outputs[0], numbers, dense, judge=judge, weight=answers.weight)
    found = replace(found, noun=answers.noun)
    if metric is None:
        return found
    if reference is None:
        return replace(found, metric=measured(metric, models[0]))
    return DenseMetric.of(metric, models[1]).compared(found, models[0])


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def label_numbers(labels: Any) -> Int[Tensor, "batch ..."]:
    """Class numbers, one per image or position, from a tensor, an array or a list.

    Raises:
        DataError: they are something else.
    """
    count = len(labels) if hasattr(labels, "__len__") else 1
    if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.dtype.kind in "iu":
        labels = torch.from_numpy(labels.astype(np.int64))
    if isinstance(labels, Tensor) and labels.dim() == 2 and labels.dtype in _WHOLE:
        return labels.long().squeeze(1)
    found = class_numbers(labels, count)
    if found is None:
        raise DataError(
            f"the labels are {in_words(labels)}, expected one class number per image: pass "
            "whole numbers"
        )
    return found


def _check_count(labels: Tensor, images: int, noun: str = "image") -> None:
    if len(labels) != images:
        got = f"{counted(len(labels), 'label')} for {counted(images, noun)}"
        raise DataError(f"got {got}, expected one each")


@dataclass(frozen=True)
class EvaluationSet:
    """Images to judge networks on, with the dense network's scores on them.

    Of the images none is held, unless they take little room; see `secateur.data.streams`.

    Attributes:
        images: read batch by batch, for each network anew.
        dense: the dense network's scores, or first output of another kind.
        labels: class numbers; None = label-free.
        weight: which positions of each sample are real; None = all.
        output: name or number of the output; None = the first with a row for each sample.
        judge: what it is judged by; None = found out.
        noun: what a sample is called.
        group: processes that evaluate together.
    """

    images: ImageStream
    dense: Float[Tensor, "batch ..."]
    labels: Int[Tensor, "batch ..."] | None = None
    weight: Tensor | None = None
    output: str | int | None = None
    judge: Judge | None = None
    noun: str = "image"
    group: Group = field(default_factory=Group)

    @classmethod
    def of(
        cls,
        model: Any,
        images: ImageStream,
        *,
        output: str | int | None = None,
        judge: Judge | None = None,
        group: Group | None = None,
    ) -> EvaluationSet:
        """What the dense network says to some images.

        Raises:
            DataError: the network does not take them, has no output for a label, or they are not
                the same when they are read again.
        """
        try:
            answers = answer([model], images, output=output, group=group)
            dense, labels = answers.outputs[0], answers.labels
            judge = judge or judge_of(dense, name=answers.name, labels=labels)
            labels = labels if judge in ("classes", "tokens") else None
            if labels is not None:
                check_labels(labels, dense, judge)
        except (DataError, ModelError) as error:
            raise DataError(f"evaluation images from {images.source}: {error}") from error
        images.check_repeats()
        return cls(
            images, dense, labels, answers.weight, output, judge, answers.noun, group or Group()
        )

    def evaluate(self, model: Any) -> Evaluation:
        """A network against the dense one. Cost: a forward pass over the images."""
        found = answer([model], self.images, output=self.output, group=self.group)
        return self._compared(found.outputs[0])

    def alone(self) -> EvaluationSet:
        """The same for this process alone, as when one of several writes files."""
        return replace(self, group=Group())

    def _compared(self, found: Tensor) -> Evaluation:
        how = {"judge": self.judge, "weight": self.weight}
        return replace(compare(found, self.labels, self.dense, **how), noun=self.noun)

    def evaluations(self, pruned: Any, int8: Any = None) -> dict[str, Evaluation]:
        """The dense network's, the pruned one's and, where there is one, that in INT8."""
        found = {"dense": self._compared(self.dense), "pruned": self.evaluate(pruned)}
        return found if int8 is None else {**found, "int8": self.evaluate(int8)}
