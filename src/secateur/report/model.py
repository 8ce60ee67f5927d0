"""What was done, layer by layer, as data: saved as JSON, shown by `secateur.render.terminal`."""

from __future__ import annotations

import dataclasses
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.data.sources import FEW_IMAGES, MAX_IMAGES, Images
from secateur.data.streams import digests
from secateur.errors import ModelError
from secateur.evaluation.inference import (
    Evaluation,
    EvaluationSet,
    compare,
    first_output,
    one_answer,
)
from secateur.frontends import named_tensors, parameters, with_parameters
from secateur.hardware.requirements import Gate, LayerFacts, Machine, RuntimeReport, gates, survey
from secateur.network.graph import ON_THE_FLY, Graph, Layer, Shares
from secateur.pruning.allocations import Curve
from secateur.pruning.run import PruningRun
from secateur.pruning.search import Try
from secateur.pruning.walk import LayerResult, Walked
from secateur.support.files import write_file
from secateur.support.serialization import Saved, to_plain
from secateur.version import __version__

if TYPE_CHECKING:
    from secateur.hardware.bench import Bench

_LOST = 0.99  # error of a layer, relative to its variance, that leaves nothing of it
_SHOWN = 5  # layers that a warning names
_BLANK = 0.9  # of the images


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """A pruned layer.

    Attributes:
        name: as in the state dict, without ".weight".
        kind: "conv" or "linear".
        shape: of the weight.
        weights, zeros: counts.
        sparsity: zeros / weights.
        macs: multiply-accumulates per image, dense.
        bytes: of the weights, dense.
        packed_bytes: of a mask (one bit per weight) and the weights that are not zero.
        relative_error: mean squared output error over the outputs' variance, on the
            calibration samples the layer was fitted to.
        damping: relative damping used in the solve; 0 for methods that solve nothing.
        samples: output positions the statistics were taken from.
        sensitivity: damage to the network's output when this layer alone is pruned, where the
            allocation has measured it.
        gates: by runtime, what this layer lacks for its zeros to be left out; see
            `secateur.hardware.requirements`.
        notes: whatever departed from the ordinary.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    sparsity: float
    macs: int
    bytes: int
    packed_bytes: int
    relative_error: float
    damping: float
    samples: int
    sensitivity: Curve | None = None
    gates: tuple[Gate, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """A layer that was left dense, and why; `macs` and `bytes` as in `LayerReport`."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    macs: int
    bytes: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What the network was calibrated on."""

    source: str
    images: int
    shape: tuple[int, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The network after a step of a recipe, this one and those before it together.

    Attributes:
        name: of the step.
        calibration: agreement and KL against the dense network on the calibration images.
        evaluation: on evaluation data, where they were given.
    """

    name: str
    calibration: Evaluation | None = None
    evaluation: Evaluation | None = None


@dataclass(frozen=True, kw_only=True)
class SearchReport:
    """How the largest sparsity within `max_drop` was found.

    Attributes:
        measure: what a drop is, in points: "top-1" lost, or "disagreement" with the dense network.
        judged_on: "evaluation images", or "held-back calibration images".
        images: how many.
        sparsity, drop, error: of the try that was kept; its drop has this standard error.
        tries: all, one walk each, in their order.
    """

    measure: str
    judged_on: str
    images: int
    sparsity: float
    drop: float
    error: float
    tries: tuple[Try, ...]


@dataclass(kw_only=True)
class Report(Saved):
    """Everything worth knowing about a pruned network.

    Attributes:
        synthetic: generator and seed of the calibration images, when they are not real.
        sparsity: zeros / weights over the pruned layers, as reached.
        network_sparsity: zeros / parameters over the whole network.
        macs_fraction: multiply-accumulates with weights that are not zero, over all of the dense
            network's; only a runtime that leaves out the others is faster.
        bytes_fraction: of a packed file over the dense network's; see `Costs`.
        requested: the settings of the call.
        search: how the sparsity was found, where `max_drop` was asked for.
        layers: the pruned layers, in execution order.
        dense_layers: the others, with the reason.
        data: the calibration images.
        seconds: wall-clock time by step, and "total".
        calibration: agreement and KL against the dense network on the calibration images
            themselves (optimistic: the layers were fitted to them), or the output error where
            the output is no table of scores; None when not measured.
        steps: what each step of a recipe of several steps led to.
        evaluation: by network ("dense", "pruned"), where evaluation data were given.
        runtimes: which could be faster with these zeros on the machine that wrote the report.
        exports: what was found out about each file written, by file name.
        warnings: read these first.
        notes: other departures from the ordinary.
        versions: of secateur, torch and Python.
    """

    schema = "secateur.report"
    schema_version = 5

    synthetic: str | None = None
    sparsity: float
    network_sparsity: float
    macs_fraction: float
    bytes_fraction: float
    requested: dict[str, Any]
    search: SearchReport | None = None
    layers: list[LayerReport]
    dense_layers: list[DenseLayer]
    data: DataReport
    seconds: dict[str, float]
    calibration: Evaluation | None = None
    steps: list[StepReport] = field(default_factory=list)
    evaluation: dict[str, Evaluation] = field(default_factory=dict)
    runtimes: list[RuntimeReport] = field(default_factory=list)
    exports: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        target = self.requested.get("target")
        value = target.get("value") if isinstance(target, dict) else None
        if self.search is not None and type(value) not in (int, float):
            raise ValueError("requested has no target, which the search went by")

    def save_page(
        self, path: str | Path, *, bench: Bench | None = None, force: bool = False
    ) -> None:
        """Writes the report as one HTML file that loads nothing, with latencies where given.

        Raises:
            OutputError: the file exists and `force` is not given, or it cannot be written.
        """
        from secateur.render.page import report_page

        write_file(Path(path), report_page(self, bench).encode(), force=force)

    def __str__(self) -> str:
        from secateur.render.terminal import render_report

        return render_report(self)


def build_report(
    pruned: Any,
    run: PruningRun,
    walked: Walked,
    images: Images,
    settings: dict[str, Any],
    seconds: dict[str, float],
    notes: Sequence[str],
    warnings: Sequence[str],
    *,
    steps: list[StepReport],
    search: SearchReport | None,
    evaluation: dict[str, Evaluation],
) -> Report:
    """Puts together what a walk did; zeros are counted in the pruned model itself."""
    tensors = named_tensors(pruned)
    curves = list(run.division.curves) or [None] * len(walked.results)
    layers = [
        _layer_report(result, tensors, curve)
        for result, curve in zip(walked.results, curves, strict=True)
    ]
    chosen = {layer.name for layer in layers}
    others = [layer for layer in run.graph.layers if layer.name not in chosen]
    kept = [layer.weights - layer.zeros for layer in layers]
    cast = any(of.is_floating_point() and of.dtype != torch.float32 for of in tensors.values())
    outputs = None if cast else walked.pruned  # the walk's are those of float32 weights
    calibration = _near(outputs, pruned, images.tensor, walked.dense)
    return Report(
        synthetic=images.synthetic,
        sparsity=sum(layer.zeros for layer in layers) / sum(layer.weights for layer in layers),
        network_sparsity=_zero_share(parameters(pruned)),
        macs_fraction=run.costs.macs.share(kept),
        bytes_fraction=run.costs.bytes.share(kept),
        requested=settings,
        search=search,
        layers=layers,
        dense_layers=[_dense_layer(layer, tensors) for layer in others],
        data=DataReport(
            source=images.source,
            images=len(images.tensor),
            shape=tuple(images.tensor.shape[1:]),
            notes=tuple(images.notes),
        ),
        seconds=seconds,
        calibration=calibration,
        steps=steps,
        evaluation=evaluation,
        runtimes=survey([layer.gates for layer in layers], Machine.here()),
        warnings=[
            *_warnings(len(images.tensor)),
            *_alike(images.tensor),
            *warnings,
            *run.departures(walked, kept),
            *_computed(run.graph.layers),
            *_undecided(search, run.target.value),
            *_gone(layers, run.present),
            *_doubtful(calibration),
            *_one_answer(calibration, walked.dense, evaluation),
        ],
        notes=[*run.graph.notes, *_thin(layers, len(images.tensor)), *notes],
        versions={
            "secateur": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def describe(setting: Any) -> Any:
    """A settings object as plain data: its name and its fields; of others what they print."""
    if dataclasses.is_dataclass(setting) and not isinstance(setting, type):
        fields = dataclasses.fields(setting)
        held = {of.name: _described(getattr(setting, of.name)) for of in fields}
        return {"name": type(setting).__name__, **held}
    text = getattr(setting, "__name__", str(setting))
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
    zeros = int((weight == 0).sum())
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        shape=tuple(layer.shape),
        weights=layer.weights,
        zeros=zeros,
        sparsity=zeros / layer.weights,
        macs=layer.macs,
        bytes=weight.nbytes,
        packed_bytes=math.ceil(layer.weights / 8) + (layer.weights - zeros) * weight.element_size(),
        relative_error=result.relative_error,
        damping=result.damping,
        samples=result.samples,
        sensitivity=curve,
        gates=gates(LayerFacts.of(layer, weight, pruned=True)),
        notes=result.notes,
    )


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
    model: Any,
    steps: Mapping[str, Mapping[str, Tensor]],
    images: Tensor,
    dense: Tensor | None,
    evaluation_set: EvaluationSet | None = None,
) -> list[StepReport]:
    """Compares the network after each step with the dense one.

    Args:
        model: the dense network.
        steps: changed parameters after each step, by its name.
        images: calibration inputs.
        dense: the dense network's first output for them.
        evaluation_set: evaluation data, where there are any.
    """
    reports = []
    for name, changes in steps.items():
        network = with_parameters(model, changes)
        near = _near(None, network, images, dense)
        far = None if evaluation_set is None else evaluation_set.evaluate(network)
        reports.append(StepReport(name=name, calibration=near, evaluation=far))
    return reports


def _near(
    outputs: Tensor | None, network: Any, images: Tensor, dense: Tensor | None
) -> Evaluation | None:
    """A network against the dense one's first output, from its own or from a forward pass.

    None where these are no tensors of one shape with a row for each image.
    """
    if dense is None or dense.dim() == 0 or len(dense) != len(images):
        return None
    try:
        outputs = first_output(network, images) if outputs is None else outputs
        return compare(outputs.float(), reference=dense.float())
    except ModelError:  # the warnings say so
        return None


def _warnings(images: int) -> list[str]:
    if images >= FEW_IMAGES:
        return []
    return [
        f"only {images} calibration image{'s' if images > 1 else ''}, expected a few hundred: "
        "the accuracy lost may be large; add images if you can"
    ]


def _alike(images: Tensor) -> list[str]:
    """A warning where many calibration images are few different ones, or blank."""
    count = len(images)
    if count < FEW_IMAGES:  # which is a warning already
        return []
    different = len(set(digests(images)))
    if different < FEW_IMAGES:
        return [
            f"the {count} calibration images are copies of only {different}, expected a few "
            "hundred different ones: check what gives them; the accuracy lost may be large"
        ]
    channels = images.flatten(2) if images.dim() > 3 else images.flatten(1)
    blank = (channels.amax(-1) == channels.amin(-1)).reshape(count, -1).all(1)
    if channels.shape[-1] == 1 or blank.sum() < _BLANK * count:
        return []
    return [
        f"{int(blank.sum())} of {count} calibration images are blank, one value in each channel: "
        "check what gives them; the accuracy lost may be large"
    ]


def _gone(layers: Sequence[LayerReport], present: Sequence[int]) -> list[str]:
    """A warning that names the layers of which nothing is left.

    Args:
        layers: the pruned ones.
        present: their weights that were not zero in the dense network.
    """
    gone = [
        layer.name
        for layer, before in zip(layers, present, strict=True)
        if before and (layer.zeros == layer.weights or layer.relative_error >= _LOST)
    ]
    if not gone:
        return []
    shown = ", ".join(gone[:_SHOWN]) + (f" and {len(gone) - _SHOWN} more" * (len(gone) > _SHOWN))
    return [
        f"{len(gone)} of {len(layers)} layers have no weight left or have lost {_LOST:.0%} or more "
        f"of what they compute ({shown}): ask for fewer zeros, or exclude them"
    ]


def _thin(layers: Sequence[LayerReport], images: int) -> list[str]:
    """What more images would be good for, where they would: layers with few samples."""
    thin = [of for of in layers if of.samples < math.prod(of.shape[1:])]
    if not thin or not FEW_IMAGES <= images < MAX_IMAGES:
        return []
    worst = min(thin, key=lambda of: of.samples / math.prod(of.shape[1:]))
    return [
        f"{images} images give {len(thin)} of {len(layers)} layers fewer samples than inputs "
        f"({worst.name}: {worst.samples} for {math.prod(worst.shape[1:])}): more images, up to "
        f"{MAX_IMAGES}, would keep more accuracy"
    ]


def _computed(layers: Sequence[Layer]) -> list[str]:
    """A warning where most weights stay dense for they are computed in each run."""
    share = Shares.of(layers).computed
    if share <= 0.5:
        return []
    of = [layer for layer in layers if str(layer.obstacle).startswith(ON_THE_FLY)]
    names = ", ".join(layer.name for layer in of[:3]) + (", ..." if len(of) > 3 else "")
    reasons = "; ".join(dict.fromkeys(str(layer.obstacle) for layer in of))
    return [f"{share:.0%} of the weights stay dense, in the layers {names}: {reasons}"]


def _doubtful(calibration: Evaluation | None) -> list[str]:
    """A warning where nothing tells how far the outputs are from the dense ones, or they are far.

    An error of the whole variance is what the mean output would have, whatever goes in.
    """
    if calibration is None:
        return [
            "the network's first output is not one tensor with a row for each image: how far it "
            "is from the dense network's was not measured"
        ]
    error = calibration.output_error
    if error is None or error <= 1:
        return []
    return [
        f"on the calibration images the outputs' error is {100 * error:,.0f} % of their variance, "
        "more than their mean alone would have: prune less, exclude the last layers, or bring "
        "more images"
    ]


def _one_answer(
    calibration: Evaluation | None, dense: Tensor | None, evaluation: Mapping[str, Evaluation]
) -> list[str]:
    """A warning where agreement on the calibration images, and no other figure, means nothing."""
    if calibration is None or dense is None or evaluation:
        return []
    return one_answer(dense, "calibration images")


def _undecided(search: SearchReport | None, limit: float) -> list[str]:
    """A warning where the images are too few to tell whether the loss is within the limit.

    The standard error counts as that of one image at least: few images may show no loss at all.
    """
    if search is None:
        return []
    error = max(search.error, 100 / search.images)
    if error <= limit / 2:
        return []
    return [
        f"{search.images} {search.judged_on} cannot tell a drop of {limit:g} points: its standard "
        f"error is {error:.2f}; add images"
    ]


@dataclass(frozen=True)
class Inspection:
    """A network's layers, before anything is pruned.

    Attributes:
        layers: in order of first use; see `secateur.network.graph.Layer`.
        gates: of each layer, by runtime: what it lacks for zeros in it to be left out, however
            many these will be.
        runtimes: which could be faster on this machine, if there are enough zeros.
    """

    layers: Sequence[Layer]
    gates: Sequence[Sequence[Gate]] = ()
    runtimes: Sequence[RuntimeReport] = ()

    @classmethod
    def of(cls, graph: Graph) -> Inspection:
        """The layers of a traced network, against the runtimes on this machine."""
        layers = tuple(graph.layers)
        weights = [graph.parameters.get(str(layer.parameter)) for layer in layers]
        facts = [
            LayerFacts.of(layer, weight, pruned=False)
            for layer, weight in zip(layers, weights, strict=True)
        ]
        # no pattern of this version makes 2:4 zeros
        found = [gates(dataclasses.replace(of, two_of_four=False)) for of in facts]
        return cls(layers, found, survey(found, Machine.here()))

    def data(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        layers = [
            {
                "name": layer.name,
                "kind": layer.kind,
                "shape": list(layer.shape),
                "output": list(layer.output),
                "weights": layer.weights,
                "macs": layer.macs,
                "pruned": not status(layer),
                "reason": status(layer),
                "gates": [dataclasses.asdict(gate) for gate in of],
            }
            for layer, of in zip(self.layers, self.gates, strict=True)
        ]
        return {"layers": layers, "runtimes": [dataclasses.asdict(of) for of in self.runtimes]}

    @property
    def prunable_weights(self) -> int:
        """Weights of the layers that are pruned unless excluded."""
        return sum(layer.weights for layer in self.layers if not status(layer))

    def __str__(self) -> str:
        from secateur.render.terminal import render_inspection

        return render_inspection(self)


def status(layer: Layer) -> str:
    """Why a layer stays dense by default; empty when it is pruned."""
    return layer.obstacle or layer.protected or ""
