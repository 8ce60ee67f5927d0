"""What was done, layer by layer, as data: saved as JSON, shown by `secateur.console`."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.allocations import Curve, Division
from secateur.data import FEW_IMAGES, Images
from secateur.errors import DataError
from secateur.evaluate import Evaluation, Judge, compare, predict
from secateur.frontends import named_tensors, parameters, with_parameters
from secateur.graph import Graph, Layer
from secateur.output import write_file
from secateur.search import Try
from secateur.targets import Costs
from secateur.version import __version__
from secateur.walk import LayerResult, Walked

SCHEMA = "secateur.report"
SCHEMA_VERSION = 4


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
        relative_error: mean squared output error over the outputs' variance, on the
            calibration samples the layer was fitted to.
        damping: relative damping used in the solve; 0 for methods that solve nothing.
        samples: output positions the statistics were taken from.
        sensitivity: damage to the network's output when this layer alone is pruned, where the
            allocation has measured it.
        notes: whatever departed from the ordinary.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    zeros: int
    sparsity: float
    macs: int
    relative_error: float
    damping: float
    samples: int
    sensitivity: Curve | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """A layer that was left dense, and why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
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
class Report:
    """Everything worth knowing about a pruned network.

    Attributes:
        synthetic: generator and seed of the calibration images, when they are not real.
        sparsity: zeros / weights over the pruned layers, as reached.
        network_sparsity: zeros / parameters over the whole network.
        macs_fraction: multiply-accumulates with weights that are not zero, over all of the dense
            network's; only a runtime that leaves out the others is faster.
        bytes_fraction: of a packed file over the dense network's; see `secateur.targets.Costs`.
        requested: the settings of the call.
        search: how the sparsity was found, where `max_drop` was asked for.
        layers: the pruned layers, in execution order.
        dense_layers: the others, with the reason.
        data: the calibration images.
        seconds: wall-clock time by step, and "total".
        calibration: agreement and KL against the dense network on the calibration images
            themselves (optimistic: the layers were fitted to them); None when not measured.
        steps: what each step of a recipe of several steps led to.
        evaluation: by network ("dense", "pruned"), where evaluation data were given.
        exports: what was found out about each file written, by file name.
        warnings: read these first.
        notes: other departures from the ordinary.
        versions: of secateur, torch and Python.
    """

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
    exports: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Writes JSON (UTF-8, `schema` and `schema_version` first).

        Raises:
            OutputError: the file exists and `force` is not given, or it cannot be written.
        """
        held = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        text = json.dumps(held, indent=2, ensure_ascii=False, default=str) + "\n"
        write_file(Path(path), text.encode(), force=force)

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Reads what `save` wrote.

        Raises:
            DataError: no such file, not a report, or of a newer schema.
        """
        try:
            held = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as a report: {error}") from error
        name, version = held.pop("schema", None), held.pop("schema_version", None)
        if name != SCHEMA or version != SCHEMA_VERSION:
            raise DataError(
                f"{path} has schema {name!r} version {version}, expected {SCHEMA!r} version "
                f"{SCHEMA_VERSION}: use the version of secateur that wrote it"
            )
        return cls._from(held)

    @classmethod
    def _from(cls, held: dict[str, Any]) -> Report:
        held["search"] = _load_search(held["search"])
        held["layers"] = [_load_layer(layer) for layer in held["layers"]]
        held["dense_layers"] = [DenseLayer(**_tuples(layer)) for layer in held["dense_layers"]]
        held["data"] = DataReport(**_tuples(held["data"]))
        held["calibration"] = _evaluation(held["calibration"])
        held["steps"] = [
            StepReport(
                name=step["name"],
                calibration=_evaluation(step["calibration"]),
                evaluation=_evaluation(step["evaluation"]),
            )
            for step in held["steps"]
        ]
        held["evaluation"] = {key: Evaluation(**of) for key, of in held["evaluation"].items()}
        return cls(**held)

    def __str__(self) -> str:
        from secateur.console import render_report

        return render_report(self)


def _load_layer(held: dict[str, Any]) -> LayerReport:
    curve = held["sensitivity"]
    return LayerReport(
        **_tuples({**held, "sensitivity": None if curve is None else Curve(**_tuples(curve))})
    )


def _load_search(held: dict[str, Any] | None) -> SearchReport | None:
    if held is None:
        return None
    return SearchReport(**{**held, "tries": tuple(Try(**one) for one in held["tries"])})


def build_report(
    pruned: Any,
    graph: Graph,
    walked: Walked,
    division: Division,
    images: Images,
    settings: dict[str, Any],
    seconds: dict[str, float],
    steps: list[StepReport],
    aligned: Sequence[tuple[str, str]],
    *,
    costs: Costs,
    search: SearchReport | None,
    evaluation: dict[str, Evaluation],
) -> Report:
    """Puts together what a walk did; zeros are counted in the pruned model itself."""
    tensors = named_tensors(pruned)
    curves = list(division.curves) or [None] * len(walked.results)
    layers = [
        _layer_report(result, tensors, curve)
        for result, curve in zip(walked.results, curves, strict=True)
    ]
    chosen = {layer.name for layer in layers}
    kept = [layer.weights - layer.zeros for layer in layers]
    notes = [f"channels aligned between {first} and {second}" for first, second in aligned]
    return Report(
        synthetic=images.synthetic,
        sparsity=sum(layer.zeros for layer in layers) / sum(layer.weights for layer in layers),
        network_sparsity=_zero_share(parameters(pruned)),
        macs_fraction=costs.macs.share(kept),
        bytes_fraction=costs.bytes.share(kept),
        requested=settings,
        search=search,
        layers=layers,
        dense_layers=[_dense_layer(layer) for layer in graph.layers if layer.name not in chosen],
        data=DataReport(
            source=images.source,
            images=len(images.tensor),
            shape=tuple(images.tensor.shape[1:]),
            notes=tuple(images.notes),
        ),
        seconds=seconds,
        calibration=_on_calibration_images(walked, pruned, images.tensor),
        steps=steps,
        evaluation=evaluation,
        warnings=_warnings(len(images.tensor)),
        notes=[*graph.notes, *notes],
        versions={
            "secateur": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    )


def describe(setting: Any) -> Any:
    """A settings object as plain data: its name and its fields."""
    if dataclasses.is_dataclass(setting) and not isinstance(setting, type):
        return {"name": type(setting).__name__, **dataclasses.asdict(setting)}
    return getattr(setting, "__name__", str(setting))


def _layer_report(
    result: LayerResult, tensors: Mapping[str, Tensor], curve: Curve | None
) -> LayerReport:
    layer = result.layer
    zeros = int((tensors[str(layer.parameter)] == 0).sum())
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        shape=tuple(layer.shape),
        weights=layer.weights,
        zeros=zeros,
        sparsity=zeros / layer.weights,
        macs=layer.macs,
        relative_error=result.relative_error,
        damping=result.damping,
        samples=result.samples,
        sensitivity=curve,
        notes=result.notes,
    )


def _dense_layer(layer: Layer) -> DenseLayer:
    reason = layer.obstacle or layer.protected or "not among the layers asked for"
    return DenseLayer(
        name=layer.name,
        kind=layer.kind,
        shape=tuple(layer.shape),
        weights=layer.weights,
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
    judge: Judge | None = None,
) -> list[StepReport]:
    """Compares the network after each step with the dense one.

    Args:
        model: the dense network.
        steps: changed parameters after each step, by its name.
        images: calibration inputs.
        dense: the dense network's first output for them.
        judge: of evaluation data, where there are any.
    """
    scores = dense if dense is not None and dense.dim() == 2 else None
    reports = []
    for name, changes in steps.items():
        network = with_parameters(model, changes)
        near = None if scores is None else compare(predict(network, images), reference=scores)
        far = None if judge is None else judge.evaluate(network)
        reports.append(StepReport(name=name, calibration=near, evaluation=far))
    return reports


def _on_calibration_images(walked: Walked, pruned: Any, images: Tensor) -> Evaluation | None:
    """From the walk's own outputs, or from a forward pass where no pruned stream was run."""
    dense = walked.dense
    if dense is None or dense.dim() != 2:
        return None
    outputs = predict(pruned, images) if walked.pruned is None else walked.pruned
    return compare(outputs, reference=dense)


def _warnings(images: int) -> list[str]:
    if images >= FEW_IMAGES:
        return []
    return [
        f"only {images} calibration image{'s' if images > 1 else ''}, expected a few hundred: "
        "the accuracy lost may be large; add images if you can"
    ]


@dataclass(frozen=True)
class Inspection:
    """A network's layers, before anything is pruned.

    Attributes:
        layers: in order of first use; see `secateur.graph.Layer`.
    """

    layers: Sequence[Layer]

    @property
    def prunable_weights(self) -> int:
        """Weights of the layers that are pruned unless excluded."""
        return sum(layer.weights for layer in self.layers if not status(layer))

    def __str__(self) -> str:
        from secateur.console import render_inspection

        return render_inspection(self)


def status(layer: Layer) -> str:
    """Why a layer stays dense by default; empty when it is pruned."""
    return layer.obstacle or layer.protected or ""


def _evaluation(held: dict[str, Any] | None) -> Evaluation | None:
    return None if held is None else Evaluation(**held)


def _tuples(held: dict[str, Any]) -> dict[str, Any]:
    """JSON has lists where the dataclasses have tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in held.items()}
