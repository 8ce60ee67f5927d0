"""Inputs and outputs as users have them, besides the plain ones: mistakes told, names that work."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from inputs import trace
from torch import Tensor, nn
from torch.nn.functional import one_hot

import secateur
from secateur.data.streams import Part, check_shapes
from secateur.errors import DataError
from secateur.frontends import open as open_model
from secateur.network.samples import Samples, as_samples

QUICK: dict[str, Any] = {
    "method": "magnitude",
    "allocation": "uniform",
    "sparsity": 0.5,
    "progress": False,
}
WORDS = 30
pytestmark = pytest.mark.filterwarnings("ignore::secateur.SecateurWarning")


def numbers(seed: int = 0, width: int = 8) -> Tensor:
    return torch.randn(40, width, generator=torch.Generator().manual_seed(seed))


def ids() -> Tensor:
    return torch.randint(WORDS, (40, 6), generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def scores(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


class Several(Base):
    def forward(self, *values: Tensor) -> Tensor:
        return self.scores(sum(values, start=torch.zeros(())))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.b, self.c = nn.Embedding(WORDS, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        real = 1.0 if attention_mask is None else attention_mask[..., None]
        return self.c((self.b(self.words(input_ids)).relu() * real).sum(1))


def refused(says: str) -> Any:
    return pytest.raises(secateur.SecateurError, match=rf"^(?!.*\n).*{says}")


# networks of any number of inputs


@pytest.mark.parametrize(
    "data", [(numbers(), numbers(1)), {"one": numbers(), "other": numbers(1)}], ids=type
)
def test_networks_that_take_any_number_of_inputs_get_all(data) -> None:
    found = secateur.prune(Several().eval(), data, **QUICK)
    summed = secateur.prune(Several().eval(), numbers() + numbers(1), **QUICK)
    assert found.report.data.images == 40
    assert len(found.report.data.inputs) == 2
    assert torch.equal(found.model.b.weight, summed.model.b.weight)


def test_labels_come_behind_any_number_of_inputs() -> None:
    labels = torch.arange(40) % 4
    net = Several().eval()
    found = secateur.evaluate(net, (numbers(), numbers(1), labels))
    assert found.top1 == secateur.evaluate(net, numbers() + numbers(1), labels).top1
    assert secateur.evaluate(net, (numbers(), labels)).images == 40


# tokens


@pytest.mark.parametrize("place", [0, 7], ids=["in the first", "later"])
@pytest.mark.parametrize("wrong", [WORDS, -WORDS - 1])
@pytest.mark.parametrize("kind", ["module", "onnx"])
def test_tokens_that_a_network_does_not_have_are_a_sentence(kind, wrong, place) -> None:
    net: Any = Words().eval()
    if kind == "onnx":
        net = open_model(net).to_onnx(as_samples({"input_ids": ids()}))
    data = ids()
    data[place, 2] = wrong
    with refused(f"holds {wrong}, .* has {WORDS} rows, expected numbers from 0 to {WORDS - 1}"):
        secateur.prune(net, data, **QUICK)


def test_texts_are_called_samples() -> None:
    with pytest.warns(secateur.SecateurWarning, match="only 12 calibration samples"):
        result = secateur.prune(Words().eval(), ids()[:12], **QUICK)
    assert "on 12 samples" in str(result.report.calibration)
    assert not [of for of in (*result.report.warnings, *result.report.notes) if "image" in of]
    with refused("got 7 calibration samples"):
        secateur.prune(Words().eval(), ids()[:7], max_drop=1)


def test_images_are_called_images() -> None:
    assert as_samples(torch.zeros(2, 3, 4, 4)).called("2 images") == "2 images"
    assert as_samples(ids()).called("an image of 2 images") == "a sample of 2 samples"


def part(length: int, width: int) -> Samples:
    return Samples(
        {
            "input_ids": torch.ones(2, length, dtype=torch.long),
            "attention_mask": torch.ones(2, length, dtype=torch.long),
            "age": torch.ones(2, width),
        }
    )


def test_a_feature_as_wide_as_a_batch_is_long_is_not_padded() -> None:
    whole = Samples.joined([part(5, 5), part(9, 5)])
    assert whole.shapes == {"input_ids": (9,), "attention_mask": (9,), "age": (5,)}
    assert whole.tensors["attention_mask"].sum(1).tolist() == [5, 5, 9, 9]
    check_shapes(Part("a", part(5, 5)), Part("b", part(9, 5)))
    with pytest.raises(DataError, match="age of a has shape"):
        check_shapes(Part("a", part(5, 6)), Part("b", part(9, 5)))


# .npz files


def test_an_npz_file_with_other_names_is_told_those_of_the_network(tmp_path) -> None:
    class Two(Base):
        def forward(self, image: Tensor, vector: Tensor) -> Tensor:
            return self.scores(image + vector)

    path = tmp_path / "data.npz"
    np.savez(path, a=numbers(), b=numbers())
    with refused(r"arrays a, b, expected the network's inputs \(image, vector\)"):
        secateur.prune(Two().eval(), path, **QUICK)
    with refused("'images'.*, or the network's input, input_ids"):
        secateur.prune(Words().eval(), path, **QUICK)
    np.savez(path, x=numbers(), more=numbers())

    class One(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.scores(x)

    assert secateur.prune(One().eval(), path, **QUICK).report.data.images == 40


# first layers


class Beside(nn.Module):
    def __init__(self, order: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Linear(8, 16), nn.Linear(6, 16)
        self.body, self.head = nn.Linear(32, 16), nn.Linear(22, 4)
        self.order = order

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.order:
            right = self.other(y).relu()
            left = self.one(x).relu()
        else:
            left = self.one(x).relu()
            right = self.other(y).relu()
        body = self.body(torch.cat([left, right], 1)).relu()
        return self.head(torch.cat([body, y], 1))  # which reads an input too, but not alone


@pytest.mark.parametrize("order", [0, 1])
def test_which_layers_are_the_first_does_not_depend_on_the_order_of_branches(order) -> None:
    graph = trace(Beside(order).eval(), numbers()[:2], numbers(1, 6)[:2])
    found = {layer.name for layer in graph.layers if layer.protected == "first layer"}
    assert found == {"one", "other"}


# outputs, masks and metrics


class Both(NamedTuple):
    boxes: Tensor
    scores: Tensor


class Detector(Base):
    def forward(self, x: Tensor) -> Both:
        found = self.scores(x)
        return Both(found.sum(1, keepdim=True) * 1e-6 + x, found)


def test_fields_of_named_tuples_name_outputs() -> None:
    result = secateur.prune(Detector().eval(), numbers(), output="scores", **QUICK)
    assert result.report.calibration.agreement is not None
    with refused("expected boxes, scores"):
        secateur.prune(Detector().eval(), numbers(), output="score", **QUICK)


def test_files_are_compared_by_the_output_that_was_asked_for(tmp_path) -> None:
    for model in (Detector().eval(), open_model(Detector().eval()).to_onnx(numbers())):
        names = ["scores", 1] if isinstance(model, nn.Module) else [model.graph.output[1].name]
        result = secateur.prune(model, numbers(), output=names[0], **QUICK)
        result.save(tmp_path / type(model).__name__, onnx=True)
        check = result.report.exports["model.onnx"]
        module = Detector().eval()
        with torch.no_grad():
            boxes, scores = (float(of[:8].abs().max()) for of in module(numbers()))
        largest = check["largest_difference"] / max(check["relative_difference"], 1e-30)
        if check["largest_difference"]:
            assert abs(largest - scores) < abs(largest - boxes)
        assert result.output == (1 if isinstance(model, nn.Module) else names[0])


def test_evaluate_takes_the_name_of_the_mask() -> None:
    class Masked(Words):
        def forward(self, input_ids: Tensor, real: Tensor) -> Tensor:
            shown = one_hot(input_ids, WORDS).float()
            return shown + real[..., None] * 0 + self.c.weight.sum() * (1 - real[..., None])

    other = Masked().eval()
    with torch.no_grad():
        other.c.weight += 1  # seen in the padding only
    data = {"input_ids": ids(), "real": (torch.arange(6) < 4).long().repeat(40, 1)}
    how = {"reference": other, "judge": "tokens"}
    assert secateur.evaluate(Masked().eval(), data, mask="real", **how).tokens == 40 * 4
    assert secateur.evaluate(Masked().eval(), data, **how).tokens == 40 * 6


def test_a_metric_of_modules_is_said_not_to_be_that_of_int8() -> None:
    pytest.importorskip("nncf")

    def metric(network: nn.Module) -> float:
        return float(network(numbers()).mean())

    class Alone(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.scores(x)

    with pytest.warns(secateur.SecateurWarning, match="not measured on the network in INT8"):
        result = secateur.prune(Alone().eval(), numbers(), metric=metric, quantize="int8", **QUICK)
    assert "int8" not in result.report.evaluation


# inputs that are given once


class Voice(Base):
    """Takes a state and a rate, which chooses between two networks, and may take a gain."""

    def forward(self, x: Tensor, state: Tensor, rate: int, gain: Tensor | None = None) -> Tensor:
        found = self.scores(x + state)
        found = found if gain is None else found * gain
        return found if rate == 16000 else found * 0.5


def voice(**more: Any) -> dict[str, Any]:
    return {"x": numbers(), "state": numbers(3)[:1], "rate": 16000, **more}


def test_numbers_and_what_is_there_for_one_sample_are_given_once(tmp_path) -> None:
    net = Voice().eval()
    result = secateur.prune(net, voice(), **QUICK)
    assert result.report.data.inputs == {"x": (8,), "state": (8,)}
    repeated = {**voice(), "state": numbers(3)[:1].repeat(40, 1), "rate": torch.tensor(16000)}
    assert torch.equal(result.model.b.weight, secateur.prune(net, repeated, **QUICK).model.b.weight)
    result.save(tmp_path / "out", onnx=True)
    assert result.report.exports["model.onnx"]["relative_difference"] < 1e-5
    slow = secateur.evaluate(net, voice(), reference=net, judge="values")
    assert slow.output_error == 0


def test_a_tensor_that_is_given_once_is_a_constant_of_the_graph(tmp_path) -> None:
    data = voice(gain=torch.tensor(2.0))
    result = secateur.prune(Voice().eval(), data, **QUICK)
    result.save(tmp_path / "out", onnx=True)
    assert result.report.exports["model.onnx"]["relative_difference"] < 1e-5
    smaller = secateur.prune(
        Voice().eval(), data, max_macs=0.8, pattern=secateur.Channels(multiple=1)
    )
    assert smaller.report.macs_fraction <= 0.8


def test_other_numbers_of_samples_are_still_refused() -> None:
    with refused("40 of x, 2 of state, expected as many samples of each input"):
        secateur.prune(Voice().eval(), voice(state=numbers(3)[:2]), **QUICK)


@pytest.mark.parametrize("kind", [list, iter])
def test_two_batches_by_name_are_not_inputs_and_labels(kind) -> None:
    batches = [{"x": part, "state": numbers(3)[:1], "rate": 16000} for part in numbers().split(20)]
    assert secateur.prune(Voice().eval(), kind(batches), **QUICK).report.data.images == 40
    pairs = [(part, part) for part in numbers().split(20)]

    class Two(Base):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.scores(x + y)

    assert secateur.prune(Two().eval(), kind(pairs), **QUICK).report.data.images == 40
