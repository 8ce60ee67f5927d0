"""Top-1, its errors and KL against slow references; the network comes back as it was."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch import nn

from secateur.core.distance import value_error
from secateur.errors import DataError, ModelError
from secateur.evaluation.evaluation_set import evaluate
from secateur.evaluation.inference import predict
from secateur.evaluation.metrics import compare, kl_divergence
from secateur.evaluation.results import Evaluation, verdict_lines


@pytest.fixture
def scores():
    generator = torch.Generator().manual_seed(0)
    dense = 2 * torch.randn(83, 5, generator=generator)
    pruned = dense + torch.randn(83, 5, generator=generator)
    labels = dense.argmax(1)
    labels[::4] = torch.randint(0, 5, labels[::4].shape, generator=generator)
    return pruned, labels, dense


def slow_top1(scores, labels):
    """Share of hits and the binomial standard error, in percent."""
    hits = [
        max(range(len(row)), key=row.__getitem__) == label
        for row, label in zip(scores.tolist(), labels.tolist(), strict=True)
    ]
    share = sum(hits) / len(hits)
    return hits, 100 * share, 100 * math.sqrt(share * (1 - share) / len(hits))


def slow_kl(reference, logits):
    total = 0.0
    for p, q in zip(reference.double().numpy(), logits.double().numpy(), strict=True):
        p, q = np.exp(p) / np.exp(p).sum(), np.exp(q) / np.exp(q).sum()
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(reference)


def test_top1_and_its_standard_error(scores):
    pruned, labels, _ = scores
    _, top1, error = slow_top1(pruned, labels)
    found = compare(pruned, labels)
    assert found.images == 83
    assert found.top1 == pytest.approx(top1, rel=1e-12)
    assert found.standard_error == pytest.approx(error, rel=1e-12)
    assert (found.drop, found.agreement, found.kl) == (None, None, None)


def test_the_drop_and_its_error_are_paired(scores):
    pruned, labels, dense = scores
    hits, top1, _ = slow_top1(pruned, labels)
    base, base_top1, _ = slow_top1(dense, labels)
    lost = np.array(base, float) - np.array(hits, float)  # +1 lost, -1 won, 0 the same
    found = compare(pruned, labels, dense)
    assert found.drop == pytest.approx(base_top1 - top1, rel=1e-12)
    assert found.drop == pytest.approx(100 * lost.mean(), rel=1e-12)
    error = 100 * np.sqrt(((lost - lost.mean()) ** 2).mean() / len(lost))
    assert found.drop_error == pytest.approx(error, rel=1e-12)
    unpaired = math.hypot(found.standard_error, slow_top1(dense, labels)[2])
    assert 0 < found.drop_error < unpaired


def test_a_network_that_gets_better_has_a_negative_drop(scores):
    pruned, labels, dense = scores
    there, back = compare(pruned, labels, dense), compare(dense, labels, pruned)
    assert there.drop > 0
    assert back.drop == pytest.approx(-there.drop)
    assert back.drop_error == pytest.approx(there.drop_error)


def test_agreement_and_kl_need_no_labels(scores):
    pruned, _, dense = scores
    found = compare(pruned, reference=dense)
    same = sum(
        a.index(max(a)) == b.index(max(b))
        for a, b in zip(pruned.tolist(), dense.tolist(), strict=True)
    )
    assert found.agreement == pytest.approx(100 * same / 83)
    assert found.kl == pytest.approx(slow_kl(dense, pruned), rel=1e-10)
    assert (found.top1, found.standard_error, found.drop, found.drop_error) == (None,) * 4


def test_kl_is_directed_and_ignores_a_shift(scores):
    pruned, _, dense = scores
    assert kl_divergence(dense, pruned) != pytest.approx(kl_divergence(pruned, dense), rel=1e-3)
    assert kl_divergence(dense, pruned + 7) == pytest.approx(kl_divergence(dense, pruned), rel=1e-5)


def test_kl_with_itself_is_zero_and_large_scores_stay_finite(scores):
    _, _, dense = scores
    assert kl_divergence(dense, dense) == 0.0
    assert math.isfinite(kl_divergence(1e4 * dense, -1e4 * dense))


class Net(nn.Module):
    def __init__(self, wrap=lambda scores: scores):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 4)
        self.wrap = wrap
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        return self.wrap(self.head(self.body(x)))


@pytest.fixture
def images():
    return torch.randn(10, 6, generator=torch.Generator().manual_seed(1))


def test_evaluate_is_compare_on_the_eval_mode_outputs(images):
    model, other = Net(), Net()
    nn.init.normal_(other.head.weight)
    labels = torch.arange(10) % 4
    found = evaluate(model, images, labels, reference=other)
    model.eval(), other.eval()
    with torch.no_grad():
        assert found == compare(model(images), labels, other(images))


def test_the_training_modes_come_back_module_by_module(images):
    model = Net().train()
    model.body.eval()  # frozen normalisation in a training network
    statistics = model.body[1].running_mean.clone()
    evaluate(model, images, torch.zeros(10, dtype=torch.long))
    assert model.training
    assert model.head.training
    assert not any(module.training for module in model.body.modules())
    assert torch.equal(model.body[1].running_mean, statistics)


def test_the_training_mode_comes_back_after_an_error(images):
    model = Net(lambda scores: scores.sum()).train()
    with pytest.raises(ModelError):
        predict(model, images)
    assert model.training


def test_predict_does_not_depend_on_the_batches(images):
    model = Net().eval()
    whole = predict(model, images)
    model.batches.clear()
    assert torch.allclose(predict(model, images, batch_size=4), whole, atol=1e-6)
    assert model.batches == [4, 1, 4, 2]  # four images, four classes: which axis is which?
    assert not whole.requires_grad


def test_predict_takes_the_images_to_the_network_s_precision(images):
    model = Net().double()
    found = predict(model, images)
    assert found.dtype == torch.float32
    model.eval()
    assert torch.allclose(found, model(images.double()).float())


class Mixed(nn.Module):
    """A classifier in one precision, with parameters of other types before or in it."""

    def __init__(self, body, first=None, norm=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        if first is not None:
            self.first = nn.Parameter(torch.ones(3).to(first), requires_grad=False)
        self.body = nn.Linear(6, 8).to(body)
        self.norm = nn.LayerNorm(8).to(norm)
        self.head = nn.Linear(8, 4).to(body)

    def forward(self, x):
        hidden = self.norm(self.body(x).to(self.norm.weight.dtype))
        return self.head(hidden.to(self.head.weight.dtype))


@pytest.mark.parametrize("body", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("first", [None, torch.float64, torch.float16, torch.int8, torch.int64])
@pytest.mark.parametrize("norm", [torch.float32, torch.bfloat16])
def test_the_input_has_the_type_that_meets_it_whatever_else_the_network_holds(
    images, body, first, norm
):
    model = Mixed(body, first, norm)
    with torch.no_grad():
        want = model(images.to(body)).float()
    assert torch.equal(predict(model, images), want)


def test_a_network_that_fails_in_every_type_is_told_by_its_first_failure(images):
    model = Mixed(torch.float32, torch.float64)
    with pytest.raises(ModelError, match=r"\(7,\).*10x7 and 6x8"):
        predict(model, torch.cat([images, images[:, :1]], 1))


def test_a_network_without_values_is_told(images):
    with pytest.raises(ModelError, match="weights are on the device meta"):
        predict(Net().to("meta"), images)


@pytest.mark.parametrize("error", [TypeError, KeyError, IndexError, NotImplementedError])
def test_whatever_a_network_raises_is_told(images, error):
    class Fails(Net):
        def forward(self, x):
            raise error("no such thing")

    with pytest.raises(ModelError, match=r"the model fails on images of shape \(6,\).*no such"):
        predict(Fails(), images)


class Named:
    def __init__(self, scores):
        self.loss, self.logits = None, scores


@pytest.mark.parametrize(
    "wrap", [Named, lambda s: (s, s.sum()), lambda s: {"out": s, "aux": -s}, lambda s: [(s,)]]
)
def test_predict_finds_the_scores_in_what_networks_return(images, wrap):
    assert torch.equal(predict(Net(wrap), images), predict(Net(), images))


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (lambda s: s[:, :, None], r"\(10, 4, 1\)"),
        (lambda s: s[:, 0], r"\(10,\)"),
        (lambda s: "text", "str"),
        (lambda s: (), "tuple"),
    ],
)
def test_other_outputs_are_refused_by_their_shape(images, wrap, named):
    with pytest.raises(ModelError, match=f"returns {named}.*batch, classes"):
        predict(Net(wrap), images)


def test_labels_or_a_reference_are_needed(images):
    with pytest.raises(DataError, match="neither labels nor a reference"):
        evaluate(Net(), images)


def test_evaluate_compares_detectors(images):
    model, other = Net(lambda s: s.reshape(-1, 2, 2)), Net(lambda s: 1.1 * s.reshape(-1, 2, 2))
    error = evaluate(other, images, reference=model).output_error
    with torch.no_grad():
        dense = Net().eval()(images).reshape(-1, 2, 2)
    assert error == pytest.approx(value_error([dense], [1.1 * dense]))


@pytest.mark.parametrize("shape", [(20, 1), (20,)])
def test_outputs_that_are_no_scores_are_compared_by_their_error(shape):
    generator = torch.Generator().manual_seed(3)
    dense = 5 + torch.randn(shape, generator=generator)
    pruned = dense + 0.1 * torch.randn(shape, generator=generator)
    found = compare(pruned, reference=dense)
    flat = dense.double().flatten().tolist()
    mean = sum(flat) / len(flat)
    variance = sum((value - mean) ** 2 for value in flat) / len(flat)
    pairs = zip(pruned.double().flatten().tolist(), flat, strict=True)
    error = sum((one - other) ** 2 for one, other in pairs) / len(flat)
    assert found.output_error == pytest.approx(error / variance, rel=1e-5)
    assert (found.images, found.agreement, found.kl) == (20, None, None)
    assert compare(dense, reference=dense).output_error == 0
    with pytest.raises(ModelError, match="for the images have labels"):
        compare(pruned, torch.zeros(20, dtype=torch.long), dense)


def test_outputs_of_different_shapes_are_refused(scores):
    with pytest.raises(ModelError, match=r"shapes \(83, 5\) and \(83, 4\)"):
        compare(scores[0], reference=scores[2][:, :4])


@pytest.mark.parametrize("wrong", [4, -1])
def test_labels_without_an_output_are_refused(images, wrong):
    labels = torch.tensor([0, 3, wrong, 1, 2, 0, wrong, 1, 2, 3])
    says = f"2 of 10 images have labels such as {wrong} for a network with 4 outputs.*from 0 to 3"
    with pytest.raises(DataError, match=says):
        evaluate(Net(), images, labels)


def test_as_many_labels_as_images_are_needed(images):
    with pytest.raises(DataError, match="got 9 labels for 10 images"):
        # without the shape checks of the tests, as users call it
        inspect.unwrap(evaluate)(Net(), images, torch.zeros(9, dtype=torch.long))


def test_an_evaluation_is_printed_as_on_the_command_line():
    known = {"top1": 87.123456, "standard_error": 0.98765, "drop": 1.2345, "drop_error": 0.5}
    assert str(Evaluation(images=300, **known, agreement=95.0, kl=0.0123)) == (
        "top-1 87.12 % ± 0.99, 1.23 ± 0.50 points lost, "
        "agreement with dense 95.00 %, KL 0.0123 nats on 300 images"
    )
    assert str(Evaluation(images=5, top1=80.0, standard_error=17.9)) == (
        "top-1 80.00 % ± 17.90 on 5 images"
    )


def test_a_negative_loss_is_a_gain():
    known = {"top1": 90.0, "standard_error": 1.0, "drop_error": 0.62, "p_value": 0.5}
    found = Evaluation(images=9, **known, drop=-0.625, agreement=99.0, kl=0.0)
    assert "0.62 ± 0.62 points gained" in str(found)
    told = verdict_lines([("a.onnx", found), ("b.onnx", found)])[2]
    assert told.startswith("a.onnx gains 0.62 ± 0.62 points against b.onnx")


class Squeezed(nn.Module):
    """Leaves out every axis of size 1: that of a single image too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.head(nn.functional.adaptive_avg_pool2d(self.conv(x), 1).squeeze())


@pytest.mark.parametrize(("count", "batch_size"), [(1, 100), (5, 4), (3, 1)])
def test_a_single_image_whose_axis_is_squeezed_away_has_its_row(count, batch_size) -> None:
    images = torch.randn(count + 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    network = Squeezed().eval()
    found = predict(network, images[:count], batch_size=batch_size)
    torch.testing.assert_close(found, network(images)[:count])
