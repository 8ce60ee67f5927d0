"""A module whose own forward holds sizes as numbers, with fewer channels: its traced program.

Its operations are those of `torch.export`, in a module of the same names of parameters. The numbers
among their arguments that are sizes become those of the values without these channels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx import Node

from secateur.errors import ModelError
from secateur.frontends.torch.exported_programs import as_module
from secateur.frontends.torch.modes import plain_copy
from secateur.frontends.torch.modules import copy_module
from secateur.frontends.torch.program import export
from secateur.frontends.torch.shrink import cut
from secateur.frontends.torch.signature import any_length, batch_of_any_size, signature_of
from secateur.network.couplings import Removed
from secateur.network.graph import Graph
from secateur.network.narrowing import Narrowing
from secateur.network.ops import Insert, Op, Padding, Slice, Split
from secateur.network.samples import Samples

aten = torch.ops.aten

Free = Callable[[Tensor], dict[int, Any]]


def shrink_program(
    model: nn.Module,
    graph: Graph,
    removed: Removed,
    example: Samples,
    free: Free = batch_of_any_size,
) -> fx.GraphModule:
    """A module's program without some units of its couplings.

    Args:
        model: not touched.
        graph: of this module.
        removed: units to leave out, by coupling. Of a coupling in blocks as many of each.
        example: a few samples, of the module's own type.
        free: the axes of an input whose size is left open.

    Raises:
        ModelError: a coupling is fixed, or a size cannot be mended.
    """
    narrowing = Narrowing(graph, removed)
    module = plain_copy(model)
    example = example.pair() if len(example) == 1 else example
    program = as_module(export(module, example.map(Tensor.contiguous), free).program)
    _Mending(narrowing).mend(program.graph)
    program.recompile()
    cut(program, removed)
    return program


def save_smaller(module: nn.Module, path: Path, samples: Samples) -> dict[str, Any]:
    """Writes a program from which channels have left.

    Args:
        module: from `shrink_program`, or from a .pt2 file and smaller since.
        path: where to write; it ends in .pt2.
        samples: some inputs, with which it is traced again.

    Returns:
        bytes.
    """
    few = signature_of(module).bind(samples.pair()).map(Tensor.contiguous)
    with warnings.catch_warnings():  # PyTorch's, about its own format
        warnings.simplefilter("ignore")
        torch.export.save(_exported(copy_module(module).eval(), few), path)
    return {"bytes": path.stat().st_size}


def _exported(module: nn.Module, few: Samples) -> ExportedProgram:
    """A program that takes tokens of any number, if the module does."""
    try:
        return export(module, few, any_length).program
    except ModelError:
        return export(module, few).program


class _Mending:
    """Gives a program's operations the sizes of its values without some channels."""

    def __init__(self, narrowing: Narrowing) -> None:
        self.narrowing, self.shapes = narrowing, narrowing.graph.shapes

    def mend(self, graph: fx.Graph) -> None:
        """Changes the arguments that are sizes."""
        for node in graph.nodes:
            name = getattr(getattr(node.target, "_schema", None), "name", "")
            mend = self._MENDERS.get(name.removeprefix("aten::"))
            if mend is not None:
                mend(self, node)
        graph.eliminate_dead_code()
        graph.lint()

    def _op(self, node: Node) -> Op | None:
        return self.narrowing.known.makers.get(f"%{node.name}")

    def _changes(self, name: str) -> dict[int, tuple[int, int]]:
        """The sizes of a value before and after, by axis, where they are not the same."""
        if name not in self.shapes:
            return {}
        pairs = zip(self.shapes[name].sizes, self.narrowing.sizes(name), strict=True)
        return {axis: pair for axis, pair in enumerate(pairs) if pair[0] != pair[1]}

    def _reshape(self, node: Node) -> None:
        changes = self._changes(f"%{node.name}")
        given: Any = node.args[1]
        sizes = list(given)
        node.update_arg(1, _mended(node, sizes, changes))
        if changes and node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default  # strides follow from sizes

    def _unflatten(self, node: Node) -> None:
        x, dim, sizes = node.args[:3]
        axis = int(dim) % len(x.meta["val"].shape)  # type: ignore[arg-type, union-attr]
        changes = self._changes(f"%{node.name}")
        own = {at - axis: of for at, of in changes.items() if 0 <= at - axis < len(sizes)}  # type: ignore[arg-type]
        node.update_arg(2, _mended(node, list(sizes), own))  # type: ignore[arg-type]

    def _slice(self, node: Node) -> None:
        """The bounds, or the place that is taken."""
        op = self._op(node)
        if not isinstance(op, Slice):
            return
        start, stop = (self.narrowing.bound(op, op.axis, of) for of in (op.start, op.stop))
        if (start, stop) == (op.start, op.stop):
            return
        if op.keepdims:
            node.target = aten.slice.Tensor
            node.args, node.kwargs = (node.args[0], op.axis, start, stop, op.step), {}
        else:
            node.args, node.kwargs = (node.args[0], op.axis, start), {}

    def _split(self, node: Node) -> None:
        op = self._op(node)
        if isinstance(op, Split) and (lengths := self.narrowing.lengths(op)) != op.lengths:
            node.target = aten.split_with_sizes.default
            node.args, node.kwargs = (node.args[0], [*lengths], op.axis), {}

    def _groups(self, node: Node) -> None:
        """As many groups as the input has channels, where that was so before.

        A normalisation loses whole groups.
        """
        op = self._op(node)
        change = self._changes(op.input).get(1) if op is not None else None
        if change is None:
            return
        names = [of.name for of in node.target._schema.arguments]  # type: ignore[union-attr]
        name = "num_groups" if "num_groups" in names else "groups"
        at = names.index(name)
        held: Any = node.args[at] if at < len(node.args) else node.kwargs.get(name, 1)
        if name == "groups" and held != change[0]:
            return
        groups = held * change[1] // change[0]
        if at < len(node.args):
            node.update_arg(at, groups)
        else:
            node.update_kwarg(name, groups)

    def _insert(self, node: Node) -> None:
        op = self._op(node)
        if isinstance(op, Insert):
            start, stop = (self.narrowing.bound(op, op.axis, of) for of in (op.start, op.stop))
            node.args, node.kwargs = (*node.args[:2], op.axis, start, stop), {}

    def _pad(self, node: Node) -> None:
        op = self._op(node)
        if not isinstance(op, Padding) or self.narrowing.padded(op) == (op.before, op.after):
            return
        pads: list[int] = []
        both = dict(zip(op.axes, zip(*self.narrowing.padded(op), strict=True), strict=True))
        for axis in range(len(self.shapes[op.name].sizes) - 1, min(op.axes) - 1, -1):
            pads += both.get(axis, (0, 0))
        node.update_arg(1, pads)

    _MENDERS: Mapping[str, Any] = {
        **dict.fromkeys(("view", "_unsafe_view", "reshape", "expand"), _reshape),
        "unflatten": _unflatten,
        **dict.fromkeys(("slice", "narrow", "select"), _slice),
        **dict.fromkeys(("chunk", "split", "split_with_sizes"), _split),
        **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "group_norm"), _groups),
        "slice_scatter": _insert,
        **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    }


def _mended(node: Node, sizes: list[Any], changes: Mapping[int, tuple[int, int]]) -> Sequence[Any]:
    """Sizes of a new shape: -1 follows by itself, and stands for one that is computed."""
    for axis, (old, new) in changes.items():
        size = sizes[axis]
        if isinstance(size, Node) and -1 not in sizes:
            sizes[axis] = -1
        elif isinstance(size, int) and size > 0 and size % old == 0:
            sizes[axis] = size // old * new
        elif size != -1:
            raise ModelError(
                f"{node.name} makes an axis of {size} places of {old} channels, expected a "
                "multiple: its shape cannot be mended; leave its channels in"
            )
    return sizes
