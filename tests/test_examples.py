"""The examples run as they stand, on networks with random weights; nothing is downloaded."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx_models import as_onnx, network
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pictures(tmp_path):
    """A folder of 40 small photographs, so to speak."""
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for index in range(40):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02}.png")
    return folder


def needed(name):
    """A package, or the test is left out where it is missing or cannot be imported."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # torchvision for another build of torch is a RuntimeError
        pytest.skip(f"{name} cannot be imported: {' '.join(str(error).split())[:100]}")


def zeros_of(tensors, report):
    names = [f"{layer['name']}.weight" for layer in report["layers"]]
    return sum(int((tensors[name] == 0).sum()) for name in names)


def check(out, tensors, sparsity):
    report = json.loads((out / "report.json").read_text())
    assert report["sparsity"] == pytest.approx(sparsity, abs=0.01)
    assert zeros_of(tensors, report) == sum(layer["zeros"] for layer in report["layers"]) > 0


def test_an_onnx_file(pictures, tmp_path, capsys) -> None:
    onnx.save(as_onnx(network(), size=16), tmp_path / "net.onnx")
    out = tmp_path / "out"
    arguments = [tmp_path / "net.onnx", pictures, "--size", 16, "--sparsity", 0.5, "-o", out]
    load("prune_onnx_file").main([str(argument) for argument in arguments])
    held = onnx.load(out / "model.onnx").graph.initializer
    tensors = {of.name: torch.tensor(onnx.numpy_helper.to_array(of)) for of in held}
    check(out, tensors, 0.5)
    assert "% of 8 other images" in capsys.readouterr().out


def test_a_model_of_timm(pictures, tmp_path) -> None:
    needed("timm")
    from safetensors.torch import load_file

    out = tmp_path / "out"
    arguments = ["test_resnet", pictures, "--random", "--sparsity", 0.4, "-o", out]
    load("prune_timm_model").main([str(argument) for argument in arguments])
    check(out, load_file(out / "model.safetensors"), 0.4)


def test_a_classifier_of_hugging_face(pictures, tmp_path) -> None:
    transformers = needed("transformers")
    if importlib.util.find_spec("torchvision"):
        needed("torchvision")  # transformers uses it where it is there
    from safetensors.torch import load_file

    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
    )
    config.save_pretrained(tmp_path / "net")
    (tmp_path / "net" / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ConvNextImageProcessor",
                "size": {"shortest_edge": 32},
                "crop_pct": 0.8,
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.25, 0.25, 0.25],
            }
        )
    )
    out = tmp_path / "out"
    arguments = [tmp_path / "net", pictures, "--random", "--sparsity", 0.4, "-o", out]
    load("prune_hugging_face_model").main([str(argument) for argument in arguments])
    written = transformers.AutoModelForImageClassification.from_pretrained(out)
    held = {f"classifier.{name}": of for name, of in written.state_dict().items()}
    check(out, held, 0.4)
    assert load_file(out / "model.safetensors")
