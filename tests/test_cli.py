"""The command line: its files, its one line, and one sentence for every mistake."""

import builtins
import errno
import json
import os
import shutil
import signal as signals
import subprocess
import sys
import tomllib
from functools import partial

import numpy as np
import pytest
import reports
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import secateur
from secateur import Report
from secateur.cli import app as app_module
from secateur.cli.app import app
from secateur.cli.inputs import with_own
from secateur.frontends.loading import load_model
from secateur.version import __version__

NETWORKS = """
import torch
from torch import nn


def block(inputs, outputs):
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def network():
    torch.manual_seed(0)
    blocks = [*block(1, 4), *block(4, 6), *block(6, 6)]
    return nn.Sequential(*blocks, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(54, 5))


def nothing_to_prune():
    return nn.Sequential(nn.Flatten(), nn.ReLU())


def only_protected():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())


def broken():
    model = network()
    with torch.no_grad():
        model[3].weight[1, 2, 0, 1] = float("nan")
    return model


def no_module():
    return 7


def detector():
    return nn.Sequential(*list(network())[:-2], nn.Flatten(2))


def raising():
    raise OSError("the drive is gone")
"""
FILES = ["model.safetensors", "report.html", "report.json"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with networks, images and labels; read only."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    (folder / "cli_networks.py").write_text(NETWORKS)
    images = rng.standard_normal((40, 1, 12, 12), dtype=np.float32)
    np.savez(folder / "images.npz", images=images, labels=rng.integers(0, 5, 40))
    others = rng.standard_normal((40, 1, 12, 12), dtype=np.float32)
    np.savez(folder / "eval.npz", images=others, labels=rng.integers(0, 5, 40))
    np.savez(folder / "six.npz", images=images, labels=np.arange(40) % 6)
    np.savez(folder / "few.npz", images=images[:5])
    np.savez(folder / "large.npz", images=images.repeat(2, 2))
    images[3, 0, 1, 1] = np.nan
    np.savez(folder / "nan.npz", images=images)
    (folder / "empty").mkdir()
    for name in ("notes", "sizes", "pngs"):
        (folder / name).mkdir()
        for index in range(33):
            pixels = rng.integers(0, 256, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    for name in ("ant", "bee", "cat"):
        (folder / "classes" / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "classes" / name / "1.png")
    (folder / "notes" / "readme.txt").write_text("no image")
    Image.new("L", (12, 13)).save(folder / "sizes" / "99.png")
    save_file({"weight": torch.zeros(2, 2)}, folder / "other.safetensors")
    (folder / "junk.pt").write_bytes(b"junk")
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), folder / "whole.pt")
    (folder / "net.onnx").write_bytes(b"junk")
    (folder / "torn.json").write_text('{"schema": "secateur.rep')
    return folder


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("cli_networks", None)


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def prune_arguments(place, out, *more, network="network", data="images.npz", sparsity=0.6):
    model = f"{place / 'cli_networks.py'}:{network}"
    data = data if data.startswith("fractal:") else place / data
    asked = [] if sparsity is None else ["--sparsity", sparsity]
    return ["prune", model, "--data", data, *asked, "-o", out, *more]


@pytest.fixture(scope="module")
def done(place, tmp_path_factory):
    """One run with an evaluation, shared by the tests that look at its results."""
    out = tmp_path_factory.mktemp("results") / "new" / "out"
    saved = list(sys.path)
    result = invoke(*prune_arguments(place, out, "--eval", place / "eval.npz"))
    sys.path[:] = saved
    assert result.exit_code == 0, result.output
    return result, out


def assert_mistake(result, says, out=None):
    """Exit status 2, one line beside warnings, no traceback, nothing written."""
    __tracebackhide__ = True
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [of for of in result.stderr.splitlines() if "secateur: warning: " not in of]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("secateur: error: ")
    assert says in lines[0]
    assert "Traceback" not in result.output
    assert result.stdout == ""
    if out is not None:
        assert list(out.parent.iterdir()) == []


# what a run gives


def test_prune_writes_the_weights_and_the_report(done):
    result, out = done
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]  # no staging folder left
    assert result.stderr == ""


def test_the_report_counts_the_zeros_in_the_file(done):
    _, out = done
    report = json.loads((out / "report.json").read_text())
    weights = load_file(out / "model.safetensors")
    assert [layer["name"] for layer in report["layers"]] == ["3", "6", "11"]
    for layer in report["layers"]:
        tensor = weights[f"{layer['name']}.weight"]
        assert list(tensor.shape) == layer["shape"]
        assert int((tensor == 0).sum()) == layer["zeros"]
    pruned = [weights[f"{layer['name']}.weight"] for layer in report["layers"]]
    zeros, total = sum(int((w == 0).sum()) for w in pruned), sum(w.numel() for w in pruned)
    assert zeros == round(0.6 * total)
    assert report["sparsity"] == pytest.approx(zeros / total)
    assert report["dense_layers"][0]["name"] == "0"
    assert int((weights["0.weight"] == 0).sum()) == 0


def test_the_written_weights_are_those_that_were_judged(done, place):
    from secateur.evaluation.evaluation_set import evaluate
    from secateur.frontends.loading import load_model

    _, out = done
    reference = f"{place / 'cli_networks.py'}:network"
    pruned = load_model(reference, out / "model.safetensors")
    with np.load(place / "eval.npz") as held:
        images, labels = torch.from_numpy(held["images"]), torch.from_numpy(held["labels"])
    found = evaluate(pruned, images, labels, reference=load_model(reference))
    report = json.loads((out / "report.json").read_text())["evaluation"]
    for name in ("top1", "drop", "drop_error", "agreement", "kl"):
        assert report["pruned"][name] == pytest.approx(getattr(found, name), rel=1e-4, abs=1e-6)
    assert report["dense"]["drop"] == 0
    assert report["dense"]["agreement"] == 100


def test_away_from_a_terminal_the_outcome_is_one_line_and_one_per_file(done):
    result, out = done
    line, *files = result.stdout.splitlines()
    assert files == [f"{out / name}: {(out / name).stat().st_size:,} bytes" for name in FILES]
    assert line.startswith(f"{out}: ")
    assert "of the prunable weights are zero" in line
    assert "top-1" in line
    assert "40 images" in line


def test_the_same_seed_gives_the_same_bytes(done, place, tmp_path):
    result = invoke(*prune_arguments(place, tmp_path / "out", "--verbose"))
    assert result.exit_code == 0
    first, second = (load_file(path / FILES[0]) for path in (done[1], tmp_path / "out"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    again = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert again == (done[1] / "model.safetensors").read_bytes()
    assert f"{tmp_path / 'out' / FILES[0]}: " in result.stdout
    assert len(result.stdout.splitlines()) > 8  # --verbose shows the whole report


def test_onnx_is_written_when_asked_for(place, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    result = invoke(*prune_arguments(place, tmp_path / "out", "--onnx"))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.onnx", *FILES]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    initializers = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    arrays = [onnx.numpy_helper.to_array(entry) for entry in initializers]
    found = sum(int((array == 0).sum()) for array in arrays if array.dtype.kind == "f")
    assert found >= sum(layer["zeros"] for layer in report["layers"]) > 0
    assert report["exports"]["model.onnx"]["relative_difference"] < 1e-4


@pytest.mark.parametrize("target", ["macs", "bytes"])
def test_a_share_of_the_dense_cost_may_be_asked_for(place, tmp_path, target):
    out = tmp_path / "out"
    more = [f"--max-{target}", 0.6, "--method", "magnitude"]
    result = invoke(*prune_arguments(place, out, *more, sparsity=None))
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert 0.55 < report[f"{target}_fraction"] <= 0.6
    assert report["requested"]["target"] == {"name": f"max_{target}", "value": 0.6}


def test_a_drop_may_be_asked_for_and_is_measured_on_the_evaluation_images(place, tmp_path):
    out = tmp_path / "out"
    more = ["--max-drop", 20, "--method", "magnitude", "--eval", place / "images.npz"]
    result = invoke(*prune_arguments(place, out, *more, sparsity=None))
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert report["search"]["drop"] <= 20
    assert report["search"]["measure"] == "top-1"
    assert report["evaluation"]["pruned"]["drop"] == pytest.approx(report["search"]["drop"])
    line = result.stdout.splitlines()[0]
    assert "that lose at most 20 points of top-1 (1 try), top-1 " in line
    assert line.count("points lost") + line.count("points gained") == 1


def test_without_evaluation_the_line_has_the_agreement_on_the_calibration_images(place, tmp_path):
    result = invoke(*prune_arguments(place, tmp_path / "out", "--method", "magnitude"))
    line = result.stdout.splitlines()[0]
    assert "agreement with dense " in line
    assert "on the 40 calibration images that the layers were fitted to (optimistic)" in line


def test_a_dry_run_shows_the_plan_and_writes_nothing(place, tmp_path):
    model = f"{place / 'cli_networks.py'}:network"
    arguments = ["prune", model, "--data", place / "images.npz", "--sparsity", 0.6, "--dry-run"]
    for more in ([], ["-o", tmp_path / "out"]):
        result = invoke(*arguments, *more)
        assert result.exit_code == 0, result.output
        rows = {line.split()[0]: line for line in result.stdout.splitlines()}
        assert "6x4x3x3" in rows["3"]
        assert "plan for sparsity 0.6: 60." in result.stdout
        assert "expected loss" in result.stdout
        assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_mistakes_all_the_same(place):
    model = f"{place / 'cli_networks.py'}:network"
    arguments = ["prune", model, "--data", place / "images.npz", "--sparsity", 0.6, "--dry-run"]
    assert_mistake(invoke(*arguments, "--method", "adm"), "did you mean admm")
    assert_mistake(invoke(*arguments[:-1]), "expected -o OUT: or ask for --dry-run")


def test_processes_that_were_started_together_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_mistake(
        invoke("runtimes"), "got 2 processes started together (WORLD_SIZE), expected one: runtimes"
    )
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert invoke("runtimes").exit_code == 0


def test_of_processes_started_together_the_first_alone_says_notes(tmp_path, monkeypatch, capsys):
    (tmp_path / "own.json").write_text('{"input_size": [3, 8, 8]}')
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert with_own(None, tmp_path / "own.json") is not None
        assert capsys.readouterr().err.count("note: pictures are prepared as") == lines


def test_few_images_are_a_warning(place, tmp_path):
    result = invoke(*prune_arguments(place, tmp_path / "out", data="few.npz"))
    assert result.exit_code == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("secateur: warning: only 5 calibration images")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["warnings"]


def test_a_network_without_scores_is_judged_by_its_output(place, tmp_path):
    out, model = tmp_path / "out", f"{place / 'cli_networks.py'}:detector"
    np.savez(tmp_path / "more.npz", images=np.random.default_rng(5).random((40, 1, 12, 12), "f4"))
    more = ["--method", "magnitude", "--eval", tmp_path / "more.npz"]
    result = invoke(*prune_arguments(place, out, *more, network="detector", sparsity=0.3))
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "% of the variance (no table of scores: agreement does not apply)" in result.stdout
    report = Report.load(out / "report.json")
    assert report.calibration.agreement is None
    assert 0 < report.calibration.output_error < 1
    assert report.evaluation["dense"].output_error == 0
    told = ["--model", model, "--eval", tmp_path / "more.npz", "--against", model]
    result = invoke("evaluate", out / "model.safetensors", *told)
    assert result.exit_code == 0, result.output
    error = report.evaluation["pruned"].output_error
    assert f"output error {100 * error:.2g} % of the variance on 40 images" in result.stdout
    found = json.loads(invoke("evaluate", out / "model.safetensors", *told, "--json").stdout)
    assert found["network"]["output_error"] == pytest.approx(error, rel=1e-4)
    result = invoke(
        *prune_arguments(place, tmp_path / "x", network="detector", sparsity=None), "--max-drop", 1
    )
    assert_mistake(result, "max_drop counts answers, and the network returns (10, 6, 9)")
    more = ["--eval", place / "eval.npz"]
    result = invoke(*prune_arguments(place, tmp_path / "x", *more, network="detector"))
    assert_mistake(result, "for the images have labels")


def test_pixels_without_mean_and_std_are_one_warning(place, tmp_path):
    more = ["--channels", 1, "--method", "magnitude", "--eval", place / "pngs"]
    out = tmp_path / "out"
    result = invoke(*prune_arguments(place, out, *more, data="classes"))
    lines = result.stderr.splitlines()
    assert len([line for line in lines if "pixels are fed in 0..1" in line]) == 1
    assert any("pixels are fed" in text for text in Report.load(out / "report.json").warnings)
    more = ["--dry-run", "--channels", 1]
    planned = invoke(*prune_arguments(place, tmp_path / "plan", *more, data="pngs"))
    assert "pixels are fed in 0..1" in planned.stderr


def test_fewer_class_folders_than_outputs_are_a_warning(place, tmp_path):
    options = ["--channels", 1, "--mean", 0.5, "--std", 0.25, "--method", "magnitude"]
    out = tmp_path / "out"
    more = [*options, "--eval", place / "classes"]
    result = invoke(*prune_arguments(place, out, *more, data="pngs"))
    assert result.exit_code == 0, result.output
    (line,) = [of for of in result.stderr.splitlines() if "class folders" in of]
    assert "has 3 class folders for a network with 5 outputs" in line
    assert "(ant = 0, bee = 1, cat = 2)" in line
    assert line.removeprefix("secateur: warning: ") in Report.load(out / "report.json").warnings


def test_force_replaces_its_own_files_and_keeps_others(place, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    (out / "report.json").write_text("old")
    more = ["--force", "--channels", 1, "--mean", "0.5", "--std", "0.25", "--max-images", 32]
    result = invoke(*prune_arguments(place, out, *more, data="pngs"))
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["mine.txt", *FILES]
    assert (out / "mine.txt").read_text() == "mine"
    report = json.loads((out / "report.json").read_text())
    assert report["data"]["images"] == 32
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_inspect_lists_layers_and_reasons(place):
    model = f"{place / 'cli_networks.py'}:network"
    result = invoke("inspect", model, "--shape", "1,12,12")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    for name, shape in (("3", "6x4x3x3"), ("6", "6x6x3x3"), ("11", "5x54")):
        assert shape in rows[name]
        assert rows[name].split()[-1] == "yes"
    assert "4x1x3x3" in rows["0"]
    assert "no: first layer" in rows["0"]


def test_inspect_tells_what_each_layer_lacks_where_asked(place):
    model = [f"{place / 'cli_networks.py'}:network", "--shape", "1,12,12"]
    assert "3x3 convolution" not in invoke("inspect", *model).stdout
    told = " ".join(invoke("inspect", *model, "--verbose").stdout.split())
    assert "3x3 convolution: only linear layers; float32 weights: only INT8 ones: 0, 3, 6" in told
    held = json.loads(invoke("inspect", *model, "--json").stdout)
    layers = {layer["name"]: layer for layer in held["layers"]}
    assert (layers["0"]["pruned"], layers["0"]["reason"]) == (False, "first layer")
    lacks = {of["runtime"]: of["obstacles"] for of in layers["3"]["requirements"]}
    assert lacks["XNNPACK (LiteRT)"] == ["3x3 convolution: only 1x1 convolutions"]
    assert set(lacks) == {runtime["name"] for runtime in held["runtimes"]}


def test_inspect_takes_size_and_channels_for_the_shape(place):
    model = f"{place / 'cli_networks.py'}:network"
    sized = invoke("inspect", model, "--size", 12, "--channels", 1)
    assert sized.exit_code == 0, sized.output
    assert "Nx6x12x12" in sized.stdout


def test_version():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout == f"secateur {__version__}\n"


# mistakes

MISTAKES = {
    "no such model file": ("absent.py:network", {}, [], "no such file: absent.py"),
    "no such module": ("secateur_absent.models:network", {}, [], "No module named"),
    "not a reference": ("network", {}, [], "expected file.py:callable"),
    "no such function": ("{}:netwrok", {}, [], "did you mean network"),
    "not a module": (
        "{}:no_module",
        {},
        [],
        "gives an object of type int, expected a torch.nn.Module",
    ),
    "a function that raises": ("{}:raising", {}, [], "raised OSError: the drive is gone"),
    "a name too long for data": (None, {"data": "a" * 300}, [], "aaa... is not a path (File name"),
    "no such data": (None, {"data": "absent"}, [], "no such file or folder"),
    "no such images": (None, {"data": "fractel:300"}, [], "did you mean fractal:300"),
    "empty folder": (None, {"data": "empty"}, [], "holds no images"),
    "text among images": (None, {"data": "notes"}, ["--channels", 1], "readme.txt is not a"),
    "different sizes": (None, {"data": "sizes"}, ["--channels", 1], "99.png has shape"),
    "nothing to prune": ("{}:nothing_to_prune", {}, [], "no layer to prune"),
    "only protected": ("{}:only_protected", {}, [], "0 (first layer)"),
    "nan in weights": ("{}:broken", {}, [], "3.weight"),
    "nan in images": (
        None,
        {"data": "nan.npz"},
        [],
        "NaN or Inf (the first such image is number 3)",
    ),
    "sparsity in percent": (None, {"sparsity": 60}, [], "(60 % is 0.6)"),
    "sparsity 1.5": (None, {"sparsity": 1.5}, [], "sparsity is 1.5, expected"),
    "sparsity -0.1": (None, {"sparsity": -0.1}, [], "sparsity is -0.1, expected"),
    "sparsity 1": (None, {"sparsity": 1}, [], "in [0, 1)"),
    "glob without match": (None, {}, ["--include", "layer9.*"], "matches no layer"),
    "exclude without match": (None, {}, ["--exclude", "nothing*"], "matches no layer"),
    "all excluded": (None, {}, ["--exclude", "*"], "exclude fewer layers"),
    "unknown method": (None, {}, ["--method", "adm"], "did you mean admm"),
    "unknown allocation": (None, {}, ["--allocation", "unifrom"], "did you mean uniform"),
    "unknown inputs": (None, {}, ["--inputs", "sparse"], "expected 'pruned' or 'dense'"),
    "no such weights": (None, {}, ["--weights", "absent.pt"], "no such file: absent.pt"),
    "wrong weights": (None, {}, ["--weights", "{other.safetensors}"], "does not fit the model"),
    "no weights at all": (None, {}, ["--weights", "{junk.pt}"], "cannot be read as weights"),
    "a whole module": (None, {}, ["--weights", "{whole.pt}"], "whole.pt holds a pickled module or"),
    "onnx as weights": (None, {}, ["--weights", "{net.onnx}"], "net.onnx is an ONNX file, which"),
    "absent weights alone": ("sd.pt", {}, [], "no such file: sd.pt, expected an .onnx, .xml"),
    "two channels": (None, {"data": "pngs"}, ["--channels", 2], "expected 1 (grey) or 3 (RGB)"),
    "no images wanted": (None, {}, ["--max-images", 0], "max_images is 0"),
    "no such device": (None, {}, ["--device", "gpu"], "device is 'gpu'"),
    "wrong input shape": (None, {"data": "large.npz"}, [], "error: "),
    "two targets": (None, {}, ["--max-macs", 0.5], "got sparsity and max_macs, expected exactly"),
    "macs in percent": (None, {"sparsity": None}, ["--max-macs", 30], "(30 % is 0.3)"),
    "too few bytes": (None, {"sparsity": None}, ["--max-bytes", 0.01], "expected at least 0."),
    "negative drop": (None, {"sparsity": None}, ["--max-drop", -1], "max_drop is -1.0, expected"),
    "no target": (None, {"sparsity": None}, [], "got no target, expected exactly one"),
    "a label too many": (
        None,
        {},
        ["--eval", "{six.npz}"],
        "such as 5 for a network with 5",
    ),
    "no such evaluation": (None, {}, ["--eval", "absent"], "no such file or folder: absent"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(place, tmp_path, mistake):
    model, where, more, says = MISTAKES[mistake]
    arguments = prune_arguments(place, tmp_path / "out", **where)
    if model is not None:
        arguments[1] = model.format(place / "cli_networks.py")
    filled = [place / text[1:-1] if str(text).startswith("{") else text for text in more]
    assert_mistake(invoke(*arguments, *filled), says, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["absent.py:network"], "no such file"),
        (["{}:netwrok"], "did you mean network"),
        (["{}:network", "--shape", "1,0,12"], "expected positive sizes"),
        (["{}:network", "--shape", "3,12,12"], "expected input"),
    ],
)
def test_a_mistake_with_inspect_is_one_sentence(place, arguments, says):
    arguments = [text.format(place / "cli_networks.py") for text in arguments]
    assert_mistake(invoke("inspect", *arguments), says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inspect", "{whole.pt}"], "pass net.py:build, where build returns torch.load("),
        (
            ["inspect", "{torn.json}"],
            "torn.json is a file that holds no network, expected an .onnx",
        ),
        (["evaluate", "{torn.json}", "--eval", "{images.npz}"], "a file that holds no network"),
        (["report", "{net.onnx}"], "net.onnx is not a report.json, expected one as secateur has"),
        (["report", "{whole.pt}"], "whole.pt is not a report.json"),
        (["report", "{torn.json}"], "torn.json is not a report.json"),
        (["report", "absent"], "no such file: absent, expected a report.json"),
        (["report", "{empty}"], "expected a report.json: check the path"),
        (["pack", "absent", "-o", "x"], "no such file: absent"),
        (["pack", "{other.safetensors}", "-o", "{few.npz}"], "choose another or pass --force"),
    ],
)
def test_a_file_of_another_kind_is_one_sentence(place, arguments, says):
    filled = [place / text[1:-1] if text.startswith("{") else text for text in arguments]
    result = invoke(*filled)
    assert_mistake(result, says)
    assert not any(
        word in result.stderr for word in ("codec", "Unsupported", "Expecting", "line 1")
    )


def test_an_evaluation_of_another_size_is_one_sentence(place, tmp_path):
    arguments = prune_arguments(place, tmp_path / "out", "--eval", place / "large.npz")
    assert_mistake(invoke(*arguments, "--method", "magnitude"), "large.npz", tmp_path / "out")


def test_a_filled_output_folder_is_left_alone(place, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.json").write_text("mine")
    assert_mistake(invoke(*prune_arguments(place, out)), "not empty")
    assert [path.name for path in out.iterdir()] == ["report.json"]
    assert (out / "report.json").read_text() == "mine"


def test_an_output_name_that_the_system_refuses_is_one_sentence(place, tmp_path):
    out = tmp_path / ("x" * 1000)
    assert_mistake(invoke(*prune_arguments(place, out)), "cannot be written", out)
    assert_mistake(invoke("recipe", "paper", "-o", out), "cannot be written", out)


def test_force_leaves_a_folder_named_like_a_file_alone(place, tmp_path):
    """Told before the pruning; other files are not replaced."""
    out = tmp_path / "out"
    (out / "report.json").mkdir(parents=True)
    (out / "model.safetensors").write_text("old")
    arguments = prune_arguments(place, out, "--force", data="absent")
    assert_mistake(invoke(*arguments), "report.json is a folder, expected a file")
    names = sorted(path.name for path in out.rglob("*"))
    assert names == ["model.safetensors", "report.json"]
    assert (out / "model.safetensors").read_text() == "old"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_onnx_without_its_packages_is_the_install_line(place, tmp_path, monkeypatch, package):
    real = builtins.__import__

    def without(name, *rest):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    if package != "onnx":  # the first is at hand, whether installed or not
        monkeypatch.setitem(sys.modules, "onnx", sys)
    if package == "onnxscript":
        monkeypatch.setitem(sys.modules, "onnxruntime", sys)
    monkeypatch.setattr(builtins, "__import__", without)
    result = invoke(*prune_arguments(place, tmp_path / "out", "--onnx"))
    assert_mistake(result, "pip install '.[onnx]' in your clone", tmp_path / "out")
    assert f"needs the package {package}," in result.stderr


# interruptions and full disks


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        ("secateur.pruning.run.walk", False),
        ("secateur.result.save_safetensors", True),
        ("secateur.result.save_page", True),
        ("secateur.support.files._move", True),
    ],
)
def test_an_interruption_leaves_nothing(place, tmp_path, monkeypatch, moment, written):
    """While the network is pruned nothing is there; from then on only a hidden folder."""
    during = []

    def interrupted(*_, **__):
        during.extend(tmp_path.iterdir())
        during.extend(tmp_path.rglob("*.partial"))
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, interrupted)
    result = invoke(*prune_arguments(place, tmp_path / "x" / "out", "--method", "magnitude"))
    assert_mistake(result, "interrupted: nothing was written")
    assert [path.suffix for path in during] == (["", ".partial"] if written else [])
    assert list(tmp_path.iterdir()) == []


def while_a_class_is_made(*_, **__):
    """Ctrl-C where Python 3.11 makes a RuntimeError of it."""

    class Field:
        def __set_name__(self, owner, name):
            raise KeyboardInterrupt

    type("Late", (), {"field": Field()})


def test_an_interruption_while_a_class_is_made_is_one_too(place, tmp_path, monkeypatch):
    monkeypatch.setattr("secateur.pruning.run.walk", while_a_class_is_made)
    result = invoke(*prune_arguments(place, tmp_path / "out", "--method", "magnitude"))
    assert_mistake(result, "interrupted: nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_options_are_read_is_one_too(monkeypatch):
    monkeypatch.setattr(app_module, "app", while_a_class_is_made)
    with pytest.raises(KeyboardInterrupt):
        app_module._answer()


@pytest.mark.parametrize(
    "writer", ["safetensors.torch.save_model", "secateur.support.serialization.write_file"]
)
def test_a_full_disk_leaves_nothing(place, tmp_path, monkeypatch, writer):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, full)
    result = invoke(*prune_arguments(place, tmp_path / "out", "--method", "magnitude"))
    assert_mistake(result, "the disk is full", tmp_path / "out")


@pytest.mark.parametrize(("options", "size"), [((), 1), (("--onnx", "--int8"), 2.25)])
def test_a_disk_that_cannot_hold_the_weights_is_told_before_the_work(
    place, tmp_path, monkeypatch, options, size
):
    module = load_model(prune_arguments(place, "x")[1])
    needed = int(size * sum(tensor.nbytes for tensor in module.state_dict().values()))
    usage = shutil.disk_usage(tmp_path)._replace(free=needed - 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(
        "secateur.cli.commands.prune.calibration_images", lambda *_, **__: pytest.fail("too late")
    )
    result = invoke(*prune_arguments(place, tmp_path / "out", *options))
    assert_mistake(result, "bytes left, expected", tmp_path / "out")


def test_a_full_disk_keeps_the_earlier_result(place, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("earlier")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("secateur.support.serialization.write_file", full)
    arguments = prune_arguments(place, out, "--method", "magnitude", "--force")
    assert_mistake(invoke(*arguments), "the disk is full")
    assert (out / "model.safetensors").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")],
)
def test_out_of_memory_is_one_sentence(place, tmp_path, monkeypatch, error):
    def too_much(*_, **__):
        raise error

    monkeypatch.setattr("secateur.pruning.run.walk", too_much)
    result = invoke(*prune_arguments(place, tmp_path / "out"))
    assert_mistake(result, "out of memory", tmp_path / "out")


def test_a_defect_is_not_passed_off_as_a_mistake(place, tmp_path, monkeypatch):
    def defect(*_, **__):
        raise AssertionError("impossible")

    monkeypatch.setattr("secateur.pruning.run.walk", defect)
    result = invoke(*prune_arguments(place, tmp_path / "out"))
    assert result.exit_code == 1
    assert isinstance(result.exception, AssertionError)
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_that_breaks_within_the_program_is_a_defect(monkeypatch):
    def broken(*_, **__):
        raise BrokenPipeError("of a worker")

    monkeypatch.setattr("secateur.cli.commands.recipe.choose_recipe", broken)
    result = invoke("recipe", "default")
    assert result.exit_code == 1
    assert str(result.exception.__cause__) == "of a worker"


# recipes and made images


def test_the_papers_recipe_reports_its_steps(place, tmp_path):
    recipe = tmp_path / "brief.toml"
    result = invoke("recipe", "paper", "-o", recipe)
    assert result.exit_code == 0, result.output
    recipe.write_text(recipe.read_text().replace("iterations = 30", "iterations = 1"))
    out = tmp_path / "out"
    more = ("--recipe", recipe, "--eval", place / "images.npz", "--verbose")
    result = invoke(*prune_arguments(place, out, *more))
    assert result.exit_code == 0, result.output
    report = Report.load(out / "report.json")
    assert [step.name for step in report.steps] == [
        "magnitude",
        "weight-correction",
        "bias-correction",
        "adam-calibration",
    ]
    assert all(step.evaluation.top1 is not None for step in report.steps)
    assert report.steps[-1].evaluation == report.evaluation["pruned"]
    assert report.requested["recipe"]["method"]["iterations"] == 1
    assert "After each step, on the evaluation images" in result.stdout
    assert "adam-calibration" in result.stdout


def test_a_recipe_is_shown_as_toml():
    result = invoke("recipe", "default")
    assert result.exit_code == 0
    assert tomllib.loads(result.stdout)["method"]["name"] == "admm"
    assert_mistake(invoke("recipe", "papper"), "did you mean paper")


def test_fractal_data_say_so_first(place, tmp_path):
    out = tmp_path / "out"
    made = ("--size", 12, "--channels", 1, "--seed", 5, "--verbose")
    result = invoke(*prune_arguments(place, out, *made, data="fractal:40"))
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("calibrated on synthetic data, no real ones: 40 fractal")
    lines = (out / "report.json").read_text().splitlines()
    assert lines[3] == '  "synthetic": "40 fractal images, seed 5",'
    report = Report.load(out / "report.json")
    assert report.synthetic == "40 fractal images, seed 5"
    wanted = {"name": "Preprocess", "size": 12, "resize": None, "channels": 1}
    assert wanted.items() <= report.requested["preprocess"].items()


def test_fractal_data_need_a_size(place, tmp_path):
    result = invoke(*prune_arguments(place, tmp_path / "out", data="fractal:40"))
    assert_mistake(result, "fractal:40 has no size", tmp_path / "out")


def test_fractals_are_written_as_files(tmp_path):
    out = tmp_path / "out"
    result = invoke("fractals", "-o", out, "--count", 3, "--size", 16, "--seed", 2)
    assert result.exit_code == 0, result.output
    names = ["fractal-00000.png", "fractal-00001.png", "fractal-00002.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    images = secateur.fractal_images(3, size=16, seed=2)
    for name, image in zip(names, images, strict=True):
        with Image.open(out / name) as found:
            assert np.array_equal(np.array(found), image.permute(1, 2, 0).numpy())
    assert_mistake(invoke("fractals", "-o", out), "is not empty")
    assert_mistake(invoke("fractals", "-o", tmp_path / "x", "--channels", 2), "--channels is 2")
    assert_mistake(invoke("fractals", "-o", tmp_path / "x", "--size", 2), "size is 2")
    assert not (tmp_path / "x").exists()


# as a program


def program(*arguments, **more):
    command = [sys.executable, "-m", "secateur", *map(str, arguments)]
    if os.name != "nt":  # run in the background, the tests would hand on that SIGINT is ignored
        more["preexec_fn"] = partial(signals.signal, signals.SIGINT, signals.SIG_DFL)
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, **more)


def test_the_program_ends_with_status_2_and_one_line(place, tmp_path):
    process = program(*prune_arguments(place, tmp_path / "out", "--quiet", data="absent"))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stdout == ""
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("secateur: error: no such file or folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["prune", "a:b", "--sparsity", "most"],
            "'--sparsity': got 'most', expected a number: see",
        ),
        (["prune", "a:b", "--seed", "1.5"], "'--seed': got '1.5', expected a whole number: see"),
        (["prune", "a:b", "--mean", "a,b"], "'--mean': got 'a,b', expected numbers separated by"),
        (["inspect", "a:b", "--shape", "1,x"], "'--shape': got '1,x', expected whole numbers"),
        (["sweep", "a:b", "--sparsities", "0.5;0.6"], "'--sparsities': got '0.5;0.6', expected"),
        (["unpack", "a", "--max-bytes", "-1"], "got '-1', expected a whole number, at least 0"),
        (["prune", "a:b"], "Missing option '--data'"),
        (["prnue"], "No such command 'prnue'"),
        (["prune", "a:b", "--spasity", "0.5"], "--spasity"),
    ],
)
def test_a_mistake_in_the_options_is_one_line(arguments, told):
    process = program(*arguments)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (2, "")
    assert len(stderr.splitlines()) == 1
    assert stderr.startswith("secateur: error: ")
    assert told in stderr
    assert "--help" in stderr


def test_the_terminal_wraps_the_paragraphs_of_the_help() -> None:
    texts = [command.help or "" for command in app.registered_commands]
    assert len(texts) > 10
    assert all("\n" not in paragraph for text in texts for paragraph in text.split("\n\n"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["typer", "secateur.cli.app", "torch", "numpy"])
def test_a_signal_while_a_module_is_imported_is_one_sentence(tmp_path, signal, module):
    """The signal comes when the module is looked for, where an exception would be lost."""
    (tmp_path / "program.py").write_text(
        "import os, sys, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            try:\n"
        f"                os.kill(os.getpid(), signal.{signal})\n"
        "            except KeyboardInterrupt:\n"
        "                pass  # as torch does at places\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import secateur.cli.main as secateur_main\n"
        "sys.argv = ['secateur', 'report', 'absent.json']\n"
        "secateur_main.main()\n"
    )
    process = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "secateur: error: interrupted: nothing was written\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_command_ends_is_one_sentence(tmp_path, signal):
    """Outside of what the commands catch; typer has a status of its own for it."""
    (tmp_path / "program.py").write_text(
        "import os, sys, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import secateur.cli.failures as failures, secateur.cli.main as secateur_main\n"
        f"failures.fail = lambda _: os.kill(os.getpid(), signal.{signal})\n"
        "sys.argv = ['secateur', 'report', 'absent.json']\n"
        "secateur_main.main()\n"
    )
    process = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "secateur: error: interrupted: nothing was written\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_nothing(place, tmp_path, signal):
    """The calibration function tells that it runs, then waits for the signal."""
    source = tmp_path / "in" / "cli_waiting.py"
    source.parent.mkdir()
    source.write_text(
        "import sys, time\ndef images():\n    print('waiting', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
    )
    out = tmp_path / "results" / "out"
    arguments = prune_arguments(place, out, "--quiet")
    arguments[3] = f"{source}:images"
    process = program(*arguments)
    try:
        assert process.stderr.readline() == "waiting\n"
        process.send_signal(getattr(signals, signal))
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 2
    assert stderr == "secateur: error: interrupted: nothing was written\n"
    assert stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such pipes")
@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["--help"], 1),
        (["report", "@long.json"], 0),
    ],
)
def test_a_reader_that_has_read_enough_is_no_mistake(tmp_path, arguments, lines):
    """As `secateur ... | head -1`: less and more than a pipe holds."""
    reports.report(*(f"layer.{index}" * 20 for index in range(1000))).save(tmp_path / "long.json")
    arguments = [str(tmp_path / of[1:]) if of.startswith("@") else of for of in arguments]
    with program(*arguments) as process:
        for _ in range(lines):
            assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0 or arguments == ["--help"]  # which typer prints


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
@pytest.mark.parametrize("arguments", [["recipe", "paper"], ["--version"]])
def test_output_that_cannot_be_written_is_one_sentence(arguments):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "secateur", *arguments]
        process = subprocess.run(command, stdout=full, stderr=-1, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("secateur: error: the output cannot be written (No space left")
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="closes a file of the shell's")
def test_a_program_without_standard_output_works(tmp_path):
    call = f"{sys.executable} -m secateur recipe default >&-"
    process = subprocess.run(call, shell=True, stderr=-1, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


def test_a_letter_that_the_output_cannot_show_is_written_out(tmp_path):
    reports.report("層", "conv").save(tmp_path / "report.json")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = program("report", tmp_path / "report.json", env=environment)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    assert r"\u5c64" in stdout
