"""A report put together: from what a walk did, and from the pruned network itself."""

from __future__ import annotations

import dataclasses
import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.core.outputs import Judge
from secateur.data.images import Images
from secateur.errors import ModelError
from secateur.evaluation.inference import first_output
from secateur.evaluation.metrics import compare
from secateur.evaluation.results import Evaluation
from secateur.frontends import Frontend
from secateur.hardware.layer_facts import LayerFacts
from secateur.hardware.machine import Machine
from secateur.hardware.requirements import requirements, survey
from secateur.network.layers import Layer
from secateur.network.samples import Samples
from secateur.pruning.allocations import Curve
from secateur.pruning.channels.costs import nbytes
from secateur.pruning.run import PruningRun
from secateur.pruning.walk import LayerResult, WalkResult
from secateur.report import cautions
from secateur.report.latency import LatencyReport
from secateur.report.layers import DenseLayer, LayerReport
from secateur.report.model import DataReport, Report, SearchReport, StepReport
from secateur.support.group import Group
from secateur.support.serialization import to_plain
from secateur.version import __version__

_LONGEST = 1000  # characters of what a setting prints


def build_report(
    pruned: Frontend,
    run: PruningRun,
    walked: WalkResult,
    images: Images,
    settings: dict[str, Any],
    seconds: dict[str, float],
    notes: Sequence[str],
    warnings: Sequence[str],
    *,
    steps: list[StepReport],
    search: SearchReport | None,
    evaluation: dict[str, Evaluation],
    latency: LatencyReport | None = None,
    then: WalkResult | None = None,
    left: Sequence[Layer] | None = None,
    output: str | int | None = None,
) -> Report:
    """Puts together what a walk did; zeros are counted in the pruned model itself.

    Args:
        pruned: the network to return, in float32.
        run, walked: what was done to the dense network.
        images, settings, seconds, notes, warnings: of the call.
        steps, search, evaluation, latency: see `Report`.
        then: zeros that were made in what channels have left.
        left: layers of the pruned network, where channels have left it; None = the dense one's.
        output: name or number of the output that it is judged by; None = the first.
    """
    tensors, asked = pruned.tensors(), settings["target"]
    layers = [_layer_report(result, tensors, curve) for result, curve in run.outcomes(walked, then)]
    kept = [layer.weights - layer.zeros for layer in layers]
    macs, size = run.costs.shares(kept) if left is None else cost_left(pruned, left, run)
    chosen = {layer.name for layer in layers}
    others = [layer for layer in run.every_layer if layer.name not in chosen]
    cast = any(of.is_floating_point() and of.dtype != torch.float32 for of in tensors.values())
    same = then is None and not cast  # the walk's are those of float32 weights
    outputs = walked.pruned if same else None
    judge = run.graph.judge

    def told(texts: Sequence[str]) -> list[str]:
        return [images.samples.called(text) for text in texts]

    calibration = compared_with(
        walked.dense,
        pruned,
        images.samples,
        outputs,
        judge=judge,
        output=output,
        group=run.execution.group,
    )
    return Report(
        synthetic=images.synthetic,
        sparsity=sum(layer.zeros for layer in layers) / sum(layer.weights for layer in layers),
        network_sparsity=_zero_share(pruned.parameters()),
        macs_fraction=macs,
        bytes_fraction=size,
        requested=settings,
        search=search,
        layers=layers,
        channels=run.groups(walked),
        dense_layers=[_dense_layer(layer, tensors) for layer in others],
        data=DataReport(
            source=images.source,
            images=len(images.samples),
            shape=tuple(images.samples.first.shape[1:]),
            inputs=_inputs(images.samples),
            notes=tuple(images.notes),
        ),
        seconds=seconds,
        calibration=calibration,
        steps=steps,
        evaluation=evaluation,
        latency=latency,
        runtimes=[]
        if walked.removed
        else survey([layer.requirements for layer in layers], Machine.here()),
        summary=[
            *run.summary(reconstructed=walked.reconstruction is not None),
            f"Asked for: {asked['name']} {asked['value']:g}, {run.target.meaning}.",
        ],
        warnings=[
            *told(cautions.few(len(images.samples))),
            *told(cautions.alike(images.samples)),
            *warnings,
            *run.departures(walked, kept),
            *cautions.computed(run.graph.layers),
            *cautions.slow(latency, run.target),
            *told(cautions.undecided(search, run.target.value)),
            *cautions.gone(layers, _present(run, layers)),
            *told(cautions.doubtful(calibration)),
            *told(
                cautions.same_answers(
                    calibration, walked.dense, evaluation, judge, images.samples.mask
                )
            ),
        ],
        notes=[
            *run.graph.notes,
            *pruned.notes,
            *told(cautions.thin(layers, len(images.samples))),
            *notes,
        ],
        versions=versions(),
    )


def _inputs(samples: Samples) -> dict[str, tuple[int, ...]]:
    """The shape of each input, where there are several."""
    return samples.shapes if len(samples.tensors) > 1 else {}


def _present(run: PruningRun, layers: Sequence[LayerReport]) -> list[int]:
    """Weights of layers that were not zero in the dense network."""
    by_name = {of.name: count for of, count in zip(run.layers, run.present, strict=True)}
    return [by_name[layer.name] for layer in layers]


def cost_left(network: Frontend, layers: Sequence[Layer], run: PruningRun) -> tuple[float, float]:
    """Shares of the multiply-accumulates and of the bytes that a network has of the dense one's.

    Multiply-accumulates with a zero weight do not count, and a weight with many zeros is packed.

    Args:
        network: smaller than the dense one.
        layers: its layers, with or without zeros.
        run: what was done to the dense network.
    """
    tensors, saved = network.tensors(), nbytes(network.saved_tensors())
    macs, size, seen = 0.0, float(saved), set[str]()
    for layer in layers:
        weight = tensors.get(str(layer.parameter))
        if weight is None:
            macs += layer.macs
            continue
        macs += layer.macs * int(weight.count_nonzero()) / layer.weights
        if str(layer.parameter) not in seen:
            size -= max(0, weight.nbytes - _packed_bytes(layer, weight))
            seen.add(str(layer.parameter))
    dense = sum(of.macs for of in run.graph.layers)
    return macs / dense if dense else 1.0, size / run.costs.bytes.dense


def versions() -> dict[str, str]:
    """Of secateur, torch and Python."""
    return {
        "secateur": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def describe(setting: Any) -> Any:
    """A settings object as plain data: its name and its fields; of others what they print."""
    if dataclasses.is_dataclass(setting) and not isinstance(setting, type):
        fields = dataclasses.fields(setting)
        held = {of.name: _described(getattr(setting, of.name)) for of in fields}
        return {"name": type(setting).__name__, **held}
    text = getattr(setting, "__name__", str(setting))
    if len(text) > _LONGEST:  # of a tokenizer, its vocabulary
        text = type(setting).__name__
    return re.sub(r" at 0x[0-9a-f]+", "", text)  # an address tells nothing, and is never the same


def _described(value: Any) -> Any:
    """A field of a settings object, which may be somebody else's, as plain data."""
    try:
        return to_plain(value, "setting")
    except TypeError:
        return describe(value)


def _layer_report(
    result: LayerResult, tensors: Mapping[str, Tensor], curve: Curve | None
) -> LayerReport:
    layer = result.layer
    weight = tensors[str(layer.parameter)]
    shape = tuple(weight.shape)
    zeros = layer.weights - int(weight.count_nonzero())
    whole = shape == tuple(layer.shape)
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        shape=tuple(layer.shape),
        columns=layer.columns,
        weights=layer.weights,
        zeros=zeros,
        sparsity=zeros / layer.weights,
        macs=layer.macs,
        bytes=layer.weights * weight.element_size(),
        packed_bytes=_packed_bytes(layer, weight) if whole else weight.nbytes,
        shape_left=None if whole else shape,
        relative_error=result.relative_error,
        damping=result.damping,
        samples=result.samples,
        sensitivity=curve,
        requirements=requirements(LayerFacts.of(layer, weight, pruned=True)) if whole else (),
        notes=result.notes,
    )


def _packed_bytes(layer: Layer, weight: Tensor) -> int:
    """A bit for each weight, and those that are not zero."""
    return math.ceil(layer.weights / 8) + int(weight.count_nonzero()) * weight.element_size()


def _dense_layer(layer: Layer, tensors: Mapping[str, Tensor]) -> DenseLayer:
    reason = layer.obstacle or layer.protected or "not among the layers asked for"
    weight = tensors.get(str(layer.parameter))
    return DenseLayer(
        name=layer.name,
        kind=layer.kind,
        shape=tuple(layer.shape),
        weights=layer.weights,
        macs=layer.macs,
        bytes=0 if weight is None else weight.nbytes,
        reason=reason,
    )


def _zero_share(tensors: Any) -> float:
    held = list(tensors)
    return sum(int((t == 0).sum()) for t in held) / sum(t.numel() for t in held)


def step_reports(
    model: Frontend,
    steps: Mapping[str, Mapping[str, Tensor]],
    compared: Callable[[Frontend], Evaluation | None],
    evaluated: Callable[[Frontend], Evaluation | None],
) -> list[StepReport]:
    """Compares the network after each step with the dense one.

    Args:
        model: the dense network.
        steps: changed parameters after each step, by its name.
        compared: a network with the dense one on the calibration inputs.
        evaluated: a network on evaluation data; None where there are none.
    """
    reports = []
    for name, changes in steps.items():
        network = model.edited(changes)
        near, far = compared(network), evaluated(network)
        reports.append(StepReport(name=name, calibration=near, evaluation=far))
    return reports


def compared_with(
    dense: Tensor | None,
    network: Frontend,
    samples: Samples,
    outputs: Tensor | None = None,
    *,
    judge: Judge | None = None,
    output: str | int | None = None,
    group: Group | None = None,
) -> Evaluation | None:
    """A network against the dense one's output, from its own or from a forward pass.

    None where these are no tensors of one shape with a row for each image.

    Args:
        dense: what the dense network is judged by.
        network: the other.
        samples: that both are run on.
        outputs: what the other gives; None = it is run.
        judge: what they are judged by.
        output: name or number of the output; None = the first.
        group: the processes that run it together; None = this one alone.
    """
    if dense is None or dense.dim() == 0 or len(dense) != len(samples):
        return None
    try:
        if outputs is None:
            outputs = first_output(network, samples, output=output, group=group)
        found = compare(outputs.float(), reference=dense.float(), judge=judge, weight=samples.mask)
        return dataclasses.replace(found, noun=samples.noun)
    except ModelError:  # the warnings say so
        return None
