"""OpenVINO on a CPU: sparse weights decompression leaves out zeros of INT8 linear layers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from secateur.hardware.runtimes.protocol import (
    Engine,
    EngineOptions,
    Input,
    Runtime,
    not_installed,
    unless,
)
from secateur.support.signal_stack import kept_signal_stack

if TYPE_CHECKING:
    from secateur.hardware.layer_facts import LayerFacts
    from secateur.hardware.machine import Machine

SPARSE_RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"  # OpenVINO's setting; 1 = off
TILE = 64  # both sizes of a weight have to be multiples of it
_LAYERS = ("FullyConnected", "Convolution", "MatMul")  # of OpenVINO's executed model


def _layer(layer: LayerFacts) -> list[str]:
    found = unless(layer.kind == "linear", f"{layer.operation}: only linear layers")
    if layer.kind == "linear":
        shape = "x".join(map(str, layer.shape))
        fits = len(layer.shape) == 2 and all(size % TILE == 0 for size in layer.shape)
        found += unless(fits, f"{shape}: both sizes have to be divisible by {TILE}")
    return found + unless(layer.dtype == "int8", f"{layer.dtype} weights: only INT8 ones")


def _machine(machine: Machine) -> list[str]:
    found = not_installed(machine, "openvino")
    known = machine.settings.get("openvino", frozenset({SPARSE_RATE}))
    found += unless(SPARSE_RATE in known, f"this version has no setting {SPARSE_RATE}")
    if machine.flags is None:
        return [*found, "the system does not tell whether this CPU has AMX"]
    return found + unless("amx_int8" in machine.flags, "this CPU has no AMX (amx_int8)")


def _settings() -> frozenset[str] | None:
    """Names of the CPU device's settings; None where OpenVINO cannot be asked."""
    try:
        with warnings.catch_warnings(), kept_signal_stack():
            warnings.simplefilter("ignore")
            import openvino

            return frozenset(openvino.Core().get_property("CPU", "SUPPORTED_PROPERTIES"))
    except (ImportError, RuntimeError):  # a broken installation, or one without a CPU device
        return None


def settings(threads: int) -> dict[str, Any]:
    """Settings of a model that is measured."""
    return {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}


def _start(path: Path, options: EngineOptions) -> Engine:
    return _engine(path, options, 1.0)


def _start_sparse(path: Path, options: EngineOptions) -> Engine:
    return _engine(path, options, options.rate)


def _engine(path: Path, options: EngineOptions, rate: float) -> Engine:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import openvino

    core = openvino.Core()
    model = core.read_model(path)
    inputs = tuple(
        Input(
            name=of.get_any_name(),
            shape=options.filled(
                [d.get_length() if d.is_static else None for d in of.partial_shape], number
            ),
            dtype=np.dtype(of.get_element_type().to_dtype()).name,
        )
        for number, of in enumerate(model.inputs)
    )
    model.reshape({one.name: list(one.shape) for one in inputs})
    compiled = core.compile_model(model, "CPU", {**settings(options.threads), SPARSE_RATE: rate})
    request = compiled.create_infer_request()
    executed = [_executed(op) for op in compiled.get_runtime_model().get_ordered_ops()]
    layers = [(kernel, kind) for of, kernel, kind in executed if of in _LAYERS]
    return Engine(
        inputs=inputs,
        run=lambda feed: request.infer(dict(feed)),
        precision=_precision(compiled, layers),
        layers=len(layers),
        sparse_layers=sum("sparse" in kernel for kernel, _ in layers),
    )


def _executed(op: Any) -> tuple[str, str, str]:
    """What an operation of the executed model is: layer type, kernel, precision."""
    info = op.get_rt_info()
    kind, kernel, precision = (
        info[key].astype(str) if key in info else ""
        for key in ("layerType", "primitiveType", "runtimePrecision")
    )
    return kind, kernel, precision


def _precision(compiled: Any, layers: list[tuple[str, str]]) -> str:
    """Of the executed layers, and what OpenVINO was free to use."""
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    found = sorted({kind for _, kind in layers})
    return f"{hint} allowed; layers in {', '.join(found)}" if found else f"{hint} allowed"


RUNTIME = Runtime(
    name="OpenVINO, CPU",
    package="openvino",
    distributions=("openvino",),
    feature="sparse weights decompression: INT8 linear layers, both sizes divisible by 64, AMX",
    machine=_machine,
    layer=_layer,
    source="https://docs.openvino.ai/2025/openvino-workflow/running-inference/"
    "inference-devices-and-modes/cpu-device.html",
    settings=_settings,
    engines={"OpenVINO": _start, "OpenVINO, sparse on": _start_sparse},
    formats=(".onnx", ".xml"),
    extra="openvino",
    sparse_path="INT8 linear layers, both sizes divisible by 64, enough zeros, and AMX",
    key="openvino-amx",
    pattern="unstructured",
    dtype="int8",
    prepared="written as an OpenVINO file in INT8 (--openvino --int8), and compiled with "
    f"{SPARSE_RATE} below its zeros; gains where memory is the limit",
)
