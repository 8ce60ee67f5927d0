"""Accuracy: top-1 with its uncertainty and, without labels, agreement and KL divergence."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.core.distance import as_scores, has_one_answer, is_scores, value_error
from secateur.core.precision import widened
from secateur.data.batches import class_numbers, in_words
from secateur.data.preprocess import Transform
from secateur.data.sources import open_images
from secateur.data.streams import BATCH, ImageStream
from secateur.errors import DataError, ModelError, OptionError, SecateurError, SecateurWarning
from secateur.frontends import device_of, is_onnx, onnx_function
from secateur.frontends.loading import read_network
from secateur.frontends.openvino.runtime import IR
from secateur.network.layout import to_channels_last
from secateur.network.rows import RowsFirst, judged_output

_ROWS = 4096  # of scores that are compared at once, in float64


class NoRowsError(ModelError):
    """No output of a model has a row for each image."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A network's accuracy on some images, alone and against a reference network.

    Attributes:
        images: number of images.
        top1: percentage of images whose label has the highest score; None without labels.
        standard_error: standard error of top1, in points (binomial).
        drop: top1 of the reference minus this one, in points; None without labels or reference.
        drop_error: standard error of the drop, in points, paired on the same images.
        p_value: probability of a drop or gain at least as large if both networks were equally
            good (McNemar's test, exact, two-sided).
        agreement: percentage of images whose highest score is of the same class as in the
            reference.
        kl: mean KL(reference || this) of the softmax outputs, in nats; if a network ends in a
            softmax, of its outputs themselves.
        output_error: for an output that is not (batch, classes) scores: mean squared difference
            from the reference's first output / its variance, each channel by its own (see
            `secateur.core.distance`). Agreement and KL are then None.
    """

    images: int
    top1: float | None = None
    standard_error: float | None = None
    drop: float | None = None
    drop_error: float | None = None
    p_value: float | None = None
    agreement: float | None = None
    kl: float | None = None
    output_error: float | None = None

    def __str__(self) -> str:
        from secateur.render.terminal import evaluation_text

        return evaluation_text(self)


def evaluate(
    model: nn.Module | str | Path | Any,
    images: Any,
    labels: Int[Tensor, " batch"] | Any = None,
    *,
    reference: nn.Module | str | Path | Any = None,
    batch_size: int = BATCH,
    preprocess: Transform | None = None,
) -> Evaluation:
    """Evaluates a classifier, alone or against a reference (usually the dense network).

    If the output is not (batch, classes) scores, as for a detector, the first output is compared
    with the reference's.

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
        images: preprocessed inputs, a DataLoader or any other source as for `prune`. They are read
            batch by batch and need not fit into memory.
        labels: class numbers; None = those of the source. Without any, a reference is needed.
        reference: the network to compare with.
        batch_size: images per forward pass.
        preprocess: from images to inputs, see `Preprocess`; for folders and uint8 data.

    Raises:
        DataError: there are neither labels nor a reference, the numbers of labels and images
            differ, or a label is not the number of a class.
        ModelError: labels are given and the model does not return scores (batch, classes), or its
            output has another shape than the reference's.
        MissingExtraError: the runtime of the model is not installed.
    """
    numbers = None if labels is None else label_numbers(labels)
    if numbers is not None and isinstance(images, Tensor | np.ndarray):
        _check_count(numbers, len(images))
    stream = open_images(images, preprocess=preprocess, labelled=labels is None)
    models = [model] if reference is None else [model, reference]
    answers = answer(
        models, stream, batch_size=batch_size, needs_labels=numbers is reference is None
    )
    numbers = answers.labels if numbers is None else numbers
    if numbers is not None:
        _check_count(numbers, answers.images)
    doubts = stream.doubts(answers.classes)
    if numbers is None:
        doubts += one_answer(answers.outputs[1], "images")
    for doubt in doubts:
        warnings.warn(doubt, SecateurWarning, stacklevel=2)
    return compare(answers.outputs[0], numbers, None if reference is None else answers.outputs[1])


def label_numbers(labels: Any) -> Int[Tensor, " batch"]:
    """Class numbers, one per image, from a tensor, an array or a list.

    Raises:
        DataError: they are something else.
    """
    count = len(labels) if hasattr(labels, "__len__") else 1
    found = class_numbers(labels, count)
    if found is None:
        raise DataError(
            f"the labels are {in_words(labels)}, expected one class number per image: pass "
            "whole numbers"
        )
    return found


def _check_count(labels: Tensor, images: int) -> None:
    if len(labels) != images:
        raise DataError(f"got {len(labels)} labels for {images} images, expected one each")


def compare(
    logits: Float[Tensor, "batch ..."],
    labels: Int[Tensor, " batch"] | None = None,
    reference: Float[Tensor, "batch ..."] | None = None,
) -> Evaluation:
    """`evaluate` on scores, or first outputs of another kind, that are at hand."""
    count = len(logits)
    if labels is not None:
        check_labels(labels, logits)
    if reference is not None and reference.shape != logits.shape:
        raise ModelError(
            f"the outputs have shapes {tuple(logits.shape)} and {tuple(reference.shape)}, expected "
            "the same: compare networks with the same outputs"
        )
    if not is_scores(logits):
        error = None if reference is None else output_error(reference, logits)
        return Evaluation(images=count, output_error=error)
    hits = None if labels is None else logits.argmax(1) == labels.to(logits.device)
    found: dict[str, float] = {}
    if hits is not None:
        share = float(widened(hits).mean())
        found["top1"] = 100 * share
        found["standard_error"] = 100 * math.sqrt(share * (1 - share) / count)
    if reference is not None:
        reference = reference.to(logits.device)
        found["agreement"] = 100 * float(widened(logits.argmax(1) == reference.argmax(1)).mean())
        found["kl"] = kl_divergence(reference, logits)
        if hits is not None and labels is not None:
            lost = widened(reference.argmax(1) == labels.to(logits.device)) - widened(hits)
            found["drop"] = 100 * float(lost.mean())
            found["drop_error"] = 100 * float(lost.std(correction=0)) / math.sqrt(count)
            found["p_value"] = mcnemar(int((lost > 0).sum()), int((lost < 0).sum()))
    return Evaluation(images=count, **found)


def one_answer(dense: Tensor, images: str) -> list[str]:
    """A warning where agreement with the dense network's answers, without labels, means nothing.

    Args:
        dense: the dense network's first output.
        images: what they are called.
    """
    if not has_one_answer(dense):
        return []
    return [
        f"the dense network gives the same answer for all {len(dense)} {images}, so that agreement "
        "tells nothing: judge on images of several classes or with labels, or, where its outputs "
        "are no scores of classes (regression), by their own error"
    ]


def output_error(
    reference: Float[Tensor, "batch ..."], output: Float[Tensor, "batch ..."]
) -> float:
    """Mean squared difference over the reference's variance; see `secateur.core.distance`."""
    return value_error(reference.to(output.device).split(16), output.split(16))


def check_labels(labels: Int[Tensor, " batch"], output: Float[Tensor, "batch ..."]) -> None:
    """Raises where a network has no scores, or a label is no number of one, from 0 on."""
    if not is_scores(output):
        raise ModelError(
            f"the model returns {tuple(output.shape)}, expected scores of shape (batch, classes), "
            "for the images have labels: leave these out to compare outputs with another network's"
        )
    outputs = output.shape[1]
    wrong = labels[(labels < 0) | (labels >= outputs)]
    if len(wrong):
        raise DataError(
            f"{len(wrong)} of {len(labels)} images have labels such as {int(wrong[0])} for a "
            f"network with {outputs} outputs, expected class numbers from 0 to {outputs - 1}: "
            "check the number and the order of the classes"
        )


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p-value of McNemar's test, in [0, 1].

    Of lost + won images that just one of two networks gets right, either is as likely as the
    other where both are equally good: p = min(1, 2 P(X <= min(lost, won))), X binomial with 1/2.

    Args:
        lost: images that the first alone gets right.
        won: images that the second alone gets right.

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996.
    """
    count = lost + won
    logs = (
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
        for k in range(min(lost, won) + 1)
    )
    return min(1.0, 2 * math.fsum(math.exp(of - count * math.log(2)) for of in logs))


@dataclass(frozen=True)
class EvaluationSet:
    """Images to judge networks on, with the dense network's scores on them.

    Of the images none is held, unless they take little room; see `secateur.data.streams`.

    Attributes:
        images: read batch by batch, for each network anew.
        dense: the dense network's scores, or first output of another kind.
        labels: class numbers; None = label-free.
    """

    images: ImageStream
    dense: Float[Tensor, "batch ..."]
    labels: Int[Tensor, " batch"] | None = None

    @classmethod
    def of(cls, model: Any, images: ImageStream) -> EvaluationSet:
        """What the dense network says to some images.

        Raises:
            DataError: the network does not take them, has no output for a label, or they are not
                the same when they are read again.
        """
        try:
            answers = answer([model], images)
            if answers.labels is not None:
                check_labels(answers.labels, answers.outputs[0])
        except (DataError, ModelError) as error:
            raise DataError(f"evaluation images from {images.source}: {error}") from error
        images.check_repeats()
        return cls(images, answers.outputs[0], answers.labels)

    def evaluate(self, model: Any) -> Evaluation:
        """A network against the dense one. Cost: a forward pass over the images."""
        return compare(answer([model], self.images).outputs[0], self.labels, self.dense)

    def evaluations(self, pruned: Any, int8: Any = None) -> dict[str, Evaluation]:
        """The dense network's, the pruned one's and, where there is one, that in INT8."""
        dense = compare(self.dense, self.labels, self.dense)
        found = {"dense": dense, "pruned": self.evaluate(pruned)}
        return found if int8 is None else {**found, "int8": self.evaluate(int8)}


def kl_divergence(
    reference: Float[Tensor, "batch classes"], logits: Float[Tensor, "batch classes"]
) -> float:
    """Mean KL(softmax(reference) || softmax(logits)), in nats; of probabilities as they are."""
    reference, logits = as_scores(reference, logits)
    pairs = zip(reference.split(_ROWS), logits.split(_ROWS), strict=True)
    return max(0.0, sum(_kl_sum(one, other) for one, other in pairs) / len(logits))


def _kl_sum(reference: Tensor, logits: Tensor) -> float:
    p, q = widened(reference).log_softmax(1), widened(logits).log_softmax(1)
    return float((p.exp() * (p - q)).sum())


def predict(
    model: nn.Module | str | Path | Any,
    images: Float[Tensor, "batch ..."],
    *,
    batch_size: int = BATCH,
) -> Float[Tensor, "batch classes"]:
    """A classifier's scores, in float32 on the CPU; `first_output`, checked."""
    scores = first_output(model, images, batch_size=batch_size)
    if scores.dim() != 2:
        raise ModelError(
            f"the model returns {tuple(scores.shape)}, expected scores of shape (batch, classes): "
            "evaluate it yourself, or wrap it in a module that returns the scores"
        )
    return scores


def first_output(
    model: nn.Module | str | Path | Any,
    images: Float[Tensor, "batch ..."],
    *,
    batch_size: int = BATCH,
) -> Float[Tensor, "batch ..."]:
    """A model's first output with a row for each image; float32 on the CPU.

    Of a model that returns an object with `logits` it is these. How many rows a selection or
    NonMaxSuppression gives depends on the images, so that such outputs are passed over.

    Raises:
        ModelError: no output is a tensor with a row for each image, or the model fails.
    """
    if len(images) == 0:
        raise DataError("got no images to evaluate, expected at least one: check the source")
    with torch.no_grad(), running(model, images[:2]) as run:
        return torch.cat([run(part) for part in images.split(batch_size)])


@dataclass(frozen=True)
class Answers:
    """What networks say to all images of a stream.

    Attributes:
        outputs: of each network the first output, as of `first_output`.
        labels: class numbers of the images, where the source has them.
    """

    outputs: Sequence[Float[Tensor, "batch ..."]]
    labels: Int[Tensor, " batch"] | None = None

    @property
    def images(self) -> int:
        """How many."""
        return len(self.outputs[0])

    @property
    def classes(self) -> int:
        """Of the first network; 0 where it gives no scores."""
        return self.outputs[0].shape[1] if is_scores(self.outputs[0]) else 0


def answer(
    models: Sequence[Any],
    images: ImageStream,
    *,
    batch_size: int = BATCH,
    needs_labels: bool = False,
) -> Answers:
    """Runs networks on images that are read once, batch by batch; `first_output` of each.

    Args:
        models: as for `evaluate`.
        images: those of a source.
        batch_size: images per forward pass.
        needs_labels: whether images without labels are refused.

    Raises:
        DataError: the images cannot be read or have no labels.
        ModelError: as of `first_output`.

    Memory: a batch of images, and the outputs for all of them.
    """
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}, expected at least 1")
    outputs: list[list[Tensor]] = [[] for _ in models]
    labels: list[Tensor] = []
    batches = images.batches(batch_size)
    first = next(batches)
    if needs_labels and first.labels is None:
        raise DataError(
            f"got neither labels nor a reference: {images.source} has no labels, expected some, or "
            "another network to compare with: add labels, or pass the dense network as reference "
            "(--against)" + "".join(f"; {of}" for of in images.warnings if "labels" in of)
        )
    with torch.no_grad(), ExitStack() as stack:
        runs = [stack.enter_context(running(model, first.images[:2])) for model in models]
        for part in itertools.chain([first], batches):
            for run, found in zip(runs, outputs, strict=True):
                found.append(run(part.images))
            labels += [] if part.labels is None else [part.labels]
    return Answers([torch.cat(found) for found in outputs], torch.cat(labels) if labels else None)


@contextmanager
def running(model: Any, example: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """A model as a function from images to its first output; a module is in eval mode meanwhile.

    Args:
        model: as for `evaluate`.
        example: one image or two.
    """
    model = model if isinstance(model, IR) else read_network(model)
    with _forward(model, example) as forward:
        chosen: list[int] = []  # the output that counts, once for all

        def output(images: Tensor) -> Any:
            given = forward(images)
            found = _tensors(given)
            if len(found) < 2:
                return found[0] if found else given
            if not chosen:
                chosen.append(judged_output(lambda part: _tensors(forward(part)), images[:2]))
            return found[chosen[0]]

        rows = RowsFirst(output)

        def run(images: Tensor) -> Tensor:
            try:
                found = rows(images)
                if len(images) == 1 and not _has_rows(found, 1):  # squeezed, perhaps
                    found = _first_of_two(rows, images)
                return _with_rows(found, len(images))
            except SecateurError:
                raise
            except Exception as error:  # whatever a network raises
                said = next(iter(str(error).splitlines()), type(error).__name__)
                raise ModelError(
                    f"the model fails on images of shape {tuple(images.shape[1:])}: {said}; "
                    "expected images like those it was made for: check size and preprocess"
                ) from error

        yield run


@contextmanager
def _forward(model: Any, example: Tensor) -> Iterator[Callable[[Tensor], Any]]:
    """A model as a function from images to whatever it returns."""
    if isinstance(model, IR):
        yield model
        return
    if is_onnx(model):
        yield onnx_function(model, example)
        return
    device = device_of(model)
    layouts = (to_channels_last, Tensor.contiguous)
    ways = [(kind, layout) for kind in input_kinds(model) for layout in layouts]

    def run(images: Tensor) -> Any:
        images, failure = images.to(device), None
        for tried, (kind, layout) in enumerate(ways):
            try:
                output = model(layout(images.to(kind)))
            except RuntimeError as error:  # it may view values as only one layout allows
                failure = failure or error
            else:
                del ways[:tried]
                return output
        assert failure is not None
        raise failure

    with _eval_mode(model):
        yield run


def input_kinds(model: nn.Module) -> list[torch.dtype]:
    """The types that a module's input may have, to be tried in their order.

    That of its floating-point parameters, where they are all of one type. Where they are not (the
    body in half precision, normalisations in float32, a table in float64), float32 and then
    theirs: which of them meets the input, only running the module tells.
    """
    kinds = {of.dtype: None for of in model.parameters() if of.is_floating_point()}
    return list(kinds if len(kinds) == 1 else {torch.float32: None, **kinds})


def _tensors(output: Any) -> list[Tensor]:
    """All tensors of what a model returns, or its `logits`."""
    leaves = tree_leaves(getattr(output, "logits", output))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _has_rows(found: Any, count: int) -> bool:
    return isinstance(found, Tensor) and found.dim() > 0 and len(found) == count


def _first_of_two(run: Callable[[Tensor], Any], image: Tensor) -> Any:
    """What a network that leaves out the batch axis of one image gives for it beside its twin."""
    found = run(torch.cat([image, image]))
    return found[:1] if _has_rows(found, 2) else found


def _with_rows(found: Any, count: int) -> Tensor:
    """An output, checked to have a row for each image."""
    if not _has_rows(found, count):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise NoRowsError(
            f"the model returns {shape} for {count} images, expected scores of shape (batch, "
            "classes) or another tensor with a row for each image: wrap it in a module that "
            "returns that"
        )
    return found.float().cpu()


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
