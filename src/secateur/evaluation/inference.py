"""Networks of any kind as functions from images to the output that they are judged by."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secateur.core.outputs import is_scores, of_one_length
from secateur.data.streams import BATCH, ImageStream
from secateur.errors import DataError, ModelError, OptionError, SecateurError
from secateur.frontends import open_to_run
from secateur.network.returned import asked_output, named_leaves
from secateur.network.rows import RowsFirst, judged_output
from secateur.network.samples import AnySamples, Samples, as_samples, chunk_size
from secateur.support.group import Group
from secateur.support.wording import counted


class NoRowsError(ModelError):
    """No output of a model has a row for each image."""


def predict(
    model: nn.Module | str | Path | Any,
    images: AnySamples,
    *,
    batch_size: int | None = None,
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
    images: AnySamples,
    *,
    batch_size: int | None = None,
    output: str | int | None = None,
    group: Group | None = None,
) -> Float[Tensor, "batch ..."]:
    """A model's first output with a row for each image; float32 on the CPU.

    Of a model that returns an object with `logits` it is these. How many rows a selection or
    NonMaxSuppression gives depends on the images, so that such outputs are passed over.

    Args:
        model: as for `evaluate`.
        images: samples.
        batch_size: of them per forward pass; None = see `evaluate`.
        output: name or number of another output.
        group: processes that call this together, each for some of the batches; None = this one.

    Raises:
        OptionError: there is no such output.
        ModelError: no output is a tensor with a row for each image, or the model fails.
    """
    samples = as_samples(images)
    if len(samples) == 0:
        raise DataError("got no images to evaluate, expected at least one: check the source")
    with torch.no_grad(), running(model, samples[:2], output) as run:
        group, parts = group or Group(), in_batches(samples, batch_size)
        run.settle(samples, group)
        own = {number: run(parts[number]) for number in group.share(len(parts))}
        return torch.cat(group.in_order(own, len(parts)))


@dataclass(frozen=True)
class Answers:
    """What networks say to all images of a stream.

    Attributes:
        outputs: of each network the first output, as of `first_output`.
        labels: class numbers of the images, where the source has them.
        weight: which positions of each sample are real, where a mask says so.
        name: what the last network's users call its output.
        noun: what a sample is called.
    """

    outputs: Sequence[Float[Tensor, "batch ..."]]
    labels: Int[Tensor, " batch"] | None = None
    weight: Tensor | None = None
    name: str = ""
    noun: str = "image"

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
    batch_size: int | None = None,
    needs_labels: bool = False,
    output: str | int | None = None,
    group: Group | None = None,
) -> Answers:
    """Runs networks on images that are read once, batch by batch; `first_output` of each.

    Args:
        models: as for `evaluate`.
        images: those of a source.
        batch_size: images per forward pass; None = see `evaluate`.
        needs_labels: whether images without labels are refused.
        output: name or number of another output.
        group: processes that call this together, each for some of the batches, which all of them
            read; None = this one.

    Raises:
        DataError: the images cannot be read or have no labels.
        ModelError: as of `first_output`.

    Memory: a batch of images, or a hundred, and the outputs for all of them.
    """
    if batch_size is not None and batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}, expected at least 1")
    group = group or Group()
    outputs: list[dict[int, Tensor]] = [{} for _ in models]
    count = 0
    labels: list[Tensor] = []
    masks: list[Tensor] = []
    batches = images.batches(batch_size or BATCH)
    first = next(batches)
    if needs_labels and first.labels is None:
        raise DataError(
            f"got neither labels nor a reference: {images.source} has no labels, expected some, or "
            "another network to compare with: add labels, or pass the dense network as reference "
            "(--against)" + "".join(f"; {of}" for of in images.warnings if "labels" in of)
        )
    with torch.no_grad(), ExitStack() as stack:
        runs = [stack.enter_context(running(model, first.samples[:2], output)) for model in models]
        for run in runs:
            run.settle(first.samples, group)
        for count, part in enumerate(itertools.chain([first], batches), 1):
            for run, found in zip(runs, outputs, strict=True):
                if group.owner(count - 1) == group.rank:
                    parts = in_batches(part.samples, batch_size)
                    found[count - 1] = torch.cat(of_one_length([run(of) for of in parts])[0])
            labels += [] if part.labels is None else [part.labels]
            masks += [] if part.samples.mask is None else [part.samples.mask.float().cpu()]
    return Answers(
        [torch.cat(of_one_length(group.in_order(found, count))[0]) for found in outputs],
        torch.cat(labels) if labels else None,
        torch.cat(of_one_length(masks)[0]) if masks else None,
        group.broadcast(runs[-1].name),
        first.samples.noun,
    )


def in_batches(samples: Samples, size: int | None = None) -> list[Samples]:
    """Parts of so many samples; None = of as many as a CPU runs fastest, at most `BATCH`."""
    return samples.split(size or min(BATCH, chunk_size(samples)))


@contextmanager
def running(
    model: Any, example: Samples, output: str | int | None = None
) -> Iterator[JudgedOutput]:
    """A model as a function from samples to one output; a module is in eval mode meanwhile.

    Args:
        model: as for `evaluate`.
        example: one sample or two.
        output: name or number of the output; None = as of `first_output`.
    """
    network = open_to_run(model)
    with network.running(example, output) as forward:
        yield JudgedOutput(forward, None if network.chooses else output)


class JudgedOutput:
    """A network as a function from samples to the output that it is judged by.

    Attributes:
        name: what its users call the output, once it has run; "" = it has no name.
    """

    def __init__(self, forward: Callable[[Samples], Any], asked: str | int | None) -> None:
        self.forward, self.asked = forward, asked
        self.name: str = getattr(forward, "name", "")
        self._number: int | None = None  # of the output that counts, once for all
        self._rows = RowsFirst(self._output)

    def settle(self, samples: Samples, group: Group) -> None:
        """Finds the output that counts on the first samples, where another process runs these."""
        if not group.is_first:
            self(samples[:2])

    def __call__(self, samples: Samples) -> Tensor:
        """The output, with a row for each sample."""
        try:
            found = self._rows(samples)
            if len(samples) == 1 and not _has_rows(found, 1):  # squeezed, perhaps
                found = _first_of_two(self._rows, samples)
            return _with_rows(found, len(samples))
        except SecateurError:
            raise
        except Exception as error:  # whatever a network raises
            said = next(iter(str(error).splitlines()), type(error).__name__)
            shapes = " and ".join(map(str, samples.shapes.values()))
            wrong = samples.called(
                f"the model fails on images of shape {shapes}: {said}; expected images like those "
                "it was made for: check size and preprocess"
            )
            if "index out of range" in said:  # in a table
                wrong += ", and of tokens their numbers"
            raise ModelError(wrong) from error

    def _output(self, samples: Samples) -> Any:
        given = self.forward(samples)
        found = self._tensors(given)
        if self._number is None:
            self._number = self._chosen(list(found), samples)
            self.name = self.name or (list(found)[self._number] if found else "")
        return list(found.values())[self._number] if found else given

    def _chosen(self, names: Sequence[str], samples: Samples) -> int:
        if self.asked is not None:
            return asked_output(self.asked, names)
        if len(names) < 2:
            return 0
        return judged_output(
            lambda part: list(self._tensors(self.forward(part)).values()), samples[:2]
        )

    def _tensors(self, given: Any) -> dict[str, Tensor]:
        """All tensors of what a model returns, or its `logits`, by their names."""
        logits = getattr(given, "logits", None) if self.asked is None else None
        leaves = named_leaves(given) if logits is None else named_leaves(logits, "logits")
        return {name: leaf for name, leaf in leaves if isinstance(leaf, Tensor)}


def _has_rows(found: Any, count: int) -> bool:
    return isinstance(found, Tensor) and found.dim() > 0 and len(found) == count


def _first_of_two(run: Callable[[Samples], Any], sample: Samples) -> Any:
    """What a network that leaves out the batch axis of one image gives for it beside its twin."""
    found = run(sample.pair())
    return found[:1] if _has_rows(found, 2) else found


def _with_rows(found: Any, count: int) -> Tensor:
    """An output, checked to have a row for each image."""
    if not _has_rows(found, count):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise NoRowsError(
            f"the model returns {shape} for {counted(count, 'image')}, expected scores of shape "
            "(batch, classes) or another tensor with a row for each image: wrap it in a module "
            "that returns that"
        )
    return found.float().cpu()
