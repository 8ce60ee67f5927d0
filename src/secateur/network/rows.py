"""The axis of an output that counts the images: the first by custom, another where time is first.

Networks that read text give (time, batch, classes). Everything else in the package wants a row for
each image, so the images' axis is put first where outputs are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from secateur.errors import ModelError
from secateur.network.graph import Graph
from secateur.network.ops import Op, Opaque, Shape, Transpose
from secateur.network.samples import Samples


def images_axis(single: Sequence[int], several: Sequence[int], count: int) -> int | None:
    """The axis of size 1 for one image and of size `count` for so many; None where there is none.

    Args:
        single, several: shapes of the same output.
        count: at least 2.
    """
    differ = [
        axis for axis, pair in enumerate(zip(single, several, strict=False)) if len({*pair}) > 1
    ]
    if len(single) != len(several) or len(differ) != 1:
        return None
    (axis,) = differ
    return axis if (single[axis], several[axis]) == (1, count) else None


def judged_output(run: Callable[[Samples], Sequence[Any]], samples: Samples) -> int:
    """The number of the first output with an axis that counts the images; 0 where none has.

    A selection or NonMaxSuppression gives as many rows as the values lead to. Two numbers of images
    tell, where there are several outputs.
    """
    samples = samples if len(samples) > 1 else samples.pair()
    every = run(samples)
    if len(every) < 2:
        return 0
    try:
        pairs = zip(run(samples[:1]), every, strict=True)
    except (ModelError, RuntimeError, ValueError):  # it takes no other number
        return 0
    for number, (single, several) in enumerate(pairs):
        numbers = isinstance(several, Tensor) and several.is_floating_point()
        if numbers and images_axis(single.shape, several.shape, len(samples)) is not None:
            return number
    return 0


def images_first(graph: Graph) -> Graph:
    """A network whose outputs have the images on their first axis, where one axis counts these."""
    moves = {name: move for name in graph.outputs if (move := _move(graph, name)) is not None}
    return replace(
        graph,
        ops=[*graph.ops, *moves.values()],
        outputs=[moves[name].name if name in moves else name for name in graph.outputs],
        shapes={**graph.shapes, **{move.name: _moved(graph, move) for move in moves.values()}},
    )


def _move(graph: Graph, name: str) -> Transpose | None:
    shape = graph.shapes.get(name)
    if shape is None or name in graph.unsteady:
        return None
    pairs = zip(shape.sizes, shape.growing, strict=False)
    axes = [axis for axis, (size, grows) in enumerate(pairs) if grows and size == 1]
    if len(axes) != 1 or axes == [0]:
        return None
    (axis,) = axes
    rest = (place for place in range(len(shape.sizes)) if place != axis)

    def compute(value: Tensor) -> Tensor:
        return value.movedim(axis, 0)

    return Transpose(
        name=f"{name} (images first)",
        inputs=(name,),
        permutation=(axis, *rest),
        compute=compute,
        operation="transpose",
    )


def images_apart(graph: Graph) -> Graph:
    """A network whose outputs have a row for each image, where these lie behind each other."""
    apart = {name: op for name in graph.outputs if (op := _apart(graph, name)) is not None}
    names = [apart[name].name if name in apart else name for name in graph.outputs]
    return replace(graph, ops=[*graph.ops, *apart.values()], outputs=names)


def _apart(graph: Graph, name: str) -> Op | None:
    """What takes the values of several images apart: a row for each, without their axis of 1."""
    shape = graph.shapes.get(name)
    if shape is None or name in graph.unsteady or shape.sizes[:1] == (1,) or 1 not in shape.sizes:
        return None
    if shape.growing != (True, *(False,) * (len(shape.sizes) - 1)):
        return None
    each, axis = shape.sizes, shape.sizes.index(1)

    def compute(value: Tensor) -> Tensor:
        return value.reshape(-1, *each).squeeze(axis + 1)

    return Opaque(name=f"{name} (images first)", inputs=(name,), compute=compute)


def _moved(graph: Graph, move: Transpose) -> Shape:
    shape = graph.shapes[move.input]
    order = move.permutation
    return Shape(tuple(shape.sizes[at] for at in order), tuple(shape.growing[at] for at in order))


class RowsFirst:
    """A function of images whose results get a row for each; as they are where they have none.

    Where the shape leaves open which axis counts the images, or says that it is not the first,
    another number of images tells; once for all calls.
    """

    def __init__(self, run: Callable[[Samples], Any]) -> None:
        self.run = run
        self.axis: int | None = None

    def __call__(self, samples: Samples) -> Any:
        """The result for some samples."""
        result, count = self.run(samples), len(samples)
        if not isinstance(result, Tensor):
            return result
        axes = [axis for axis, size in enumerate(result.shape) if size == count]
        if self.axis not in axes:
            self.axis = self._images_axis(axes, result.shape, samples)
        return result if not self.axis else result.movedim(self.axis, 0)

    def _images_axis(
        self, axes: Sequence[int], shape: Sequence[int], samples: Samples
    ) -> int | None:
        if len(axes) == 0 or axes == [0]:
            return next(iter(axes), None)
        other = samples[:1] if len(samples) > 1 else samples.pair()
        try:
            shapes = shape, self.run(other).shape
        except (ModelError, RuntimeError):  # it takes no other number
            return None
        single, several = shapes if len(samples) == 1 else reversed(shapes)
        return images_axis(single, several, max(len(samples), 2))


def in_parts(run: Callable[[Samples], Any], samples: Samples, size: int) -> Any:
    """A function's result for some samples, so many at a time, with a row for each if it has any.

    The last part is filled with copies of the last sample.
    """
    counts = [len(part) for part in samples.split(size)]
    parts = samples.filled(size).split(size)
    results = [run(part) for part in parts]
    if not isinstance(results[0], Tensor) or results[0].dim() == 0:
        return results[0]
    axis = _axis_of_size(run, parts[0], results[0])
    if axis is None:
        return torch.cat(results)
    pairs = zip(results, counts, strict=True)
    return torch.cat([result.movedim(axis, 0)[:count] for result, count in pairs])


def _axis_of_size(run: Callable[[Samples], Tensor], samples: Samples, result: Tensor) -> int | None:
    """The axis with an entry for each sample; of several that where one changes one entry."""
    axes = [axis for axis, size in enumerate(result.shape) if size == len(samples)]
    if len(axes) < 2:
        return next(iter(axes), None)
    differ = run(samples.map(_with_another_first)) != result
    fit = [axis for axis in axes if not differ.movedim(axis, 0)[1:].any()]
    return (fit or axes)[0]


def _with_another_first(tensor: Tensor) -> Tensor:
    """A tensor whose first sample is another one."""
    other = tensor.clone()
    other[0] = 1 - tensor[0] if tensor.is_floating_point() else tensor[-1]
    return other
