"""`secateur evaluate`: what it tells of each kind of file, and one sentence for every mistake."""

import json
import math
import sys
from fractions import Fraction

import numpy as np
import onnx
import pytest
import torch
from onnx_models import as_onnx, network
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.evaluation.metrics import mcnemar

NETWORKS = "from onnx_models import network\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two networks in several forms, images and labels."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "evaluate_networks.py").write_text(NETWORKS)
    net, other = network(), network()
    nn.init.normal_(other.head.weight, generator=torch.Generator().manual_seed(2))
    onnx.save(as_onnx(net), folder / "net.onnx")
    onnx.save(as_onnx(other), folder / "other.onnx")
    save_file(other.state_dict(), folder / "other.safetensors")
    rng = np.random.default_rng(0)
    images = rng.standard_normal((60, 3, 11, 11), dtype=np.float32)
    labels = net(torch.from_numpy(images)).argmax(1).numpy()
    labels[::3] = rng.integers(0, 5, 20)
    np.savez(folder / "images.npz", images=images, labels=labels)
    np.savez(folder / "unlabelled.npz", images=images)
    np.savez(folder / "two-channels.npz", images=images[:, :2], labels=labels)
    np.savez(folder / "six.npz", images=images, labels=np.arange(60) % 6)
    save_class_folders(folder / "five", 5)
    save_class_folders(folder / "four", 4)
    return folder


def save_class_folders(folder, count):
    rng = np.random.default_rng(1)
    for name in "abcdef"[:count]:
        (folder / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (11, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / "1.png")


@pytest.fixture(autouse=True)
def clean_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("evaluate_networks", None)


def invoke(place, *arguments, data="images.npz"):
    filled = [str(place / text[1:]) if text[:1] == "@" else text for text in arguments]
    return CliRunner().invoke(app, ["evaluate", *filled, "--eval", str(place / data)])


def told(place, *arguments, **more):
    result = invoke(place, *arguments, "--json", **more)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def expected(place, *, reference=True):
    net, other = network(), network()
    other.load_state_dict(secateur.frontends.loading.read_state(place / "other.safetensors"))
    with np.load(place / "images.npz") as held:
        images, labels = torch.from_numpy(held["images"]), torch.from_numpy(held["labels"])
    return secateur.evaluate(other, images, labels, reference=net if reference else None)


FORMS = {
    "onnx": ["@other.onnx"],
    "safetensors": ["@other.safetensors", "--model", "@evaluate_networks.py:network"],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_network_is_judged_alike(place, form) -> None:
    found = told(place, *FORMS[form])
    want = expected(place, reference=False)
    assert list(found) == ["network"]
    assert found["network"]["top1"] == want.top1
    assert found["network"]["standard_error"] == pytest.approx(want.standard_error)
    assert found["network"]["images"] == 60
    assert found["network"]["drop"] is None


@pytest.mark.parametrize("other", ["@net.onnx", "@evaluate_networks.py:network"])
def test_two_networks_are_compared_on_the_same_images(place, other) -> None:
    found, want = told(place, "@other.onnx", "--against", other), expected(place)
    assert want.drop > 10
    for name in ("top1", "drop", "drop_error", "p_value", "agreement"):
        assert found["network"][name] == pytest.approx(getattr(want, name), rel=1e-6), name
    assert found["network"]["kl"] == pytest.approx(want.kl, rel=1e-4)
    assert found["against"]["top1"] == pytest.approx(want.top1 + want.drop)
    assert found["against"]["drop"] == 0


def test_without_labels_only_agreement_is_told(place) -> None:
    found = told(place, "@other.onnx", "--against", "@net.onnx", data="unlabelled.npz")["network"]
    assert found["top1"] is found["drop"] is found["p_value"] is None
    assert found["agreement"] == expected(place).agreement
    result = invoke(place, "@other.onnx", "--against", "@net.onnx", data="unlabelled.npz")
    assert "top-1" not in result.stdout
    assert f"the same answer for {found['agreement']:.2f} % of 60 images" in result.stdout


def test_people_get_sentences(place) -> None:
    want = expected(place)
    result = invoke(place, "@other.onnx", "--against", "@net.onnx")
    first, second, third, _ = result.stdout.splitlines()
    assert f"other.onnx: top-1 {want.top1:.2f} % ± {want.standard_error:.2f} on 60" in first
    assert "net.onnx: top-1" in second
    assert f"loses {want.drop:.2f} ± {want.drop_error:.2f} points against" in third
    assert f"p = {want.p_value:.2g}" in third


def test_a_network_against_itself(place) -> None:
    found = told(place, "@net.onnx", "--against", "@net.onnx")
    assert found["network"]["p_value"] == 1
    assert found["network"]["agreement"] == 100
    assert found["against"]["top1"] == found["network"]["top1"]


MISTAKES = {
    "no such file": (["absent.onnx"], "images.npz", "no such file: absent.onnx"),
    "no such IR": (["absent.xml"], "images.npz", "no such file: absent.xml"),
    "weights alone": (["@other.safetensors"], "images.npz", "pass --model"),
    "no labels": (["@net.onnx"], "unlabelled.npz", "has no labels, expected some"),
    "no data": (["@net.onnx"], "absent", "no such file or folder"),
    "a label too many": (["@net.onnx"], "six.npz", "10 of 60 images have labels such as 5 for"),
    "no other": (["@net.onnx", "--against", "absent.py:f"], "images.npz", "no such file: absent"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(place, mistake) -> None:
    arguments, data, says = MISTAKES[mistake]
    if arguments == ["absent.xml"]:
        pytest.importorskip("openvino")
    result = invoke(place, *arguments, data=data)
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = result.stderr.splitlines()
    assert says in line
    assert result.stdout == ""


def test_fewer_class_folders_than_outputs_are_told(place) -> None:
    scaled = ["--mean", "0.5", "--std", "0.5"]
    result = invoke(place, "@net.onnx", *scaled, data="five")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "pixels are fed in 0..1" in invoke(place, "@net.onnx", data="five").stderr
    result = invoke(place, "@net.onnx", *scaled, data="four")
    assert result.exit_code == 0
    assert "top-1" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("secateur: warning: ")
    assert "has 4 class folders for a network with 5 outputs" in line


def test_images_that_do_not_fit_are_one_sentence(place, own_process) -> None:
    result = invoke(place, "@net.onnx", data="two-channels.npz")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "takes 3 x 11 x 11 images, got 2 x 11 x 11" in line
    result = invoke(place, "@net.onnx", "--size", "9", "--mean", "0", data="five")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert (
        "the ONNX model takes 11 x 11 images, got 9 x 9, expected the same: pass --size 11" in line
    )


# McNemar's test


def slow_mcnemar(lost: int, won: int) -> float:
    """Every way in which the images could have fallen, counted."""
    count, least = lost + won, min(lost, won)
    ways = [bin(way).count("1") for way in range(2**count)]
    return sum(min(ones, count - ones) <= least for ones in ways) / 2**count


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (0, 5), (3, 9), (7, 6), (5, 5), (12, 2)])
def test_mcnemar_counts_the_ways(lost, won) -> None:
    assert mcnemar(lost, won) == pytest.approx(slow_mcnemar(lost, won), rel=1e-12)


@pytest.mark.parametrize(("lost", "won"), [(900, 1200), (505, 495)])
def test_mcnemar_of_many_images(lost, won) -> None:
    count = lost + won
    ways = sum(math.comb(count, least) for least in range(min(lost, won) + 1))
    assert mcnemar(lost, won) == pytest.approx(float(Fraction(2 * ways, 2**count)), rel=1e-9)
