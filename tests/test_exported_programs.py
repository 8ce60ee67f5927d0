"""Exported programs (.pt2) as networks: pruned as the module is, and written back."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.export import Dim
from typer.testing import CliRunner

import secateur
from secateur.cli.app import app
from secateur.errors import ModelError
from secateur.frontends.loading import load_model
from secateur.frontends.torch.exported_programs import (
    as_module,
    program_of,
    read_program,
    save_program,
)

HOW = {"sparsity": 0.5, "method": "magnitude", "allocation": "uniform"}


class Net(nn.Module):
    """With a buffer that is not saved and a plain tensor, which a program holds otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.body.append(nn.Conv2d(4, 4, 3)).append(nn.Flatten())
        self.head = nn.Linear(64, 3)
        self.register_buffer("scale", torch.full((3,), 2.0), persistent=False)
        self.shift = torch.ones(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images)) * self.scale + self.shift


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def images(count: int = 40) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def exported(module: nn.Module, path, *inputs: torch.Tensor, dynamic: bool = True) -> str:
    given = inputs or (images(2),)
    shapes = tuple({0: Dim.DYNAMIC} for _ in given) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, given, dynamic_shapes=shapes)
        torch.export.save(program, path)
    return str(path)


@pytest.fixture
def program(tmp_path) -> str:
    return exported(net(), tmp_path / "net.pt2")


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, of its own specs
def test_a_program_is_the_module_that_it_was_made_from(program) -> None:
    found = load_model(program)
    assert {name: of.shape for name, of in found.state_dict().items()} == {
        name: of.shape for name, of in net().state_dict().items()
    }
    again = pickle.loads(pickle.dumps(found))
    for count in (1, 2, 7):
        torch.testing.assert_close(found(images(count)), net()(images(count)))
        assert torch.equal(again(images(count)), found(images(count)))
    assert program_of(again) == program
    assert again.state_dict().keys() == found.state_dict().keys()


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # PyTorch's, of its own specs
def test_a_program_that_comes_from_no_file_can_be_pickled() -> None:
    """Such as a network of which channels have left; PyTorch gives it the exporter's tracer."""
    made = as_module(torch.export.export(net(), (images(2),)))
    for found in (made, copy.deepcopy(made)):
        again = pickle.loads(pickle.dumps(found))
        assert torch.equal(again(images(2)), found(images(2)))
        assert again.state_dict().keys() == found.state_dict().keys()


def test_it_is_pruned_as_the_module_is(program) -> None:
    found = secateur.prune(program, images(), **HOW)
    expected = secateur.prune(net(), images(), **HOW)
    assert [of.name for of in found.report.layers] == [of.name for of in expected.report.layers]
    state = found.model.state_dict()
    assert set(state) == set(net().state_dict())
    for name, tensor in expected.model.state_dict().items():
        torch.testing.assert_close(state[name], tensor)
        assert torch.equal(state[name] == 0, tensor == 0)


def test_it_is_written_back_as_weights_and_as_a_program(program, tmp_path) -> None:
    np.savez(tmp_path / "images.npz", images=images().numpy())
    out = tmp_path / "out"
    how = ["--sparsity", "0.5", "--method", "magnitude", "--allocation", "uniform"]
    data = ["--data", str(tmp_path / "images.npz")]
    result = CliRunner().invoke(app, ["prune", program, *data, *how, "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert f"{out / 'model.pt2'}: " in result.stdout
    weights = load_file(out / "model.safetensors")
    assert set(weights) == set(net().state_dict())
    pruned = torch.export.load(out / "model.pt2")
    assert all(torch.equal(pruned.state_dict[name], of) for name, of in weights.items())
    assert int((weights["body.3.weight"] == 0).sum()) >= weights["body.3.weight"].numel() // 2
    again = load_model(program, out / "model.safetensors")  # as --weights
    with torch.no_grad():
        torch.testing.assert_close(pruned.module()(images(3)), again(images(3)))
    report = secateur.Report.load(out / "report.json")
    assert report.exports["model.pt2"]["bytes"] == (out / "model.pt2").stat().st_size


def test_the_same_program_is_written_each_time(program, tmp_path) -> None:
    module = read_program(program)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_program(module, tmp_path / name / "model.pt2")
    assert (tmp_path / "a/model.pt2").read_bytes() == (tmp_path / "b/model.pt2").read_bytes()


@pytest.mark.parametrize("name", ["net.onnx", "net.pt", "net.safetensors", "net"])
def test_no_code_of_a_program_under_another_name_is_run(program, name, tmp_path) -> None:
    ran, path = tmp_path / "ran", tmp_path / name
    with zipfile.ZipFile(tmp_path / "net.pt2") as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.namelist():
            said = f'"expr_str": "open({str(ran)!r}, \'w\')"'.encode()
            content = re.sub(rb'"expr_str": "[^"]*"', lambda _, said=said: said, source.read(entry))
            target.writestr(entry, content)
    with pytest.raises(ModelError, match="rename it if you trust it"):
        load_model(str(path))
    assert not ran.exists()


class Two(nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return first + second


def test_what_cannot_be_pruned_says_how_to_export_it(tmp_path) -> None:
    path = exported(net(), tmp_path / "fixed.pt2", dynamic=False)
    with pytest.raises(ModelError, match=r"takes batches of 2 only, expected any.*Dim\.DYNAMIC"):
        load_model(path)
    path = exported(Net().train(), tmp_path / "train.pt2")
    with pytest.raises(ModelError, match=r"in training mode \(aten\.batch_norm\.default\).*eval"):
        load_model(path)
    dropout = nn.Sequential(nn.Dropout(), nn.Linear(8, 3))
    path = exported(dropout, tmp_path / "dropout.pt2")
    with pytest.raises(ModelError, match=r"in training mode \(aten\.dropout\.default\).*eval"):
        load_model(path)
    shapes = ({0: torch.export.Dim.DYNAMIC}, None)
    program = torch.export.export(Two(), (images(2), torch.tensor(1.0)), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "two.pt2")
    with pytest.raises(ModelError, match="takes second, which is no batch of samples, expected"):
        load_model(str(tmp_path / "two.pt2"))


def test_the_export_that_is_advised_is_taken(tmp_path) -> None:
    path = exported(net(), tmp_path / "net.pt2", dynamic=False)
    with pytest.raises(ModelError) as error:
        load_model(path)
    advice = str(error.value).partition("export it as ")[2].partition(", with two images")[0]
    program = eval(advice, {"torch": torch, "model": net(), "images": images(2)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, path)
    torch.testing.assert_close(load_model(path)(images(3)), net()(images(3)))


def test_a_broken_program_is_one_sentence(program, tmp_path) -> None:
    whole = (tmp_path / "net.pt2").read_bytes()
    for content in (whole[:900], b"PK\3\4" + whole[4:-40], b"no program"):
        (tmp_path / "net.pt2").write_bytes(content)
        with pytest.raises(ModelError, match=r"expected") as error:
            load_model(program)
        assert "\n" not in str(error.value)


def test_a_program_that_has_changed_is_not_written_over(program, tmp_path) -> None:
    module = read_program(program)
    exported(nn.Linear(8, 3).eval(), program)
    with pytest.raises(ModelError, match="no longer the program that was pruned"):
        save_program(module, tmp_path / "out.pt2")
    assert not (tmp_path / "out.pt2").exists()
