"""What a network may be given as: each kind of file is read, or named with the way out."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.errors import ModelError, OptionError, SecateurWarning, UserError
from secateur.frontends.loading import load_model, load_network
from secateur.frontends.torch.checkpoints import load_state

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


NET = """
from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
"""


@pytest.fixture
def builder(tmp_path):
    """A reference to a function that builds `network` with other weights."""
    path = tmp_path / "builder.py"
    path.write_text(NET)
    return f"{path}:build"


def same(model: nn.Module, other: nn.Module) -> bool:
    own, held = model.state_dict(), other.state_dict()
    return list(own) == list(held) and all(torch.equal(own[key], held[key]) for key in own)


# checkpoints as people have them

STATE = network().state_dict()


def prefixed(prefix: str) -> dict:
    return {f"{prefix}{key}": tensor for key, tensor in STATE.items()}


class Settings:
    def __init__(self, rate):
        self.rate = rate


CHECKPOINTS = {
    "the state dict": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3},
    "model": {"model": STATE, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "wrapped twice": {"checkpoint": 1, "model": {"state_dict": STATE}},
    "DataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "both": {"state_dict": prefixed("module._orig_mod.")},
    "Lightning": {
        "state_dict": prefixed("model.") | {"loss.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.5",
        "hyper_parameters": {"rate": 0.1},
    },
    "Lightning, compiled": {"state_dict": prefixed("model._orig_mod.")},
    "only an average": {"ema_state_dict": prefixed("module."), "epoch": 3},
    "an average, wrapped": {"model_ema": {"decay": 0.99, "module": STATE}},
    "a name of its own": {"detector": STATE, "epoch": 3},
    "settings beside it": {"state_dict": STATE, "args": argparse.Namespace(lr=0.1)},
    "a class beside it": {"state_dict": STATE, "config": Settings(0.1)},
    "NumPy's numbers beside it": {"state_dict": STATE, "best": np.float64(0.9)},
    "without counts": {k: v for k, v in STATE.items() if "num_batches" not in k},
    "half": {k: v.half() if v.is_floating_point() else v for k, v in STATE.items()},
}


@pytest.mark.parametrize("form", CHECKPOINTS)
def test_a_checkpoint_is_loaded_in_the_forms_that_people_have(form, tmp_path, builder) -> None:
    path = tmp_path / "weights.pt"
    torch.save(CHECKPOINTS[form], path)
    model = load_model(builder, path)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, STATE[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".pth.tar", ""])
def test_what_a_file_holds_counts_and_not_how_its_name_ends(suffix, tmp_path, builder) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": STATE}, path)
    assert same(load_network(str(path), builder), network())
    save_file(STATE, path)
    assert same(load_network(str(path), builder), network())


def test_a_checkpoint_from_before_pytorch_1_6_is_loaded(tmp_path, builder) -> None:
    path = tmp_path / "old.pth"
    torch.save({"state_dict": STATE}, path, _use_new_zipfile_serialization=False)
    assert same(load_model(builder, path), network())


def test_parts_that_were_wrapped_are_loaded_into_those_that_are_not_and_back() -> None:
    """`features.module.0` and `_orig_mod.features.0` are `features.0`."""
    model = nn.ModuleDict({"features": nn.Sequential(nn.Linear(2, 2)), "head": nn.Linear(2, 1)})
    plain = {key: torch.ones_like(tensor) for key, tensor in model.state_dict().items()}
    wrapped = {key.replace("features.", "features.module."): of for key, of in plain.items()}
    load_state(model, wrapped, "weights.pt")
    assert all(bool((of == 1).all()) for of in model.state_dict().values())

    compiled = nn.ModuleDict({"_orig_mod": model})
    load_state(compiled, {key: 2 * of for key, of in plain.items()}, "weights.pt")
    assert all(bool((of == 2).all()) for of in model.state_dict().values())


def test_a_module_with_a_part_named_module_keeps_its_names() -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    state = {key: torch.randn_like(of) for key, of in model.state_dict().items()}
    load_state(model, state, "weights.pt")
    assert all(torch.equal(of, state[key]) for key, of in model.state_dict().items())


RAN = []


class Runs:
    """Unpickled, it calls a function."""

    def __reduce__(self):
        return (RAN.append, (1,)) if self.refused else (run, (1,))

    def __init__(self, *, refused: bool) -> None:
        self.refused = refused


def run(value: int) -> int:
    RAN.append(value)
    return value


def test_no_code_of_a_checkpoint_is_run(tmp_path, builder) -> None:
    """Objects beside the weights are made empty, and what PyTorch blocks is refused."""
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": STATE, "extra": Runs(refused=False)}, path)
    assert same(load_model(builder, path), network())
    assert RAN == []
    torch.load(path, weights_only=False)
    assert RAN == [1]
    torch.save({"state_dict": STATE, "extra": Runs(refused=True)}, path)
    with pytest.raises(ModelError, match=r"\(builtins\.getattr\), which may run any code"):
        load_model(builder, path)


def test_weights_and_their_average_are_told_apart(tmp_path, builder) -> None:
    path = tmp_path / "weights.pt"
    average = {key: torch.zeros_like(tensor) for key, tensor in STATE.items()}
    torch.save({"model": STATE, "model_ema": average}, path)
    with pytest.warns(SecateurWarning, match=r"weights as 'model', which are used, and a moving"):
        model = load_model(builder, path)
    assert same(model, network())
    torch.save(torch.load(path)["model_ema"], tmp_path / "average.pt")  # what it says to do
    model = load_model(builder, tmp_path / "average.pt")
    assert not any(of.any() for of in model.state_dict().values())


MISFITS = {
    "another head": (
        STATE | {"3.weight": torch.ones(5, 16)},
        r"3\.weight has shape \(5, 16\), expected \(3, 16\): check that the weights belong",
    ),
    "another head, prefixed": (
        prefixed("model.") | {"model.3.weight": torch.ones(5, 16)},
        r"3\.weight has shape \(5, 16\), expected \(3, 16\)",
    ),
    "a name missing": (
        {key: of for key, of in STATE.items() if key != "3.bias"},
        r"3\.bias missing, nothing unknown",
    ),
    "a name missing, prefixed": (
        {key: of for key, of in prefixed("module.model.").items() if not key.endswith("3.bias")},
        r"3\.bias missing, nothing unknown",
    ),
    "a name too many": (STATE | {"4.bias": torch.ones(3)}, r"nothing missing, 4\.bias unknown"),
    "another network": ({"body.weight": torch.ones(2, 2)}, r"and 5 more missing, body\.weight unk"),
    "twice": (prefixed("a.") | prefixed("b."), r"several times, as a\., b\., expected them once"),
    "several": ({"generator": STATE, "critic": STATE}, r"several state dicts \(generator, critic"),
    "no weights": ({"epoch": 3, "lr": 0.1}, r"holds a table of epoch, lr, expected a state dict"),
    "a list": ([1, 2], r"holds a list, expected a state dict"),
    "a module": (network(), r"pickled module or other Python objects \(torch\.nn\.\S+"),
    "a module inside": ({"model": network(), "epoch": 3}, r"pickled module or other Python objec"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_checkpoint_that_does_not_fit_is_one_sentence(misfit, tmp_path, builder) -> None:
    held, says = MISFITS[misfit]
    path = tmp_path / "weights.pt"
    torch.save(held, path)
    with pytest.raises(ModelError, match=says) as error:
        load_model(builder, path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_changed_where_weights_do_not_fit() -> None:
    model = network()
    with pytest.raises(ModelError):
        load_state(model, {k: 0 * v for k, v in STATE.items()} | {"3.bias": torch.ones(9)}, "x")
    assert same(model, network())


def test_a_pickled_module_is_loaded_by_the_function_that_is_advised(tmp_path) -> None:
    path = tmp_path / "whole.pt"
    torch.save(network(), path)
    with pytest.raises(ModelError, match=r"pass net\.py:build, where build returns torch\.load"):
        load_model(str(path))
    code = f"import torch\n\n\ndef build():\n    return torch.load({str(path)!r}, "
    (tmp_path / "whole_net.py").write_text(f"{code}weights_only=False)\n")
    assert same(load_model(f"{tmp_path / 'whole_net.py'}:build"), network())


def test_the_weights_of_a_torchscript_file_are_those_that_are_advised(tmp_path, builder) -> None:
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network().eval(), torch.zeros(1, 1, 4, 4)), str(path))
        with pytest.raises(ModelError, match="is a TorchScript file") as error:
            load_model(str(path))
        advice = re.search(r"torch\.save\(.*'weights\.pt'\)", str(error.value))
        assert advice is not None
        exec(advice[0].replace("weights.pt", str(tmp_path / "weights.pt")), {"torch": torch})
    assert same(load_model(builder, tmp_path / "weights.pt"), network())


# files of other kinds


def _zip(*names: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return held.getvalue()


def _saved(held: object) -> bytes:
    made = io.BytesIO()
    torch.save(held, made)
    return made.getvalue()


KINDS = {
    "net.onnx": (LFS, "is a Git LFS pointer", "run git lfs pull"),
    "net.pt": (LFS, "is a Git LFS pointer", "run git lfs pull"),
    "net.xml": (LFS, "is a Git LFS pointer", "run git lfs pull"),
    "lfs.safetensors": (LFS, "is a Git LFS pointer", "run git lfs pull"),
    "empty.onnx": (b"", "is an empty file", "export it again"),
    "empty.pt": (b"", "is an empty file", "download or export it again"),
    "page.onnx": (b"<!DOCTYPE html><html>", "is a web page", "download the file itself"),
    "page.pt": (b"\n<html lang='en'>", "is a web page", "download the file itself"),
    "net.tflite": (b"\x1c\0\0\0TFL3\0\0", "is a TFLite file", ".onnx file that it was made from"),
    "net.h5": (b"\x89HDF\r\n\x1a\n\0", "is an HDF5 file, such as Keras writes", "tf2onnx"),
    "net.keras": (_zip("config.json", "model.weights.h5"), "is a Keras file", "tf2onnx"),
    "net.pb": (b"\x08\x01", "is a TensorFlow model", "tf2onnx"),
    "net.engine": (b"ftrt\0\0", "is a TensorRT engine", ".onnx file that it was built from"),
    "other.engine": (b"\0\1\2\3", "is a TensorRT engine", ".onnx file that it was built from"),
    "net.mlmodel": (b"\x08\x05\x12", "is a Core ML model", "that it was made from"),
    "net.ort": (b"\x18\0\0\0ORTM\0\0", "is an ONNX Runtime file", ".onnx file that it was made"),
    "net.gguf": (b"GGUF\3\0\0\0", "is a GGUF file", "pass a PyTorch module or an .onnx file"),
    "net.zip": (_zip("net.onnx"), "is a zip archive", "unpack it"),
    "net.npz": (_zip("images.npy"), "is an archive of NumPy arrays", "--data"),
    "net.tar.gz": (b"\x1f\x8b\x08\0", "is a tar or gzip archive", "unpack it"),
    "half.pt": (_saved(STATE)[:700], "is a zip archive without its end", "do that again"),
    "net.pkl": (pickle.dumps({"a": 1}), "is a pickle, which may run any code", "net.py:build"),
    "packed": (b"\x89SPK\r\n\x1a\n\0", "is a file that secateur pack wrote", "secateur unpack"),
    "net.bin": (b"\0\1\2\3", "is a .bin file that is no PyTorch checkpoint", "it was made from"),
    "model.safetensors.index.json": (b"{}", "is the index of weights in several", "hf:FOLDER"),
    "net.py": (NET.encode(), "is a Python file", "net.py:build"),
    "aot.pt2": (
        _zip("aot/data/aotinductor/model/a.so"),
        "is a package of compiled",
        "torch.export",
    ),
    "torn.json": (b'{"schema": ', "is a file that holds no network", "pass one of these"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("where", ["the network", "the weights", "what is evaluated", "Python"])
def test_a_file_of_another_kind_is_named_with_the_way_out(name, where, tmp_path, builder) -> None:
    content, what, way_out = KINDS[name]
    path = tmp_path / name
    path.write_bytes(content)
    load = {
        "the network": lambda: load_model(str(path)),
        "the weights": lambda: load_model(builder, path),
        "what is evaluated": lambda: load_network(str(path)),
        "Python": lambda: secateur.inspect(path),
    }
    with pytest.raises(UserError) as error:
        load[where]()
    said = str(error.value)
    assert said.startswith(f"{path} {what}")
    assert way_out in said
    assert "\n" not in said
    assert re.search("expected (an .onnx|weights as)", said)


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (["saved_model.pb"], "is a TensorFlow model"),
        (["config.json", "model.safetensors"], "is a folder with a Hugging Face model"),
        (["net.onnx"], "is a folder, expected an .onnx"),
    ],
)
def test_a_folder_is_named_with_the_way_out(files, what, tmp_path) -> None:
    for file in files:
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(ModelError, match=what):
        load_model(str(tmp_path))


def test_an_openvino_file_has_its_own_weights(tmp_path) -> None:
    path = tmp_path / "net.xml"
    path.write_text('<?xml version="1.0"?><net name="a" version="11"></net>')
    with pytest.raises(OptionError, match="for an OpenVINO file has its own: leave them out"):
        load_model(str(path), tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["absent.pt", "absent.safetensors", "absent.onnx", "absent.xml"])
def test_a_file_that_is_not_there_is_said_to_be_absent(name, builder) -> None:
    for load in (
        lambda: load_network(name),
        lambda: load_model(builder, name),
        lambda: secateur.inspect(name),
    ):
        with pytest.raises(ModelError, match=f"no such file: {name}"):
            load()


def test_what_cannot_be_read_is_one_sentence(tmp_path, builder) -> None:
    for name in ("pipe.pt", "pipe.onnx", "pipe"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ModelError, match=r"no such file|expected file\.py"):
            load_network(str(tmp_path / name))
        with pytest.raises(ModelError, match="no such file"):
            load_model(builder, tmp_path / name)
    for load in (load_network, lambda name: load_model(builder, name)):
        with pytest.raises(ModelError, match="cannot be read \\(File name too long\\)"):
            load("a" * 300 + ".pt")


def test_weights_alone_are_no_network(tmp_path, builder) -> None:
    path = tmp_path / "weights.pt"
    torch.save(STATE, path)
    with pytest.raises(ModelError, match=r"holds weights only.*pass net\.py:build --weights"):
        load_model(str(path))
    with pytest.raises(OptionError, match=r"holds weights only.*pass --model file\.py:callable"):
        load_network(str(path))
    with pytest.raises(OptionError, match=r"holds weights only.*pass the module, with these"):
        secateur.inspect(path)


def test_a_function_of_the_library_takes_a_reference(builder) -> None:
    layers = secateur.inspect(builder, (1, 4, 4)).layers
    assert [layer.name for layer in layers] == ["0", "3"]


@pytest.mark.parametrize("name", ["lfs.safetensors", "empty.onnx", "page.onnx"])
def test_pack_names_what_it_is_given_in_the_place_of_a_model(name, tmp_path) -> None:
    content, what, _ = KINDS[name]
    (tmp_path / name).write_bytes(content)
    result = CliRunner().invoke(app, ["pack", str(tmp_path / name), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert what in result.stderr


NOTICES = """
import warnings
from torch import nn

def said(module):
    warnings.warn_explicit("is deprecated", DeprecationWarning, "file.py", 1, module=module)

said("torch.jit._script")

def quiet():
    said("torch._dynamo")
    return nn.Linear(2, 2)

def loud():
    said("network")
    return nn.Linear(2, 2)
"""


def test_pytorch_s_notices_about_itself_stay_within_and_others_are_heard(tmp_path) -> None:
    """As those that come when a network is built with torch.compile, the first time."""
    (tmp_path / "notices.py").write_text(NOTICES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_model(f"{tmp_path}/notices.py:quiet")
        assert not caught
        load_model(f"{tmp_path}/notices.py:loud")
    assert [str(of.message) for of in caught] == ["is deprecated"]
