"""Numbers in options; the choice of layers: exact names, globs, and advice that holds."""

import re

import onnx
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from onnx_models import Builder
from torch import Tensor, nn
from typer.testing import CliRunner

import secateur
from secateur import ModelError, OptionError
from secateur.cli.app import app
from secateur.cli.parameters import Numbers
from secateur.network.geometry import LinearGeometry
from secateur.network.layers import Layer, LayerCall
from secateur.pruning.layer_selection import (
    select_layers,
)

ODD = [
    "block[0]",
    "block[1]",
    "a b",
    "a,b",
    "x*",
    "x?",
    "[!a]",
    "[red]bold[/red]",
    "[/x]",
    "-v",
    "é",
]


@pytest.mark.parametrize(
    ("numbers", "text", "value"),
    [
        (Numbers(), "0.5", 0.5),
        (Numbers(kind=int), "-3", -3),
        (Numbers(kind=int), 1000, 1000),  # a default
        (Numbers(kind=int, least=0), "0", 0),
        (Numbers(several=True), "0.5, 1 2", (0.5, 1.0, 2.0)),
        (Numbers(kind=int, several=True), "3", (3,)),
    ],
)
def test_numbers_are_read(numbers: Numbers, text: str, value: object) -> None:
    assert numbers.parse(text) == value


@pytest.mark.parametrize(
    ("numbers", "text", "expected"),
    [
        (Numbers(), "half", "got 'half', expected a number"),
        (Numbers(kind=int), "1.5", "got '1.5', expected a whole number"),
        (Numbers(kind=int, least=2), "1", "got '1', expected a whole number, at least 2"),
        (Numbers(several=True), "1;2", "expected numbers separated by commas, such as 1,2,3"),
        (Numbers(kind=int, several=True), "1,2.5", "expected whole numbers separated by commas"),
        (Numbers(several=True), " , ", "expected numbers separated by commas"),
    ],
)
def test_what_is_no_number_is_told(numbers: Numbers, text: str, expected: str) -> None:
    with pytest.raises(typer.BadParameter, match=re.escape(expected)):
        numbers.parse(text)


def layer(name: str, **more: str) -> Layer:
    return Layer(
        name=name,
        parameter=f"{name}.weight",
        kind="linear",
        shape=torch.Size((8, 8)),
        calls=(LayerCall(0, "x", LinearGeometry(), "y"),),
        **more,  # type: ignore[arg-type]
    )


@given(st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True), st.data())
def test_an_exact_name_selects_that_layer_whatever_is_in_it(names, data) -> None:
    layers = [layer(name) for name in names]
    name = data.draw(st.sampled_from(names))
    assert [one.name for one in select_layers(layers, include=name)] == [name]
    left = [one.name for one in select_layers(layers, exclude=[name])]
    assert left == [other for other in names if other != name]


def test_globs_still_work_and_brackets_may_be_meant_literally() -> None:
    layers = [layer(name) for name in ("block[0].a", "block[0].b", "block[1].a", "conv1", "conv2")]

    def chosen(glob: str) -> list[str]:
        return [one.name for one in select_layers(layers, include=glob)]

    assert chosen("conv[12]") == ["conv1", "conv2"]
    assert chosen("block[[]0].*") == ["block[0].a", "block[0].b"]
    assert chosen("block[0].*") == ["block[0].a", "block[0].b"]
    assert chosen("*.a") == ["block[0].a", "block[1].a"]
    with pytest.raises(OptionError, match="matches no layer"):
        chosen("block[2].*")


class Named(nn.Module):
    """Layers with odd names in a row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("stem", *ODD)})

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x).relu()
        return x


def in_onnx() -> onnx.ModelProto:
    build = Builder(8)
    value = "input"
    for name in ("stem", *ODD):
        torch.manual_seed(0)
        value = build.node("Relu", build.linear(value, nn.Linear(8, 8), f"parts.{name}"))
    return build.model(value)


@pytest.mark.parametrize("network", [Named(), in_onnx()], ids=["torch", "onnx"])
def test_names_as_inspect_gives_them_select_their_layers(network) -> None:
    names = [one.name for one in secateur.inspect(network, (8,)).layers]
    assert names == [f"parts.{name}" for name in ("stem", *ODD)]
    options = {"sparsity": 0.3, "method": "magnitude", "allocation": "uniform", "progress": False}
    for name in (names[1], names[-4]):
        report = secateur.prune(network, torch.randn(300, 8), exclude=name, **options).report
        assert [one.name for one in report.dense_layers] == [names[0], name]
        report = secateur.prune(network, torch.randn(300, 8), include=[name], **options).report
        assert [one.name for one in report.layers] == [name]


def test_the_command_line_prints_odd_names_and_takes_them(tmp_path) -> None:
    onnx.save(in_onnx(), tmp_path / "net.onnx")
    printed = CliRunner().invoke(app, ["inspect", str(tmp_path / "net.onnx")]).stdout
    names = [f"parts.{name}" for name in ODD]
    for name in names:
        assert re.search(rf"^{re.escape(name)} ", printed, re.MULTILINE), name
    (tmp_path / "data.py").write_text("import torch\ndef images(): return torch.randn(40, 8)\n")
    call = ["prune", tmp_path / "net.onnx", "--data", f"{tmp_path / 'data.py'}:images", "-o"]
    excluded = [part for name in names[1:] for part in ("--exclude", name)]
    how = ["--sparsity", 0.3, "--method", "magnitude", "--allocation", "uniform", "--quiet"]
    done = CliRunner().invoke(app, [str(of) for of in (*call, tmp_path / "out", *how, *excluded)])
    assert done.exit_code == 0, done.output
    report = secateur.Report.load(tmp_path / "out" / "report.json")
    assert [one.name for one in report.layers] == names[:1]


@pytest.mark.parametrize(
    ("layers", "options"),
    [
        ([layer("a", obstacle="no")], {}),
        ([layer("a", obstacle="no")], {"exclude": "a"}),
        ([layer("a", protected="first"), layer("b", obstacle="no")], {}),
        ([layer("a", protected="first"), layer("b", obstacle="no")], {"exclude": "b"}),
        ([layer("a", protected="first"), layer("b")], {"exclude": "b"}),
        ([layer("a", protected="first"), layer("b")], {"include": "a", "exclude": "a"}),
        ([layer("a", protected="first")], {"exclude": "a"}),
        ([layer("a")], {"include": []}),
        ([], {}),
    ],
)
def test_advice_for_a_network_with_nothing_to_prune_is_not_refused(layers, options) -> None:
    with pytest.raises(ModelError, match="no layer to prune") as error:
        select_layers(layers, **options)
    advice = str(error.value).rpartition(": ")[2]
    prunable = [one.name for one in layers if one.obstacle is None]
    assert ("include=" in advice) == ("name" in advice)
    if "include=" in advice or "exclude fewer" in advice:
        assert prunable
    if named := re.search("such as '(.*)'", advice):
        assert select_layers(layers, **{**options, "include": named[1]})


class OneLayer(nn.Module):
    """A layer that can be pruned, and one that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 2)
        self.only = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(self.up(x))


def test_a_budget_out_of_reach_proposes_more_layers_only_where_there_are_any() -> None:
    options = {"max_macs": 0.01, "allocation": "uniform", "progress": False}
    images = torch.randn(300, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    with pytest.raises(OptionError, match="raise it, or prune more layers with include"):
        secateur.prune(network, images, **options)
    options = {**options, "max_macs": None, "max_bytes": 0.01}
    with pytest.raises(OptionError, match=r"raise it$"):
        secateur.prune(OneLayer(), images, include="only", **options)
