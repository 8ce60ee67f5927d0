"""Outputs whose rows depend on the values: judged by what has a row for each image, or refused."""

import warnings
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from inputs import samples_of, trace
from onnx_models import Builder
from torch import Tensor, nn

import secateur
from secateur.export.files import save_model, save_onnx
from secateur.network import judging

OPTIONS = {"sparsity": 0.5, "progress": False}


class Detector(nn.Module):
    """Rows of numbers for 64 places of an image, and what is made of them."""

    def __init__(self, outputs: Callable[[Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        convs = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 1)]
        self.body = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])
        self.outputs = outputs

    def forward(self, x: Tensor) -> object:
        return self.outputs(self.body(x).flatten(2).transpose(1, 2))


def some(rows: Tensor) -> Tensor:
    return rows[rows[..., 4] > rows[..., 0]]


def best(rows: Tensor) -> Tensor:
    """As many rows as images, but for places that are equally good."""
    return rows[rows[..., 4] == rows[..., 4].amax(1, keepdim=True)]


def nothing(rows: Tensor) -> Tensor:
    return rows[rows[..., 4] > 1e6]


NETWORKS = {  # by the outputs, the number of that which has rows; 0 = none has
    "first": (lambda rows: (some(rows), rows), 2),
    "second": (lambda rows: (rows, some(rows)), 1),
    "named": (lambda rows: {"boxes": some(rows), "all": {"rows": rows}}, 2),
    "indices": (lambda rows: ((rows[..., 4] > rows[..., 0]).nonzero(), rows.mean(1)), 2),
    "nothing found": (lambda rows: (nothing(rows), rows), 2),
    "alone": (some, 0),
    "nothing found alone": (nothing, 0),
    "several": (lambda rows: [some(rows), nothing(rows)], 0),
    "sorted": (lambda rows: some(rows).sort(0)[0], 0),
    "a loss first": (lambda rows: (rows.square().mean(), some(rows), rows), 3),
}


def images(count: int = 48) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def others() -> Tensor:
    return torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def judged_by(report: secateur.Report) -> str:
    return " ".join(note for note in report.notes if note.startswith("judged by"))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_judged_by_what_has_a_row_for_each_image(name, tmp_path) -> None:
    outputs, number = NETWORKS[name]
    network = Detector(outputs).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error" if number else "ignore")
        warnings.filterwarnings("ignore", "only 48 calibration images")
        result = secateur.prune(network, images(), **OPTIONS)
    assert result.report.sparsity == pytest.approx(0.5, abs=0.01)
    assert len({layer.sparsity for layer in result.report.layers}) > 1  # measured, each its own
    asked = {"named": "output='all.rows'"}.get(name, f"output={number - 1}")
    assert (asked in judged_by(result.report)) == (number > 1)
    assert ("by the value " in judged_by(result.report)) == (number == 0)
    if number:
        assert result.report.calibration is not None
        found = secateur.evaluate(result.model, images(), reference=network)
        assert found == result.report.calibration or found.output_error == pytest.approx(
            result.report.calibration.output_error, rel=1e-2
        )


def test_what_is_selected_from_is_what_it_is_judged_by() -> None:
    graph = trace(Detector(some).eval(), images(2))
    graph = judging.judged(graph, samples_of(graph, images(5)))
    scores, rows = graph.outputs[0], graph.outputs[1]
    assert rows in graph.unsteady
    assert scores not in graph.unsteady
    assert any(scores in op.reads for op in graph.ops if op.name == rows)


def test_evaluation_data_are_judged_by_the_same_output_or_refused_before_the_walk() -> None:
    network = Detector(NETWORKS["first"][0]).eval()
    result = secateur.prune(network, images(), evaluation=others(), **OPTIONS)
    assert result.report.evaluation["pruned"].output_error is not None
    walked: list[object] = []
    options = {**OPTIONS, "progress": lambda *of: walked.append(of)}
    for outputs in (some, best):
        with pytest.raises(secateur.DataError, match="as many rows as the values of the images"):
            secateur.prune(Detector(outputs).eval(), images(), evaluation=others(), **options)
    assert not walked


@pytest.mark.parametrize("name", ["first", "nothing found", "alone", "nothing found alone"])
def test_the_exported_file_is_compared_by_what_can_be_compared(name, tmp_path) -> None:
    module = Detector(NETWORKS[name][0]).eval()
    check = save_onnx(module, tmp_path / "net.onnx", images(4), [])
    assert check.get("relative_difference", 0.0) < 1e-3
    assert ("relative_difference" in check) == ("alone" not in name)


def network_with(select: Callable[[Builder, str], list[str]]) -> onnx.ModelProto:
    """An ONNX file that ends in a selection of the rows that it is given, (batch, 64, 5)."""
    body = Detector(some).eval().body
    build = Builder(3, 8, 8)
    x = build.node("Relu", build.convolution("input", body[0], "a"))
    x = build.node("Relu", build.convolution(x, body[2], "b"))
    x = build.convolution(x, body[4], "c")
    rows = build.node("Reshape", x, build.hold(np.array([0, 5, 64])))
    return build.model(*select(build, build.node("Transpose", rows, perm=[0, 2, 1])))


def suppressed(build: Builder, rows: str) -> str:
    axis = build.hold(np.array([2]))
    at = [build.hold(np.array([number])) for number in (0, 4, 5)]
    boxes = build.node("Slice", rows, at[0], at[1], axis)
    scores = build.node("Transpose", build.node("Slice", rows, at[1], at[2], axis), perm=[0, 2, 1])
    least = build.hold(np.float32(0.1).reshape(1))
    limits = [build.hold(np.array([9])), build.hold(np.float32(0.5).reshape(1)), least]
    return build.node("NonMaxSuppression", boxes, scores, *limits)


def gathered(build: Builder, rows: str) -> str:
    large = build.node("Greater", rows, build.hold(np.float32(0.5)))
    at = build.node("Transpose", build.node("NonZero", large), perm=[1, 0])
    return build.node("GatherND", rows, at)


def compressed(build: Builder, rows: str) -> str:
    flat = build.node("Reshape", rows, build.hold(np.array([-1])))
    return build.node("Compress", flat, build.node("Greater", flat, build.hold(np.float32(1e6))))


@pytest.mark.parametrize("select", [suppressed, gathered, compressed])
@pytest.mark.parametrize("also", [False, True], ids=["alone", "first"])
def test_onnx_files_with_a_selection_are_pruned(select, also, tmp_path) -> None:
    def outputs(build: Builder, rows: str) -> list[str]:
        return [select(build, rows), *([build.node("Sigmoid", rows)] if also else [])]

    model = network_with(outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few images; the first output has no rows
        result = secateur.prune(model, images(), **OPTIONS)
    assert result.report.sparsity == pytest.approx(0.5, abs=0.01)
    assert ("output='sigmoid" in judged_by(result.report)) == also
    assert ("by the value " in judged_by(result.report)) != also
    if also:
        assert secateur.evaluate(result.model, images(), reference=model).output_error is not None
    check = save_model(result.model, tmp_path / "net.onnx", images(4), ["b.weight"])
    assert check["zeros"] > 0
    assert check.get("relative_difference", 0.0) < 1e-3
