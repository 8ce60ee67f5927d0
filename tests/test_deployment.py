"""OpenVINO and INT8 files: what they compute, and that every zero stays a zero in each of them."""

import builtins
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_models import Builder, as_onnx, network
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.evaluation.inference import predict
from secateur.export.files import far_off, save_int8, save_openvino
from secateur.export.int8 import check_zeros, parts, quantize, recurrent_note, require_nncf
from secateur.export.onnx_surgery import folded, upgraded
from secateur.export.onnx_weights import layer_weights
from secateur.frontends.onnx import read
from secateur.frontends.openvino.runtime import IR, as_ir, ir_weights, read_ir
from secateur.network.samples import as_samples
from secateur.result import difference_warning

openvino = pytest.importorskip("openvino")
if importlib.util.find_spec("nncf") is None:
    pytest.skip("nncf is not installed", allow_module_level=True)

QUICK = {"method": "magnitude", "allocation": "uniform", "progress": False}
NETWORKS = "from onnx_models import network\n"
WRITTEN = [
    "model-int8.onnx",
    "openvino/model-int8.bin",
    "openvino/model-int8.xml",
    "openvino/model.bin",
    "openvino/model.xml",
    "report.html",
    "report.json",
]


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("deployment_networks", None)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(40, 3, 11, 11, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def place(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "deployment_networks.py").write_text(NETWORKS)
    onnx.save(as_onnx(network()), folder / "net.onnx")
    np.savez(folder / "images.npz", images=images.numpy())
    others = images.flip(-1)
    labels = network()(others).argmax(1)
    np.savez(folder / "eval.npz", images=others.numpy(), labels=labels.numpy())
    return folder


def prune(place, out, *more, model="net.onnx"):
    arguments = ["prune", str(place / model), "--data", str(place / "images.npz"), "-o", str(out)]
    quick = ["--method", "magnitude", "--allocation", "uniform", "--sparsity", "0.6"]
    return CliRunner().invoke(app, [*arguments, *quick, *map(str, more)])


@pytest.fixture(scope="module", params=["net.onnx", "deployment_networks.py:network"])
def done(request, place, tmp_path_factory):
    """Both front-ends, all files, with an evaluation."""
    out, saved = tmp_path_factory.mktemp("results") / "out", list(sys.path)
    more = ["--int8", "--openvino", "--eval", place / "eval.npz"]
    result = prune(place, out, *more, model=request.param)
    sys.path[:] = saved
    assert result.exit_code == 0, (result.output, result.exception)
    return result, out, request.param


def report_of(out):
    return json.loads((out / "report.json").read_text())


# files of a run


def test_all_files_are_written_and_nothing_else(done) -> None:
    result, out, model = done
    first = "model.onnx" if model.endswith(".onnx") else "model.safetensors"
    found = [str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()]
    assert sorted(found) == sorted([first, *WRITTEN])
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    said = result.stderr.splitlines()  # of layers of an untrained network, and nothing else
    assert all("have no weight left or have lost" in line for line in said)
    line, *files = result.stdout.splitlines()  # nothing of what nncf prints
    assert all(any(name in file for name in (*found, str(out))) for file in files)
    top1 = report_of(out)["evaluation"]["openvino/model-int8.xml"]["top1"]
    assert f"openvino/model-int8.xml {top1:.2f} % ±" in line


def test_every_zero_of_every_layer_is_in_every_file(done) -> None:
    """Read here with onnx, safetensors and openvino alone."""
    _, out, _ = done
    pruned = {name: weight for name, weight in _weights(out) if (weight == 0).any()}
    assert set(pruned) == {f"{of}.weight" for of in ("grouped", "gate", "last", "head")}
    held = {
        "model-int8.onnx": _dequantised(onnx.load(out / "model-int8.onnx")),
        "openvino/model.xml": _constants(out / "openvino/model.xml"),
        "openvino/model-int8.xml": _constants(out / "openvino/model-int8.xml"),
    }
    zeros = sum(int((weight == 0).sum()) for weight in pruned.values())
    for file, arrays in held.items():
        for name, weight in pruned.items():
            same = [array for array in arrays if array.size == weight.size]
            ways = [weight, weight.T]
            assert any(
                not np.any(array.ravel()[way.ravel() == 0]) for array in same for way in ways
            ), (file, name)
        assert report_of(out)["exports"][file]["zeros"] == zeros


def _weights(out):
    if (out / "model.onnx").exists():
        held = onnx.load(out / "model.onnx").graph.initializer
        return [(of.name, onnx.numpy_helper.to_array(of)) for of in held if len(of.dims) > 1]
    held = load_file(out / "model.safetensors")
    return [(name, of.numpy()) for name, of in held.items() if of.dim() > 1]


def _dequantised(model):
    held = {of.name: onnx.numpy_helper.to_array(of) for of in model.graph.initializer}
    integers = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    weights = [held[node.input[0]] for node in integers if node.input[0] in held]
    points = [held[node.input[2]] for node in integers if node.input[0] in held]
    assert len(weights) == 6
    assert all(weight.dtype == np.int8 for weight in weights)
    assert not any(point.any() for point in points)  # symmetric
    return weights


def _constants(path):
    nodes = openvino.Core().read_model(path).get_ordered_ops()
    return [node.data for node in nodes if node.get_type_name() == "Constant"]


def test_the_openvino_file_holds_float32_and_the_other_integers(done) -> None:
    _, out, _ = done
    for name, kind in (("model", np.float32), ("model-int8", np.int8)):
        held = _constants(out / "openvino" / f"{name}.xml")
        kinds = {array.dtype for array in held if array.size >= 60}
        assert kinds == {np.dtype(kind)}


def test_the_files_give_what_the_report_says(done, place, images) -> None:
    _, out, model = done
    report, evaluation = report_of(out), report_of(out)["evaluation"]
    if model != "net.onnx":
        reference = network()
        reference.load_state_dict(load_file(out / "model.safetensors"))
    else:
        reference = out / "model.onnx"
    want = predict(reference, images[:8])
    keys = {"openvino/model.xml": "openvino/model.xml", "model-int8.onnx": "int8"}
    keys["openvino/model-int8.xml"] = "openvino/model-int8.xml"
    others = images.flip(-1)
    labels = network()(others).argmax(1)
    for file, key in keys.items():
        facts = report["exports"][file]
        difference = float((predict(out / file, images[:8]) - want).abs().max())
        assert facts["largest_difference"] == pytest.approx(difference, rel=0.01, abs=1e-6)
        assert facts["relative_difference"] < (0.1 if "int8" in file else 1e-5)
        assert facts["bytes"] > 0
        found = secateur.evaluate(out / file, others, labels, reference=network())
        for name in ("top1", "drop", "agreement"):
            assert evaluation[key][name] == pytest.approx(getattr(found, name)), (file, name)
    assert report["requested"]["quantize"] == "int8"


def test_the_python_call_gives_an_int8_network_too(place, images) -> None:
    others = images.flip(-1)
    result = secateur.prune(
        place / "net.onnx", images, sparsity=0.6, quantize="int8", evaluation=others, **QUICK
    )
    assert result.quantized == quantize(result.model, images)
    assert set(result.report.evaluation) == {"dense", "pruned", "int8"}
    agreement = result.report.evaluation["int8"].agreement
    (row,) = [line.split() for line in str(result.report).splitlines() if line.startswith("int8 ")]
    assert row[:3] == ["int8", str(len(others)), f"{agreement:.2f}"]


def test_files_of_one_kind_only(place, tmp_path) -> None:
    result = prune(place, tmp_path / "out", "--openvino")
    assert result.exit_code == 0, result.output
    found = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == ["model.bin", "model.onnx", "model.xml", "report.html", "report.json"]
    report = report_of(tmp_path / "out")
    assert report["exports"]["openvino/model.xml"]["zeros"] == sum(
        layer["zeros"] for layer in report["layers"]
    )
    assert report["evaluation"] == {}


# a lost zero


def test_a_lost_zero_is_an_error_that_names_the_layer() -> None:
    before = {"a": np.array([[0.0, 1.0], [2.0, 0.0]]), "b": np.ones((2, 2))}
    after = {"a": np.array([[0.0, 1.0], [2.0, 1e-9]]), "b": np.ones((2, 2))}
    with pytest.raises(secateur.ModelError, match="x has lost 1 of 2 zeros of the layer a"):
        check_zeros(before, after, "x")
    assert check_zeros(before, before, "x") == 2


def test_layers_of_other_names_are_found_by_their_zeros() -> None:
    before = {"a": np.array([[0.0, 1.0, 3.0], [2.0, 0.0, 0.0]])}
    turned = {"z": np.ones((3, 2)), "y": before["a"].T}
    assert check_zeros(before, turned, "x") == 3
    with pytest.raises(secateur.ModelError, match="x has lost 3 of 3 zeros"):
        check_zeros(before, {"z": np.ones((3, 2))}, "x")
    with pytest.raises(secateur.ModelError, match="x has lost 3 of 3 zeros"):
        check_zeros(before, {"z": np.zeros((5, 2))}, "x")


def _shifted(model):
    """A quantised model with zero points that make of its zeros something else."""
    for held in model.graph.initializer:
        if held.name.startswith("q_output"):
            values = onnx.numpy_helper.to_array(held) | 1
            held.CopyFrom(onnx.numpy_helper.from_array(values, held.name))
    return model


def test_a_quantiser_that_loses_zeros_is_found_out(place, images, tmp_path, monkeypatch) -> None:
    nncf = require_nncf()
    real = nncf.quantize
    pruned = secateur.prune(place / "net.onnx", images, sparsity=0.6, **QUICK).model
    good = quantize(pruned, images)
    with pytest.raises(secateur.ModelError, match="has lost"):
        save_int8(_shifted(good), tmp_path / "a.onnx", images, pruned)
    monkeypatch.setattr(nncf, "quantize", lambda *args, **more: _shifted(real(*args, **more)))
    result = prune(place, tmp_path / "out", "--int8")
    assert result.exit_code == 2
    assert "model-int8.onnx has lost" in result.stderr
    assert not (tmp_path / "out" / "model-int8.onnx").exists()
    assert (tmp_path / "out" / "model.onnx").exists()


# quantised networks


def test_a_normalisation_is_folded_without_losing_a_zero(images) -> None:
    pruned = secateur.prune(as_onnx(network()), images, sparsity=0.6, **QUICK).model
    plain = folded(pruned)
    assert not any(node.op_type == "BatchNormalization" for node in plain.graph.node)
    assert sum(node.op_type == "BatchNormalization" for node in pruned.graph.node) == 2
    torch.testing.assert_close(predict(plain, images), predict(pruned, images))
    before, after = layer_weights(pruned), layer_weights(plain)
    assert list(before) == list(after)
    for name in before:
        assert np.array_equal(before[name] == 0, after[name] == 0)


@pytest.mark.parametrize("case", ["two readers", "an output"])
def test_a_normalisation_that_cannot_be_folded_stays(images, case) -> None:
    torch.manual_seed(0)
    build, net = Builder(3, 11, 11), network()
    x = build.convolution("input", net.stem, "stem")
    y = build.normalisation(x, net.norm, "norm")
    outputs = [build.node("Add", x, y)] if case == "two readers" else [build.node("Relu", y), y]
    model = build.model(*outputs)
    plain = folded(model)
    assert [node.op_type for node in plain.graph.node] == [
        node.op_type for node in model.graph.node
    ]
    with torch.no_grad():
        assert torch.equal(_first(plain, images), _first(model, images))


@pytest.mark.parametrize("case", ["constant nodes", "no scale", "a shared weight"])
def test_what_a_normalisation_is_folded_into_is_the_same_function(images, case) -> None:
    torch.manual_seed(0)
    build, norm = Builder(3, 11, 11), network().norm
    if case == "no scale":
        norm.weight[:4] = 0  # channels that are constants
    hold = build.constant if case == "constant nodes" else build.hold
    weight = hold(torch.randn(8, 3, 3, 3))
    x = build.normalisation(build.node("Conv", "input", weight), norm, "norm")
    if case == "a shared weight":
        x = build.node("Add", x, build.node("Conv", "input", weight))
    model = build.model(build.node("Flatten", build.node("GlobalAveragePool", x)))
    plain = folded(model)
    left = [node.op_type for node in plain.graph.node].count("BatchNormalization")
    assert left == (case == "a shared weight")
    torch.testing.assert_close(predict(plain, images), predict(model, images))


def _first(model, images):
    from secateur.frontends.onnx import Whole

    return Whole(model, as_samples(images[:2]))(as_samples(images))


def test_an_old_opset_is_quantised_too(images) -> None:
    pruned = secateur.prune(as_onnx(network(), opset=11), images, sparsity=0.6, **QUICK).model
    assert upgraded(pruned).opset_import[0].version == 13
    found = quantize(pruned, images)
    scales = [of for of in found.graph.initializer if of.name.startswith("scale_last")]
    assert [list(of.dims) for of in scales] == [[12]]  # one per output
    difference = (predict(found, images) - predict(pruned, images)).abs().max()
    assert 0 < difference < 0.1 * predict(pruned, images).abs().max()


def test_a_fixed_batch_is_kept_to(images) -> None:
    model = as_onnx(network(), batch=3)
    found = quantize(model, images)
    want = predict(model, images)
    assert (predict(found, images) - want).abs().max() < 0.1 * want.abs().max()
    torch.testing.assert_close(IR(as_ir(model))(as_samples(images)), want, rtol=1e-4, atol=1e-5)
    fed = [next(iter(of.values())) for of in parts(as_samples(images), 3)]
    assert [len(part) for part in fed] == [3] * 14
    assert np.array_equal(fed[-1][0], images[39])
    assert np.array_equal(fed[-1][2], images[39])


def test_the_same_images_give_the_same_bytes(images) -> None:
    model = as_onnx(network())
    first, second = (quantize(model, images[:4]).SerializeToString() for _ in range(2))
    assert first == second
    assert quantize(model, images[4:8]).SerializeToString() != first


def test_weights_of_openvino_layers_are_those_of_onnx(images) -> None:
    model = as_onnx(network())
    ours, theirs = layer_weights(folded(model)), ir_weights(as_ir(folded(model)))
    assert len(ours) == len(theirs) == 6
    for one, other in zip(ours.values(), theirs.values(), strict=True):
        assert np.allclose(one.ravel(), other.ravel(), rtol=1e-5)


# mistakes


def test_a_module_is_exported_to_be_quantised(images) -> None:
    module = network()
    int8 = quantize(module, images)
    found = secateur.evaluate(int8, images, reference=module)
    assert isinstance(int8, onnx.ModelProto)
    assert found.agreement > 90


def test_an_unknown_quantisation_is_one_sentence(images) -> None:
    with pytest.raises(secateur.OptionError, match="quantize is 'int4', expected 'int8'"):
        secateur.prune(as_onnx(network()), images, sparsity=0.6, quantize="int4")


@pytest.mark.parametrize(
    ("options", "package", "extra"),
    [
        ("--int8", "nncf", "int8"),
        ("--int8", "onnx", "int8"),
        ("--openvino", "openvino", "openvino"),
        ("--openvino", "onnxruntime", "openvino"),
        ("--int8 --openvino", "nncf", "openvino,int8"),
        ("--int8 --openvino", "onnx", "openvino,int8"),
    ],
)
def test_a_missing_package_is_the_install_line_of_one_extra(
    place, tmp_path, monkeypatch, options, package, extra
) -> None:
    real = builtins.__import__

    def without(name, *rest):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    result = prune(place, tmp_path / "out", *options.split())
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert f"needs the package {package}, which is not installed" in line
    assert f"pip install '.[{extra}]' in your clone" in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_the_folder_is_told_before_the_pruning(place, tmp_path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "openvino").write_text("mine")
    result = prune(place, out, "--openvino", "--force", "--method", "no such method")
    assert result.exit_code == 2
    assert "openvino is a file, expected a folder" in result.stderr
    assert [path.name for path in out.iterdir()] == ["openvino"]


def test_broken_openvino_files_are_one_sentence(place, images, tmp_path) -> None:
    path = tmp_path / "model.xml"
    save_openvino(read(place / "net.onnx"), path, images)
    for name, content, says in (
        ("model.xml", b"<net", "is not a readable OpenVINO file"),
        ("model.bin", b"", "is not a readable OpenVINO file"),
        ("model.bin", None, "no such file: .*expected its weights"),
    ):
        broken = tmp_path / "broken"
        broken.mkdir(exist_ok=True)
        for kept in ("model.xml", "model.bin"):
            (broken / kept).write_bytes((tmp_path / kept).read_bytes())
        (broken / name).unlink() if content is None else (broken / name).write_bytes(content)
        with pytest.raises(secateur.ModelError, match=rf"^(?!.*\n).*{says}"):
            read_ir(broken / "model.xml")
    with pytest.raises(secateur.ModelError, match="OpenVINO cannot run the model on images of"):
        predict(path, images[:, :2])


@pytest.mark.parametrize("first", ["import openvino", ""])
def test_usage_data_are_not_sent(first) -> None:
    """NNCF does not find what would send them, whatever was imported before it.

    Importing it does not change the loggers of others, as it would.
    """
    program = f"""
{first}
import logging
from secateur.export.int8 import require_nncf
require_nncf()
from nncf.telemetry.wrapper import telemetry
print(type(telemetry).__name__, type(logging.getLogger("mine")).__name__)
logging.getLogger("nncf").warning_once("said once")
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "MagicMock Logger\nWARNING:nncf:said once\n"


def test_what_is_optional_is_not_imported_before_it_is_needed() -> None:
    names = "{'nncf', 'openvino', 'onnx'}"
    program = f"import secateur, secateur.cli.app, sys; print({names} & {{*sys.modules}})"
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_layer_without_a_constant_has_no_weights() -> None:
    build = Builder(4, 4)
    product = build.node("MatMul", "input", "input")
    weight = build.hold(torch.eye(4), "weight")
    model = build.model(build.node("MatMul", product, weight))
    assert [array.shape for array in layer_weights(model).values()] == [(4, 4)]
    assert [array.shape for array in ir_weights(as_ir(model)).values()] == [(4, 4)]


def test_a_network_without_layers_has_no_weights() -> None:
    build = Builder(4)
    model = build.model(build.node("Relu", "input"))
    assert layer_weights(model) == {}
    assert ir_weights(as_ir(model)) == {}


class Reading(nn.Module):
    """A recurrent network with a head."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.head = kind(8, 32, num_layers=2, batch_first=True), nn.Linear(32, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.read(4 * x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.LSTM])
def test_recurrent_layers_stay_in_floats_in_an_ir_and_its_outputs_are_right(kind, tmp_path) -> None:
    images = torch.randn(24, 10, 8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "model-int8.xml"
    check = save_openvino(Reading(kind).eval(), path, images, int8=images)
    assert check["output_error"] < 0.02
    assert not far_off(check)
    note = recurrent_note(read_ir(path).model, "model-int8.xml")
    assert note is not None
    assert "model-int8.xml: recurrent layers stay in float32" in note


@pytest.mark.parametrize("name", ["model-int8.onnx", "openvino/model-int8.xml"])
@pytest.mark.parametrize(
    ("error", "difference", "far"),
    [
        (0.02, 0.5, False),
        (35.0, 0.02, False),  # outputs that hardly vary
        (0.35, 0.5, True),
        (float("nan"), float("nan"), True),
    ],
)
def test_an_int8_file_far_from_the_network_is_a_warning_with_the_figure(
    name, error, difference, far
) -> None:
    check = {"bytes": 1, "output_error": error, "relative_difference": difference}
    told = difference_warning(name, check)
    assert (told is not None) == far
    if told is not None:
        assert told.startswith(f"{name} is far from the network")
        assert f"error of its outputs is {100 * error:.2g} % of their variance" in told


@pytest.mark.parametrize("int8", [False, True])
def test_the_same_network_gives_the_same_bytes(int8, tmp_path) -> None:
    model, images = as_onnx(network(), size=12), torch.randn(4, 3, 12, 12)
    calls = [node for node in model.graph.node if node.op_type == "Relu"]
    for number, node in enumerate(calls):  # as older exporters call them, and OpenVINO its own
        node.name = f"Relu_{number + 90}"
    for name in ("one", "two"):
        path = tmp_path / f"{name}.xml"
        save_openvino(model, path, images, int8=images if int8 else None)
    for ending in (".xml", ".bin"):
        one, two = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("one", "two"))
        assert one == two
    names = {node.get_friendly_name() for node in read_ir(path).model.get_ops()}
    assert {node.name for node in calls} <= names


_BY_TURNS = """
import faulthandler, gc, signal
import torch
from onnx_models import as_onnx, network
from secateur.frontends.openvino.runtime import IR, as_ir
from secateur.export.int8 import quantize
from secateur.network.samples import Samples

faulthandler.enable()  # as pytest does: handlers get a stack of their own
images = torch.randn(8, 3, 11, 11)
samples = Samples({{"x": images}})
model = as_onnx(network())
first = IR(as_ir(model))
if {quantised}:
    quantize(model, images)
second = IR(as_ir(model))
first(samples)
del first; gc.collect()
second(samples)
del second; gc.collect()
heard = []
signal.signal(signal.SIGINT, lambda *_: heard.append(1))
signal.raise_signal(signal.SIGINT)
print(len(heard))
"""


@pytest.mark.parametrize("quantised", [False, True])
def test_signals_are_heard_after_openvino_was_used(quantised):
    """OpenVINO changes the stack that they are handled on, and may leave one that is gone."""
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BY_TURNS.format(quantised=quantised)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert (process.returncode, process.stdout) == (0, "1\n"), process.stderr
