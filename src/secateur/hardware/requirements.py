"""Which runtimes can make use of a layer's zeros here, and why the others cannot.

Most runtimes multiply with a zero as slowly as with any other number. Each entry of `RUNTIMES`
says what has to hold of a layer for that runtime to leave its zeros out, and what of the machine.
What the machine offers is looked up on it (`Machine.here`): the installed versions, the CPU's
flags, the GPU. Passing is necessary for a speed-up and not sufficient: `secateur bench` measures.
"""

from __future__ import annotations

import functools
import platform
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from secateur.network.geometry import Convolution
from secateur.network.graph import Layer
from secateur.support.signal_stack import kept_signal_stack

NO_SPEED_UP = "no speed-up expected"
SPARSE_RATE = "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE"  # OpenVINO's setting; 1 = off
TILE = 64  # OpenVINO: both sizes of a weight have to be multiples of it
XNNPACK_ZEROS = 2 / 3  # the least share of zeros for which XNNPACK takes its sparse kernels
AMPERE = (8, 0)  # CUDA compute capability from which on GPUs have sparse tensor cores

# PyTorch: rows and columns of a 2:4 weight have to be multiples of these, by type. A test compares
# them with what the installed version refuses.
TORCH_SIZES = {"float32": (32, 32), "float16": (32, 64), "bfloat16": (32, 64), "int8": (16, 128)}

_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "torch": ("torch",),
    "tensorrt": ("tensorrt",),
    "xnnpack": ("ai-edge-litert", "tflite-runtime", "tensorflow", "executorch"),
}


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What decides whether a layer's zeros can be left out.

    Attributes:
        kind: "conv", "linear" or another operation's name.
        shape: of the weight, (out, in, ...).
        groups: of a convolution; 1 for others.
        dtype: of the weights, such as "float32".
        sparsity: the fraction of zeros; None = not pruned yet.
        two_of_four: whether at least two of each four weights in a row are zero; None = not
            known.
    """

    kind: str
    shape: tuple[int, ...]
    groups: int = 1
    dtype: str = "float32"
    sparsity: float | None = None
    two_of_four: bool | None = None

    @classmethod
    def of(cls, layer: Layer, weight: Tensor | None, *, pruned: bool) -> LayerFacts:
        """Of a layer and its weight; `pruned` tells whether its zeros count."""
        dtype = "unknown type" if weight is None else str(weight.dtype).removeprefix("torch.")
        known = weight if pruned else None
        return cls(
            kind=layer.kind,
            shape=tuple(layer.shape),
            groups=_groups(layer),
            dtype=dtype,
            sparsity=None if known is None else float((known == 0).double().mean()),
            two_of_four=None if known is None else _two_of_four(layer, known),
        )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What was found on a machine.

    Attributes:
        cpu: its name.
        flags: of its CPU as Linux lists them; None = the system does not tell.
        versions: of the installed runtimes, by the first word of `Runtime.package`.
        openvino_settings: names of the settings of OpenVINO's CPU device; None = not asked.
        cuda: compute capability of the first GPU that PyTorch can use; None = no such GPU.
    """

    cpu: str = ""
    flags: frozenset[str] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    openvino_settings: frozenset[str] | None = None
    cuda: tuple[int, int] | None = None

    @classmethod
    @functools.cache
    def here(cls) -> Machine:
        """This machine, asked once."""
        name, flags = read_cpu(Path("/proc/cpuinfo"))
        versions = installed_versions()
        return cls(
            cpu=name or platform.processor() or platform.machine(),
            flags=flags,
            versions=versions,
            openvino_settings=_openvino_settings() if "openvino" in versions else None,
            cuda=torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        )


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """A runtime, and what it asks for before it leaves zeros out.

    Attributes:
        name: as people call it.
        package: key of `Machine.versions`.
        feature: what leaves the zeros out, in a few words.
        machine: what this machine lacks for it; empty when nothing.
        layer: what a layer lacks for it; empty when nothing.
        zeros: how many zeros a layer needs, in a word; empty = any.
        source: where this is written.
    """

    name: str
    package: str
    feature: str
    machine: Callable[[Machine], list[str]]
    layer: Callable[[LayerFacts], list[str]]
    zeros: str = ""
    source: str


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Whether a runtime can make use of one layer's zeros.

    Attributes:
        runtime: its name.
        obstacles: what the layer lacks; empty when nothing.
    """

    runtime: str
    obstacles: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the layer fits."""
        return not self.obstacles


@dataclass(frozen=True, kw_only=True)
class RuntimeReport:
    """A runtime on the machine that wrote a report.

    Attributes:
        name, feature: see `Runtime`.
        version: of the installed one; None = not installed.
        obstacles: what the machine lacks; empty when nothing.
        layers: how many of the layers could make use of it.
        reason: why zeros bring no speed-up here, or what to do for one.
    """

    name: str
    feature: str
    version: str | None
    obstacles: tuple[str, ...]
    layers: int
    reason: str

    @property
    def passed(self) -> bool:
        """Whether a speed-up is possible here, in at least one layer."""
        return not self.obstacles and self.layers > 0


def _onnxruntime_layer(layer: LayerFacts) -> list[str]:
    return ["it has no kernels for sparse weights: zeros save disk only"]


def _onnxruntime_machine(machine: Machine) -> list[str]:
    return _missing(machine, "onnxruntime")


def _openvino_layer(layer: LayerFacts) -> list[str]:
    found = _unless(layer.kind == "linear", f"{_kind(layer)}: only linear layers")
    if layer.kind == "linear":
        sizes = "x".join(map(str, layer.shape))
        fits = len(layer.shape) == 2 and all(size % TILE == 0 for size in layer.shape)
        found += _unless(fits, f"{sizes}: both sizes have to be divisible by {TILE}")
    return found + _unless(layer.dtype == "int8", f"{layer.dtype} weights: only INT8 ones")


def _openvino_machine(machine: Machine) -> list[str]:
    found = _missing(machine, "openvino")
    known = machine.openvino_settings
    lacking = known is not None and SPARSE_RATE not in known
    found += _unless(not lacking, f"this version has no setting {SPARSE_RATE}")
    if machine.flags is None:
        return [*found, "the system does not tell whether this CPU has AMX"]
    return found + _unless("amx_int8" in machine.flags, "this CPU has no AMX (amx_int8)")


def _torch_layer(layer: LayerFacts) -> list[str]:
    found = _unless(layer.kind == "linear", f"{_kind(layer)}: only linear layers")
    rows, columns = TORCH_SIZES.get(layer.dtype, (0, 0))
    found += _unless(rows > 0, f"{layer.dtype} weights: only {', '.join(TORCH_SIZES)}")
    if layer.kind == "linear" and rows:
        fits = layer.shape[0] % rows == 0 and layer.shape[-1] % columns == 0
        sizes = "x".join(map(str, layer.shape))
        found += _unless(fits, f"{sizes}: sizes have to be multiples of {rows} and {columns}")
    return found + _pattern(layer)


def _torch_machine(machine: Machine) -> list[str]:
    return _missing(machine, "torch") + _gpu(machine)


def _tensorrt_layer(layer: LayerFacts) -> list[str]:
    found = _unless(layer.kind in ("conv", "linear"), f"{_kind(layer)}: only conv and linear")
    found += _unless(layer.groups == 1, f"{layer.groups} groups: only convolutions of one group")
    return found + _pattern(layer)


def _tensorrt_machine(machine: Machine) -> list[str]:
    return _missing(machine, "tensorrt") + _gpu(machine)


def _xnnpack_layer(layer: LayerFacts) -> list[str]:
    one = layer.kind == "conv" and layer.groups == 1 and all(size == 1 for size in layer.shape[2:])
    found = _unless(one, f"{_kind(layer)}: only 1x1 convolutions")
    found += _unless(layer.dtype.startswith("float"), f"{layer.dtype} weights: only float ones")
    few = layer.sparsity is not None and layer.sparsity < XNNPACK_ZEROS
    return found + _unless(not few, f"{layer.sparsity or 0:.1%} zeros: two thirds are needed")


def _xnnpack_machine(machine: Machine) -> list[str]:
    return _missing(machine, "xnnpack")


RUNTIMES = (
    Runtime(
        name="ONNX Runtime",
        package="onnxruntime",
        feature="none: zeros are multiplied like other numbers",
        machine=_onnxruntime_machine,
        layer=_onnxruntime_layer,
        source="https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md",
    ),
    Runtime(
        name="OpenVINO, CPU",
        package="openvino",
        feature="sparse weights decompression: INT8 linear layers, both sizes divisible by 64, AMX",
        machine=_openvino_machine,
        layer=_openvino_layer,
        source="https://docs.openvino.ai/2025/openvino-workflow/running-inference/"
        "inference-devices-and-modes/cpu-device.html",
    ),
    Runtime(
        name="PyTorch, CUDA",
        package="torch",
        feature="2:4 sparse linear layers on GPUs of compute capability 8.0 or higher",
        machine=_torch_machine,
        layer=_torch_layer,
        source="https://docs.pytorch.org/docs/stable/sparse.html",
    ),
    Runtime(
        name="TensorRT",
        package="tensorrt",
        feature="2:4 sparse convolutions and linear layers on GPUs from compute capability 8.0 on",
        machine=_tensorrt_machine,
        layer=_tensorrt_layer,
        source="https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/"
        "inference-library/io-formats-sparsity.html",
    ),
    Runtime(
        name="XNNPACK (LiteRT)",
        package="xnnpack",
        feature="sparse float 1x1 convolutions, from two thirds zeros on",
        machine=_xnnpack_machine,
        layer=_xnnpack_layer,
        zeros="two thirds",
        source="https://github.com/google/XNNPACK",
    ),
)


def gates(layer: LayerFacts) -> tuple[Gate, ...]:
    """Every runtime against one layer, whatever machine this is."""
    return tuple(Gate(runtime=one.name, obstacles=tuple(one.layer(layer))) for one in RUNTIMES)


def survey(layers: Sequence[Sequence[Gate]], machine: Machine) -> list[RuntimeReport]:
    """Every runtime on a machine, with the gates of a network's layers."""
    return [_runtime_report(one, layers, machine) for one in RUNTIMES]


def _runtime_report(
    runtime: Runtime, layers: Sequence[Sequence[Gate]], machine: Machine
) -> RuntimeReport:
    mine = [gate for gates in layers for gate in gates if gate.runtime == runtime.name]
    fit = sum(gate.passed for gate in mine)
    obstacles = tuple(runtime.machine(machine))
    return RuntimeReport(
        name=runtime.name,
        feature=runtime.feature,
        version=machine.versions.get(runtime.package),
        obstacles=obstacles,
        layers=fit,
        reason=_reason(obstacles, mine, fit),
    )


def _reason(obstacles: Sequence[str], gates: Sequence[Gate], fit: int) -> str:
    """One line: what stands in the way, the most frequent obstacle of the layers first."""
    if fit:
        of = f"{fit} of {len(gates)} layers"
        if not obstacles:
            return f"{of} fit: measure"
        return f"{NO_SPEED_UP}: {'; '.join(obstacles)} ({of} would fit)"
    counts: dict[str, int] = {}
    for text in (obstacle for gate in gates for obstacle in gate.obstacles):
        general = re.sub(r"^[^:]*: ", "", text)
        counts[general] = counts.get(general, 0) + 1
    common = sorted(counts, key=lambda text: -counts[text])[:3]
    return f"{NO_SPEED_UP}: {'; '.join(dict.fromkeys((*common, *obstacles)))}"


def speed_up_expected(runtimes: Iterable[RuntimeReport]) -> bool:
    """Whether any runtime could be faster here."""
    return any(one.passed for one in runtimes)


def installed_versions() -> dict[str, str]:
    """Versions of the runtimes that are installed, by the keys of `Machine.versions`."""
    found = {}
    for key, names in _PACKAGES.items():
        for name in names:
            try:
                version = metadata.version(name)
            except metadata.PackageNotFoundError:
                continue
            found[key] = version if name == key else f"{name} {version}"
            break
    return found


def read_cpu(path: Path) -> tuple[str, frozenset[str] | None]:
    """The CPU's name and flags as Linux lists them; "" and None where it does not."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return "", None
    held = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in held.items()}
    flags = facts.get("flags")
    return facts.get("model name", ""), None if flags is None else frozenset(flags.split())


def _openvino_settings() -> frozenset[str] | None:
    """Names of the CPU device's settings; None where OpenVINO cannot be asked."""
    try:
        with warnings.catch_warnings(), kept_signal_stack():
            warnings.simplefilter("ignore")
            import openvino

            return frozenset(openvino.Core().get_property("CPU", "SUPPORTED_PROPERTIES"))
    except (ImportError, RuntimeError):  # a broken installation, or one without a CPU device
        return None


def _groups(layer: Layer) -> int:
    geometry = layer.calls[0].geometry if layer.calls else None
    return geometry.groups if isinstance(geometry, Convolution) else 1


def _two_of_four(layer: Layer, weight: Tensor) -> bool:
    """Whether at least two of each four neighbours along the inputs are zero."""
    if not layer.calls or layer.shape[1] % 4:
        return False
    matrix = layer.calls[0].geometry.matrix(weight)  # columns: the inputs lie side by side
    return bool(((matrix != 0).reshape(-1, 4).sum(1) <= 2).all())


def _kind(layer: LayerFacts) -> str:
    if layer.kind != "conv":
        return layer.kind
    kernel = "x".join(map(str, layer.shape[2:]))
    return f"{kernel} convolution" + (f" of {layer.groups} groups" if layer.groups > 1 else "")


def _pattern(layer: LayerFacts) -> list[str]:
    return _unless(layer.two_of_four is not False, "zeros anywhere: only the 2:4 pattern")


def _gpu(machine: Machine) -> list[str]:
    if machine.cuda is None:
        return ["no CUDA GPU that PyTorch can use"]
    have, need = (".".join(map(str, of)) for of in (machine.cuda, AMPERE))
    return _unless(machine.cuda >= AMPERE, f"the GPU has compute capability {have}, {need} needed")


def _missing(machine: Machine, package: str) -> list[str]:
    return _unless(package in machine.versions, "not installed")


def _unless(holds: bool, obstacle: str) -> list[str]:
    return [] if holds else [obstacle]
