"""Aten operations by name, and the types that they are; `Translator` makes operations of them."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from secateur.frontends.torch.equations import product_of
from secateur.frontends.torch.matrix_products import linear_of, matrix_layer
from secateur.network.geometry import ConvolutionGeometry
from secateur.network.ops import (
    Activation,
    Add,
    Attention,
    BatchNorm,
    Concatenate,
    Convolution,
    Expand,
    GetItem,
    GroupNorm,
    Identity,
    Insert,
    LayerNorm,
    Linear,
    Multiply,
    Op,
    Opaque,
    Padding,
    ParametricReLU,
    Pointwise,
    Pooling,
    Product,
    Recurrent,
    Reduction,
    Repeat,
    Reshape,
    Scale,
    Scan,
    SizesOf,
    Slice,
    Softmax,
    Split,
    Take,
    Transpose,
)

aten = torch.ops.aten
Options = dict[str, Any]

NATIVE_BATCH_NORM = aten._native_batch_norm_legit_no_training.default
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)


def short_name(node: Node) -> str:
    """The operation, without what tells its overloads apart."""
    target = node.target
    return target._schema.name.removeprefix("aten::") if isinstance(target, OpOverload) else ""


def gives_first_result(node: Node) -> bool:
    """Whether a BatchNorm gives several results, and nothing but the first of them is read."""
    parts = (of.target is operator.getitem and of.args[1] == 0 for of in node.users)
    return node.target == NATIVE_BATCH_NORM and all(parts)


def options_of(node: Node) -> Options:
    """A node's arguments by name, defaults included."""
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    options = {argument.name: argument.default_value for argument in arguments}
    names = [argument.name for argument in arguments]
    return options | dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


@dataclass(frozen=True)
class Typed:
    """What a node is.

    Attributes:
        kind: the type of operation.
        inputs: the nodes that it computes with.
        weights: by field of the type, the nodes that hold parameters.
        settings: other fields.
        compute: takes inputs and weights, where the node itself takes these in another form.
    """

    kind: type[Op]
    inputs: Sequence[Node]
    weights: Options = field(default_factory=dict)
    settings: Options = field(default_factory=dict)
    compute: Callable[..., Any] | None = None


def typed_as(node: Node, is_weight: Callable[[Node], bool]) -> Typed:
    """What a node is; anything that no type describes is opaque.

    Args:
        node: of a program.
        is_weight: whether a node holds a parameter.
    """
    if node.target is operator.getitem and isinstance(node.args[1], int):
        return Typed(GetItem, [node.args[0]], {}, {"index": node.args[1]})  # type: ignore[list-item]
    if not isinstance(node.target, OpOverload):
        return Typed(Opaque, _tensors(node))
    name, options = short_name(node), options_of(node)
    found = None
    if layer := _matrix_layer(name, options, is_weight):
        found = layer
    elif product := product_of(name, options):
        bilinear = {"obstacle": "bilinear layer"} if name == "bilinear" else {}
        found = Typed(Product, product[0], {}, {"equation": product[1], **bilinear})
    elif name in _MAKERS:
        found = _MAKERS[name](node, options)
    elif torch.Tag.pointwise in node.target.tags:
        found = _pointwise(node, options)
    return found or Typed(Opaque, _tensors(node))


def _matrix_layer(name: str, options: Options, is_weight: Callable[[Node], bool]) -> Typed | None:
    """A product with a parameter, or a linear layer with one that is transposed."""
    product = product_of(name, options)
    if name == "linear":
        layer = linear_of(options, is_weight)
    elif product is not None:
        layer = matrix_layer(*product, options, is_weight)
    else:
        return None
    if layer is None:
        return None
    weights, settings = {"weight": layer.weight, "bias": layer.bias}, {"turned": layer.turned}
    return Typed(Linear, [layer.x], weights, settings, layer.compute)


def _tensors(node: Node) -> list[Node]:
    return [of for of in node.all_input_nodes if isinstance(of.meta.get("val"), Tensor)]


def _shape(node: Node) -> torch.Size:
    return node.meta["val"].shape


def _pointwise(node: Node, options: Options) -> Typed:
    inputs = [of for of in tree_leaves((node.args, node.kwargs)) if isinstance(of, Node)]
    kind = Activation if len(inputs) == 1 else Pointwise
    if len(inputs) == 1 and _is_factor(node):
        kind = Scale
    if len(inputs) == 2:
        plain = options.get("alpha", 1) == 1
        kind = {"add": Add if plain else Pointwise, "mul": Multiply}.get(
            short_name(node), Pointwise
        )
    return Typed(kind, inputs)


def _is_factor(node: Node) -> bool:
    """Whether a value is multiplied with a number, or divided by it."""
    name, other = short_name(node), options_of(node).get("other")
    return name == "neg" or (
        isinstance(other, float | int)
        and isinstance(node.args[0], Node)
        and (name == "mul" or (name == "div" and options_of(node).get("rounding_mode") is None))
    )


def _expand(node: Node, options: Options) -> Typed:
    return Typed(Expand, [options["self"]])


def _repeat(node: Node, options: Options) -> Typed | None:
    """Of an axis of a known size, each place as often."""
    x, times, axis = (options[name] for name in ("self", "repeats", "dim"))
    if not isinstance(times, int) or axis is None:
        return None
    return Typed(Repeat, [x], {}, {"axis": axis % len(_shape(x)), "times": times})


def _convolution(node: Node, options: Options) -> Typed | None:
    x, weight, bias = (options[name] for name in ("input", "weight", "bias"))
    if len(node.all_input_nodes) != len({x, weight, bias} - {None}):
        return None  # settings that are computed
    kernel = tuple(_shape(weight)[2:])
    dilation, stride = (_each(options[name], kernel) for name in ("dilation", "stride"))
    padding = options["padding"]
    if padding == "same":  # an odd pad more goes behind; with a stride of 1 only
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = tuple((total // 2, total - total // 2) for total in totals)
    elif padding == "valid":
        pads = tuple((0, 0) for _ in kernel)
    else:
        pads = tuple((pad, pad) for pad in _each(padding, kernel))
    geometry = ConvolutionGeometry(
        kernel=kernel, stride=stride, padding=pads, dilation=dilation, groups=options["groups"]
    )
    transposed = "transpose" in short_name(node) or bool(options.get("transposed"))
    settings = {"geometry": geometry, "transposed": transposed}
    return Typed(Convolution, [x], {"weight": weight, "bias": bias}, settings)


def _each(option: Any, kernel: tuple[int, ...]) -> tuple[int, ...]:
    values = [option] if isinstance(option, int) else list(option)
    return tuple(values * len(kernel) if len(values) == 1 else values)


def _linear(node: Node, options: Options) -> Typed:
    x, weight, bias = options.values()
    return Typed(Linear, [x], {"weight": weight, "bias": bias})


def _recurrent(node: Node, options: Options) -> Typed:
    held = options.get("params") or [options["w_ih"], options["w_hh"]]
    matrices = tuple(of for of in held if len(_shape(of)) > 1)
    return Typed(Recurrent, [next(iter(options.values()))], {"matrices": matrices})


def _attention(node: Node, options: Options) -> Typed:
    inputs = [options[name] for name in ("query", "key", "value")]
    return Typed(Attention, inputs, {}, {"scale": options.get("scale")})


def _batch_norm(node: Node, options: Options) -> Typed | None:
    """A normalisation with statistics that it is given, of which nothing else is read."""
    x, gamma, beta, mean, variance, *_ = options.values()
    if options.get("training") or not (isinstance(mean, Node) and isinstance(variance, Node)):
        return None
    if node.target == NATIVE_BATCH_NORM and not gives_first_result(node):
        return None
    weights = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
    return Typed(BatchNorm, [x], weights, {"epsilon": options["eps"]})


def _layer_norm(node: Node, options: Options) -> Typed:
    weights = {"gamma": options["weight"], "beta": options.get("bias")}
    return Typed(LayerNorm, [options["input"]], weights, {"axes": len(options["normalized_shape"])})


def _group_norm(node: Node, options: Options) -> Typed:
    weights = {"gamma": options["weight"], "beta": options["bias"]}
    return Typed(GroupNorm, [options["input"]], weights, {"groups": options["num_groups"]})


def _instance_norm(node: Node, options: Options) -> Typed | None:
    """By statistics of each image: a GroupNorm with a group a channel."""
    x, groups = options["input"], _shape(options["input"])[1]
    if not options["use_input_stats"] or not isinstance(groups, int):
        return None
    weights = {"gamma": options["weight"], "beta": options["bias"]}
    return Typed(GroupNorm, [x], weights, {"groups": groups})


def _parametric_relu(node: Node, options: Options) -> Typed:
    return Typed(ParametricReLU, [options["self"]], {"slope": options["weight"]})


def _one_input(kind: type[Op]) -> Callable[[Node, Options], Typed]:
    return lambda node, options: Typed(kind, [next(iter(options.values()))])


def _pooling(node: Node, options: Options) -> Typed | None:
    """Of (batch, chan, ...) as the name says; without a batch, the channels are elsewhere."""
    x = next(iter(options.values()))
    axes = next(int(letter) for letter in short_name(node) if letter.isdigit())
    return Typed(Pooling, [x]) if len(_shape(x)) == axes + 2 else None


def _reshape(node: Node, options: Options) -> Typed | None:
    x = next(iter(options.values()))
    return Typed(Reshape, [x]) if "dtype" not in options else None


def _transpose(node: Node, options: Options) -> Typed | None:
    """The permutation that it makes of axes of different lengths."""
    x, *settings = options.values()
    rank = len(_shape(x))
    if rank > len(_PRIMES):
        return None
    target: Any = node.target
    turned = target(torch.empty(_PRIMES[:rank], device="meta"), *settings).shape
    permutation = tuple(_PRIMES.index(length) for length in turned)
    return Typed(Transpose, [x], {}, {"permutation": permutation})


def _concatenate(node: Node, options: Options) -> Typed:
    axis = options["dim"] % len(_shape(node))
    settings = {"axis": axis, "stacks": short_name(node) == "stack"}
    return Typed(Concatenate, options["tensors"], {}, settings)


def _softmax(node: Node, options: Options) -> Typed:
    axis = options["dim"] % max(1, len(_shape(node)))
    return Typed(Softmax, [options["self"]], {}, {"axis": axis})


def _reduction(node: Node, options: Options) -> Typed | None:
    rank = len(_shape(options["self"]))
    if isinstance(node.meta["val"], tuple | list):
        return None  # with indices
    dims = options.get("dim")
    dims = [dims] if isinstance(dims, int) else dims or range(rank)
    axes = tuple(sorted(dim % max(1, rank) for dim in dims))
    settings = {"axes": axes, "keepdims": bool(options.get("keepdim"))}
    return Typed(Reduction, [options["self"]], {}, settings)


def _slice(node: Node, options: Options) -> Typed | None:
    """Along an axis of a known size; a whole axis as it is, whatever its size."""
    x, dim = options["self"], options["dim"]
    start, stop, step = options["start"] or 0, options.get("end"), options.get("step", 1)
    if stop is None and "length" in options:
        stop = start + options["length"] if isinstance(start, int) else start
    shape = _shape(x)
    axis = dim % len(shape)
    if (start, step) == (0, 1) and (stop is None or stop == sys.maxsize):
        return Typed(Identity, [x])
    if not all(isinstance(of, int) for of in (shape[axis], start, step, stop or 0)):
        return None
    start, stop, step = slice(start, stop, step).indices(shape[axis])
    return Typed(Slice, [x], {}, {"axis": axis, "start": start, "stop": stop, "step": step})


def _select(node: Node, options: Options) -> Typed | None:
    x, dim, index = (options[name] for name in ("self", "dim", "index"))
    axis = dim % len(_shape(x))
    size = _shape(x)[axis]
    if not (isinstance(index, int) and isinstance(size, int)):
        return None
    start = index % size
    settings = {"axis": axis, "start": start, "stop": start + 1, "keepdims": False}
    return Typed(Slice, [x], {}, settings)


def _split(node: Node, options: Options) -> Typed | None:
    x, axis = options["self"], options["dim"] % len(_shape(options["self"]))
    keepdims = short_name(node) != "unbind"
    lengths = [part.shape[axis] if keepdims else 1 for part in node.meta["val"]]
    if not all(isinstance(length, int) for length in lengths):
        return None
    settings = {"axis": axis, "lengths": tuple(lengths), "keepdims": keepdims}
    return Typed(Split, [x], {}, settings)


def _insert(node: Node, options: Options) -> Typed | None:
    """Without a step, of known bounds; the part alone where it is the whole axis."""
    whole, part, axis = options["self"], options["src"], options["dim"] % len(_shape(node))
    size, bounds = _shape(whole)[axis], (options["start"], options["end"], options["step"])
    if bounds in ((None, None, 1), (0, sys.maxsize, 1)):
        return Typed(Identity, [part])
    if not (isinstance(size, int) and all(isinstance(of, int | None) for of in bounds)):
        return None
    start, stop, step = slice(*bounds).indices(size)
    settings = {"axis": axis, "start": start, "stop": stop}
    return Typed(Insert, [whole, part], {}, settings) if step == 1 else None


def _copy(node: Node, options: Options) -> Typed | None:
    """What is written into another value of its shape."""
    into, x = options["self"], options["src"]
    return Typed(Identity, [x]) if _shape(into) == _shape(x) else None


def _take(node: Node, options: Options) -> Typed | None:
    """By one tensor of integers along one axis."""
    x, indices = options["self"], options.get("indices") or [options.get("index")]
    (axis, index), *more = [(at, of) for at, of in enumerate(indices) if of is not None]
    if "dim" in options:
        axis = options["dim"] % len(_shape(x))
    if more or index.meta["val"].dtype in (torch.bool, torch.uint8):
        return None
    return Typed(Take, [x], {}, {"axis": axis, "rank": len(_shape(index))})


def _scan(node: Node, options: Options) -> Typed | None:
    """Along the axes that it names."""
    dims = options["dims"] if "dims" in options else [options["dim"]]
    axes = tuple(sorted(axis % max(1, len(_shape(node))) for axis in dims))
    return Typed(Scan, [options["self"]], {}, {"axes": axes}) if axes else None


def _padding(node: Node, options: Options) -> Typed | None:
    x, pads, *_ = options.values()
    rank = len(_shape(x))
    pairs = zip(range(rank - 1, -1, -1), pads[::2], pads[1::2], strict=False)
    padded = sorted((axis, *both) for axis, *both in pairs if any(both))
    if not all(isinstance(of, int) for one in padded for of in one):
        return None
    axes, before, after = zip(*padded, strict=True) if padded else ((), (), ())
    constant = options.get("mode", short_name(node)) in ("constant", "constant_pad_nd")
    settings = {"axes": axes, "before": before, "after": after, "constant": constant}
    return Typed(Padding, [x], {}, settings)


MULTIPLICATIONS = (
    *("conv1d", "conv2d", "conv3d", "convolution", "linear"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
)


def _named(make: Callable[[Node, Options], Typed | None], names: str) -> Iterator[tuple[str, Any]]:
    return ((name, make) for name in names.split())


_MAKERS: dict[str, Callable[[Node, Options], Typed | None]] = {
    **dict.fromkeys(MULTIPLICATIONS, _convolution),
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    **dict(_named(_concatenate, "cat stack")),
    "prelu": _parametric_relu,
    "select": _select,
    "slice_scatter": _insert,
    "copy": _copy,
    **dict(_named(_take, "index index_select")),
    **dict(_named(_scan, "roll flip cumsum")),
    **dict(_named(_one_input(SizesOf), "sym_size")),
    **dict(_named(_slice, "slice narrow")),
    **dict(_named(_split, "chunk split split_with_sizes unbind")),
    **dict(_named(_batch_norm, "batch_norm _native_batch_norm_legit_no_training")),
    **dict(_named(_recurrent, "lstm gru rnn_tanh rnn_relu")),
    **dict(_named(_recurrent, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")),
    **dict(_named(_one_input(Identity), "dropout feature_dropout detach alias clone contiguous")),
    **dict(_named(_one_input(Activation), "hardswish log_sigmoid to _to_copy")),
    **dict(_named(_pooling, "max_pool1d max_pool2d max_pool3d")),
    **dict(_named(_pooling, "avg_pool1d avg_pool2d avg_pool3d")),
    **dict(_named(_pooling, "adaptive_avg_pool1d adaptive_avg_pool2d")),
    **dict(_named(_pooling, "adaptive_avg_pool3d _adaptive_avg_pool2d")),
    **dict(_named(_pooling, "upsample_nearest1d upsample_nearest2d upsample_nearest3d")),
    **dict(_named(_pooling, "upsample_linear1d upsample_bilinear2d upsample_bicubic2d")),
    **dict(_named(_reshape, "view _unsafe_view reshape flatten unflatten squeeze unsqueeze")),
    **dict(_named(_reshape, "reshape_as view_as")),
    **dict(_named(_transpose, "permute transpose t mT numpy_T movedim swapaxes moveaxis")),
    "expand": _expand,
    "repeat_interleave": _repeat,
    **dict(_named(_softmax, "softmax _softmax log_softmax _log_softmax")),
    **dict(_named(_reduction, "mean sum amax amin linalg_vector_norm")),
    **dict(_named(_padding, "pad constant_pad_nd reflection_pad1d reflection_pad2d")),
    **dict(_named(_padding, "replication_pad1d replication_pad2d")),
}
