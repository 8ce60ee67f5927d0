"""How products of values, such as those of an attention, carry the numbers of channels.

What is summed over is joined: the dimensions of queries with those of keys. In a pass over whole
heads (`Numbering.whole`) each head of a factor is one channel, which goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from secateur.network.einsum import labelled
from secateur.network.moved import cut_moved
from secateur.network.numbering import NONE, Numbering, Numbers
from secateur.network.ops import Attention, Op, Product


def product(known: Numbering, op: Product) -> Numbers | None:
    """What is summed over is joined; other axes are handed on."""
    names, result = labelled(op.equation, [len(known.sizes(of) or ()) for of in op.inputs])
    if any(known.is_constant(name) for name in op.inputs):
        return known.fix_inputs(op, op.obstacle)
    return _contracted(known, op, [*zip(op.inputs, names, strict=True)], result)


def _contracted(
    known: Numbering, op: Op, factors: Sequence[tuple[str, Sequence[str]]], result: Sequence[str]
) -> Numbers | None:
    """Joins the factors' numbers along the axes that they share; those of one go on."""
    every = list(dict.fromkeys(label for _, labels in factors for label in labels))
    wide = [_spread(known.of(name), labels, every) for name, labels in factors]
    if known.whole:
        shared = [
            all(label in of for of in (result, *(to for _, to in factors))) for label in every
        ]
        wide = [
            known.by_row(of, [at for at, is_shared in enumerate(shared) if is_shared])
            for of in wide
        ]
    summed = {label for label in every if label not in result}
    found: Numbers | None = None
    for numbers in wide:
        along = [label for at, label in enumerate(every) if numbers.shape[at] > 1]
        if not along:
            continue
        if found is not None and found.shape != numbers.shape:
            return known.fix_inputs(op, "a product of channels with others")
        found = numbers if found is None else known.join(found, numbers, "a product")
        if summed & {*along} and len(wide) < 2:
            return known.fix_inputs(op, "a sum over it")
    if found is None:
        return None
    varying = {label for at, label in enumerate(every) if found.shape[at] > 1}
    if varying & summed:
        alone = [of for of in wide if of.shape != found.shape and (of == NONE).all()]
        if alone:  # the other factor has channels there that stay
            known.fix(found, "a product with what stays")
        elif len(factors) == 2:
            known.meet(*(name for name, _ in factors), divides=False)
        return None
    order = [every.index(label) for label in result]
    kept = found.transpose([*order, *(at for at in range(found.ndim) if at not in order)])
    return kept.reshape(kept.shape[: len(order)])


def _spread(numbers: Numbers, labels: Sequence[str], every: Sequence[str]) -> Numbers:
    """An array with an axis for each of all labels, in their order."""
    order = sorted(range(len(labels)), key=lambda at: every.index(labels[at]))
    held = numbers.transpose(order)
    shape = dict(zip((labels[at] for at in order), held.shape, strict=True))
    return held.reshape([shape.get(label, 1) for label in every])


def attention(known: Numbering, op: Attention) -> Numbers | None:
    """Queries and keys are joined along their width; the values' channels go on."""
    if len(op.inputs) < 3 or any(known.is_constant(of) for of in op.inputs) or op.heads > 1:
        return known.fix_inputs(op, op.obstacle)
    query, key, value = (_by_head(known, op, name) for name in op.inputs[:3])
    if any(of.shape[-2] > 1 for of in (query, key, value)):
        return known.fix_inputs(op, "an attention over channels")
    for name in op.inputs[3:]:
        known.fix(known.of(name), "a mask of an attention")
    if known.whole and any(of.size > of.shape[-1] for of in (query, key, value)):
        return _whole_heads(known, op, query, key, value)
    met = known.join(query, key, "multiplied with what stays")
    if met.shape[-1] > 1:
        known.meet(*op.inputs[:2], divides=op.scale is None)
    else:
        known.fix(met, "their heads leave as a whole, with those of the values")
    return value


def _by_head(known: Numbering, op: Attention, name: str) -> Numbers:
    """Numbers of queries, keys or values; of those that several heads of queries share, each."""
    numbers, sizes, queries = known.of(name), known.sizes(name), known.sizes(op.input)
    if sizes is None or queries is None or len(sizes) < 3 or numbers.shape[-3] == 1:
        return numbers
    return np.repeat(numbers, queries[-3] // sizes[-3], -3)


def _whole_heads(known: Numbering, op: Attention, *parts: Numbers) -> Numbers:
    """One number for each head, of the queries, keys and values alike."""
    axes = range(parts[0].ndim - 1)
    heads = parts[0][..., :1]
    for numbers in parts:
        heads = known.join(heads, known.by_row(numbers, axes), "heads with others that stay")
    for name in op.others:
        sizes = known.sizes(name) or ()
        if any(size > 1 for size in sizes[:-2]):
            cut_moved(known, name, heads)  # a mask for each head
    return heads
