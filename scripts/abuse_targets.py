"""What is fuzzed: for each target, valid files to begin with, and what reads a folder of them.

The law: a result, or a SecateurError of one sentence, in bounded time and memory, and nothing
outside the folder is read or written.
"""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import torch
from abuse_mutate import Case
from PIL import Image
from safetensors.torch import save
from torch import nn

import secateur
from secateur.core.methods import Magnitude
from secateur.data.preprocess import Preprocess
from secateur.data.sources import load_images
from secateur.errors import SecateurError
from secateur.export.onnx_weights import layer_weights
from secateur.export.packing import pack, unpack
from secateur.frontends.loading import load_network
from secateur.frontends.onnx import declared_batch, first_run, input_shape
from secateur.frontends.onnx.file import read
from secateur.frontends.onnx.frontend import OnnxFrontend
from secateur.frontends.onnx.translation import Translation
from secateur.frontends.torch.checkpoints import load_state, read_state
from secateur.hardware.latency import Bench, Timing
from secateur.pruning.recipe import RECIPES, Recipe
from secateur.pruning.search import Try
from secateur.report.comparison import compare_reports
from secateur.report.model import Report, SearchReport
from secateur.report.sweep import Sweep

first_run._TIMEOUT_SECONDS = (
    10.0  # the fuzzer does not wait five minutes for a loop that never ends
)


@dataclass(frozen=True)
class Target:
    """Something that reads a folder of files, and folders that it can read."""

    run: Callable[[Path], object]
    cases: Callable[[], list[Case]]
    share: float = 1.0  # of the time


# ONNX

_HEAD = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]>'
_CONVOLUTIONS = """net (float[n, 3, 6, 6] input) => (float[n, 4] output) {
    a = Conv <pads = [1, 1, 1, 1]> (input, w)
    b = BatchNormalization (a, gamma, beta, mean, variance)
    c = Relu (b)
    d = GlobalAveragePool (c)
    e = Flatten (d)
    f = Transpose <perm = [1, 0]> (head)
    g = MatMul (e, f)
    output = Add (g, shift)
}"""
_GEMM = """net (float[2, 6] input) => (float[2, 4] output) {
    a = own.twice (input)
    b = Gemm <transB = 1, alpha = 0.5> (a, w6, shift)
    c = Reshape (b, sizes)
    yes = Greater (limit, zero)
    output = If (yes) <then_branch = yes_graph () => (float[2, 4] y) { y = Identity (c) },
                       else_branch = no_graph () => (float[2, 4] n) { n = MatMul (c, head) }>
}
<domain: "own", opset_import: ["" : 17]> twice (x) => (y) { y = Add (x, x) }"""
_QUANTISED = """net (float[n, 6] input) => (float[n, 4] output) {
    w = DequantizeLinear <axis = 1> (q, scale, q0)
    a = MatMul (input, w)
    b = Unsqueeze (shift, axes)
    output = Add (a, b)
}"""
_rng = np.random.default_rng(0)
_ARRAYS: dict[str, np.ndarray] = {
    "w": _rng.normal(size=(4, 3, 3, 3)).astype("f"),
    **{name: np.full(4, 0.5, "f") for name in ("gamma", "beta", "mean", "variance", "shift")},
    "head": _rng.normal(size=(4, 4)).astype("f"),
    "w6": _rng.normal(size=(4, 6)).astype("f"),
    "sizes": np.array([2, 4]),
    "limit": np.array(1.0, "f"),
    "zero": np.array(0.0, "f"),
    "q": _rng.integers(-127, 127, (6, 4)).astype(np.int8),
    "scale": np.full(4, 0.01, "f"),
    "q0": np.zeros(4, np.int8),
    "axes": np.array([0]),
}


def _model(text: str, *, outside: bool = False) -> Case:
    model = onnx.parser.parse_model(f"{_HEAD}\n{text}")
    read_names = {name for node in model.graph.node for name in node.input} | {"head"}
    content = b""
    for name in sorted(read_names & set(_ARRAYS)):
        tensor = onnx.numpy_helper.from_array(_ARRAYS[name], name)
        if outside:
            entries = {"location": "w.bin", "offset": len(content), "length": len(tensor.raw_data)}
            content += tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
        model.graph.initializer.append(tensor)
    held = {"model.onnx": model.SerializeToString()}
    return {**held, "w.bin": content} if outside else held


def _models() -> list[Case]:
    texts = (_CONVOLUTIONS, _GEMM, _QUANTISED)
    return [*map(_model, texts), _model(_CONVOLUTIONS, outside=True)]


def _read_onnx(folder: Path) -> None:
    """Everything short of the first run; where that fails, the whole, which runs it before."""
    model = read(folder / "model.onnx")
    try:
        input_shape(model), OnnxFrontend(model).tensors(), layer_weights(model)
        for batch in {0, declared_batch(model)}:
            Translation(model, any_batch=batch).parameters()
    except SecateurError:
        raise
    except Exception:
        _run_onnx(folder)


def _run_onnx(folder: Path) -> None:
    str(secateur.inspect(folder / "model.onnx"))


# Packed files and weights


def _weights() -> bytes:
    torch.manual_seed(0)
    layer = nn.Linear(40, 30)
    with torch.no_grad():
        layer.weight[:, ::2] = 0
    return save(layer.state_dict())


def _files() -> list[Case]:
    return [{"model.safetensors": _weights()}, *_models()]


def _packed_cases() -> list[Case]:
    import tempfile

    cases = []
    for case in _files():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file, content in case.items():
                (folder / file).write_bytes(content)
            pack(_first(folder), folder / "a.packed")
            cases.append({"a.packed": (folder / "a.packed").read_bytes()})
    return cases


def _first(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.name.startswith("model."))


def _unpack(folder: Path) -> None:
    (folder / "out").mkdir(exist_ok=True)
    unpack(folder / "a.packed", folder / "out" / "model", max_bytes=1 << 24)


def _pack(folder: Path) -> None:
    """What can be packed comes back the same."""
    path = _first(folder)
    (folder / "out").mkdir(exist_ok=True)
    pack(path, folder / "out" / "packed")
    unpack(folder / "out" / "packed", folder / "out" / path.name)
    if (folder / "out" / path.name).read_bytes() != path.read_bytes():
        raise AssertionError("unpack gives other bytes than were packed")


def _checkpoints() -> list[Case]:
    layer = nn.Linear(4, 3)
    held = {"state_dict": layer.state_dict(), "epoch": 3}
    cases: list[Case] = [{"model.safetensors": save(layer.state_dict(), {"format": "pt"})}]
    for zipped in (True, False):
        file = BytesIO()
        torch.save(held, file, _use_new_zipfile_serialization=zipped)
        cases.append({"model.pt" if zipped else "model.pth": file.getvalue()})
    return cases


def _read_weights(folder: Path) -> None:
    path = _first(folder)
    load_state(nn.Linear(4, 3), read_state(path), str(path))


def _programs() -> list[Case]:
    torch.manual_seed(0)
    file = BytesIO()
    torch.export.save(torch.export.export(nn.Linear(4, 3), (torch.zeros(2, 4),)), file)
    return [{"model.pt2": file.getvalue()}]


def _read_program(folder: Path) -> None:
    load_network(str(folder / "model.pt2"))


# Text


def _recipes() -> list[Case]:
    import tomli_w

    return [{"recipe.toml": tomli_w.dumps(of.settings()).encode()} for of in RECIPES.values()]


def _read_recipe(folder: Path) -> None:
    recipe = Recipe.load(folder / "recipe.toml")
    assert Recipe.of(recipe.settings()) == recipe or "nan" in repr(recipe)


def _reports() -> list[Case]:
    import tempfile

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    images = torch.rand(40, 1, 6, 6)
    more = {"evaluation": (images, torch.arange(40) % 3), "recipe": Recipe(method=Magnitude())}
    one = secateur.prune(net, images, sparsity=0.5, **more).report
    tries = {"sparsity": 0.5, "drop": 1.0, "error": 0.5, "tries": (Try(0.5, 1.0, 0.5),)}
    one.search = SearchReport(measure="top-1", judged_on="evaluation images", images=40, **tries)
    several = secateur.sweep(net, images, sparsities=[0.3, 0.6], **more)
    timing = Timing(
        file="a.onnx", runtime="onnxruntime", milliseconds=((1.0,),), median=1.0, low=0.9, high=1.1,
        peak_bytes=None, precision="f32", layers=1, sparse_layers=None,
    )  # fmt: skip
    bench = Bench(
        timings=(timing,), files=("a.onnx",), threads=1, batch=1, rounds=10, processes=5,
        confidence=0.95, sparse_rate=0.5, cpu="x", versions={}, warnings=(), notes=("n",),
    )  # fmt: skip
    saved: Case = {}
    with tempfile.TemporaryDirectory() as name:
        for key, held in {"report": one, "sweep": several, "bench": bench}.items():
            held.save(Path(name) / "a.json", overwrite=True)
            saved[key] = (Path(name) / "a.json").read_bytes()
    two = {"report.json": saved["report"], "other.json": saved["report"]}
    return [two, {"sweep.json": saved["sweep"]}, {"bench.json": saved["bench"]}]


def _read_reports(folder: Path) -> None:
    if (folder / "sweep.json").exists():
        str(Sweep.load(folder / "sweep.json"))
    elif (folder / "bench.json").exists():
        str(Bench.load(folder / "bench.json"))
    else:
        first, second = Report.load(folder / "report.json"), Report.load(folder / "other.json")
        str(first)
        str(compare_reports(first, second))


# Images


def _pictures() -> list[Case]:
    cases = []
    pixels = _rng.integers(0, 255, (9, 8, 3)).astype(np.uint8)
    kinds = ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm", "tga", "ico", "pcx", "jpeg2000")
    for kind in kinds:
        file = BytesIO()
        try:
            Image.fromarray(pixels).save(file, kind)
        except (KeyError, OSError):  # Pillow was built without it
            continue
        table = b"file,label\na.png,3\nb.png,0\n"
        cases.append({"a.png": file.getvalue(), "b.png": file.getvalue(), "labels.csv": table})
    return cases


def _read_pictures(folder: Path) -> None:
    load_images(folder, preprocess=Preprocess(size=4, mean=[0.5], std=[0.5]), labelled=True)


def _arrays() -> list[Case]:
    cases = []
    for images in (np.zeros((3, 1, 4, 4), "f"), np.zeros((3, 5, 5, 3), np.uint8)):
        for write in (np.savez, np.savez_compressed):
            file = BytesIO()
            write(file, images=images, labels=np.arange(3))
            cases.append({"a.npz": file.getvalue()})
    return cases


def _read_arrays(folder: Path) -> None:
    load_images(folder / "a.npz", labelled=True)


def _planted(folder: Path) -> None:
    """For the test of the fuzzer: a reader that trusts a zip file, and crashes without it."""
    with zipfile.ZipFile(folder / "a.npz") as archive:
        if "labels.npy" not in archive.namelist():
            os.kill(os.getpid(), signal.SIGSEGV)
        archive.read("images.npy")


TARGETS = {
    "onnx": Target(_read_onnx, _models, 2.0),
    "onnx-run": Target(_run_onnx, _models, 2.0),
    "unpack": Target(_unpack, _packed_cases),
    "pack": Target(_pack, _files),
    "weights": Target(_read_weights, _checkpoints),
    "program": Target(_read_program, _programs),
    "recipe": Target(_read_recipe, _recipes),
    "report": Target(_read_reports, _reports),
    "images": Target(_read_pictures, _pictures),
    "npz": Target(_read_arrays, _arrays),
}
PLANTED = {"planted": Target(_planted, _arrays)}
