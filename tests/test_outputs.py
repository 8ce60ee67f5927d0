"""What a network is judged by: class scores, scores per token, embeddings, or other values."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from secateur.core.distance import direction_error, relative_error, value_error
from secateur.core.outputs import JUDGES, Judge, check_judge, judge_of, of_one_length, rows_of
from secateur.errors import DataError, ModelError, OptionError
from secateur.evaluation.metrics import compare, mean_of_samples, one_answer
from secateur.evaluation.results import MEASURES


def outputs(*shape: int, seed: int = 0, noise: float = 0.3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(shape, generator=generator) + torch.randn(shape[1:], generator=generator)
    return dense, dense + noise * torch.randn(shape, generator=generator)


def lengths(count: int, positions: int) -> Tensor:
    """An attention mask: ones, then zeros."""
    long = 1 + torch.arange(count) * 7 % positions
    return (torch.arange(positions) < long[:, None]).long()


def padded(value: Tensor, weight: Tensor, filling: float) -> Tensor:
    keep = weight.reshape(*weight.shape, *[1] * (value.dim() - 2)) != 0
    return torch.where(keep, value, torch.tensor(filling))


ROWS = outputs(12, 6)[0]
KINDS: list[tuple[Judge, Tensor, str]] = [
    ("classes", ROWS, ""),
    ("classes", ROWS, "logits"),
    ("classes", ROWS.softmax(1), ""),
    ("classes", torch.eye(6), ""),  # a softmax that is sure: of length 1, and of sum 1
    ("embeddings", normalize(ROWS), ""),
    ("embeddings", normalize(ROWS).half().float(), ""),
    ("embeddings", ROWS, "pooler_output"),
    ("embeddings", ROWS, "text_embeds"),
    ("embeddings", ROWS, "sentence_embedding"),
    ("tokens", outputs(4, 5, 6)[0], "logits"),
    ("tokens", outputs(4, 5, 6)[0], "decoder.logits"),
    ("values", outputs(4, 5, 6)[0], ""),
    ("values", outputs(4, 5, 6)[0], "last_hidden_state"),
    ("values", outputs(4, 5, 6, 7)[0], "logits"),
    ("values", outputs(4, 1)[0], ""),
    ("values", torch.ones(4, 1), "embeds"),
    ("values", torch.ones(4), "logits"),
]


@pytest.mark.parametrize(("judge", "output", "name"), KINDS)
def test_what_an_output_is_judged_by(judge, output, name) -> None:
    assert judge_of(output, name=name) == judge
    check_judge(judge, output.shape)


def test_labels_say_what_they_are_of() -> None:
    assert judge_of(normalize(ROWS), labels=torch.zeros(12)) == "classes"
    assert judge_of(outputs(4, 5, 6)[0], labels=torch.zeros(4, 5)) == "tokens"


@pytest.mark.parametrize(
    ("judge", "shape"),
    [
        ("classes", (4, 1)),
        ("classes", (4, 5, 6)),
        ("tokens", (4, 6)),
        ("tokens", (4, 5, 1)),
        ("embeddings", (4,)),
        ("embeddings", (4, 1)),
        ("values", ()),
    ],
)
def test_an_output_of_another_shape_is_refused(judge, shape) -> None:
    with pytest.raises(OptionError, match="choose another output or judge"):
        check_judge(judge, shape)


def by_hand(dense: Tensor, found: Tensor, weight: Tensor) -> Tensor:
    """Per token (agreement, KL), token by token."""
    figures = []
    for sample, position in weight.nonzero().tolist():
        p, q = (of[sample, position].double().log_softmax(0) for of in (dense, found))
        same = dense[sample, position].argmax() == found[sample, position].argmax()
        figures.append((float(same), float((p.exp() * (p - q)).sum())))
    return torch.tensor(figures, dtype=torch.float64)


def test_tokens_are_compared_one_by_one_without_padding() -> None:
    dense, found = outputs(7, 6, 5, noise=1.0)
    weight = lengths(7, 6)
    figures = by_hand(dense, found, weight)
    result = compare(found, reference=dense, judge="tokens", weight=weight)
    assert (result.images, result.tokens) == (7, int(weight.sum()))
    assert result.agreement == pytest.approx(100 * float(figures[:, 0].mean()))
    assert result.kl == pytest.approx(float(figures[:, 1].mean()), rel=1e-9)
    for filling in (0.0, 1e6):
        other = compare(
            padded(found, weight, filling),
            reference=padded(dense, weight, -filling),
            judge="tokens",
            weight=weight,
        )
        assert other == result


def test_tokens_of_one_position_are_class_scores() -> None:
    dense, found = outputs(40, 5, noise=1.0)
    labels = torch.arange(40) % 5
    plain = compare(found, labels, dense)
    result = compare(found[:, None], labels[:, None], dense[:, None])
    assert result.tokens == 40
    assert result.p_value is None
    for name in ("top1", "drop", "agreement", "kl", "standard_error", "drop_error"):
        assert getattr(result, name) == pytest.approx(getattr(plain, name), rel=1e-9), name
    assert result.lost.error == pytest.approx(plain.lost.error)
    disagree = compare(found[:, None], None, dense[:, None], judge="tokens").lost
    plain_disagree = compare(found, None, dense).lost
    assert (disagree.amount, disagree.error) == pytest.approx(
        (plain_disagree.amount, plain_disagree.error)
    )


def test_perplexity_is_that_of_the_labels_that_there_are() -> None:
    logits = outputs(5, 7, 11)[0]
    labels = torch.randint(11, (5, 7), generator=torch.Generator().manual_seed(3))
    labels[:, -2:] = -100
    want = math.exp(float(cross_entropy(logits.flatten(0, 1), labels.flatten())))
    assert compare(logits, labels).perplexity == pytest.approx(want, rel=1e-5)
    probabilities = compare(logits.softmax(2), labels).perplexity
    assert probabilities == pytest.approx(want, rel=1e-5)
    weight = (labels >= 0).long()
    masked = compare(logits, labels.clamp_min(0), weight=weight)
    assert masked.perplexity == pytest.approx(want, rel=1e-5)
    assert masked.tokens == int(weight.sum())


def test_labels_that_are_none_count_neither_as_right_nor_as_wrong() -> None:
    logits = outputs(5, 7, 11)[0]
    labels = logits.argmax(2)
    labels[2] = -100
    assert compare(logits, labels).top1 == 100
    labels[0, 0] = (labels[0, 0] + 1) % 11
    assert compare(logits, labels).top1 == pytest.approx(100 * 27 / 28)
    with pytest.raises(DataError, match="no position counts"):
        compare(logits, torch.full((5, 7), -1))


def test_wrong_labels_of_tokens_are_one_sentence() -> None:
    logits = outputs(5, 7, 11)[0]
    labels = torch.zeros(5, 7).long()
    labels[1, 2] = labels[3, 4] = 11
    with pytest.raises(DataError, match=r"2 of 35 tokens have labels such as 11 .* from 0 to 10"):
        compare(logits, labels)
    with pytest.raises(DataError, match=r"labels of shape \(5, 6\) for outputs of shape"):
        compare(logits, torch.zeros(5, 6).long())
    with pytest.raises(ModelError, match=r"expected scores of shape \(batch, positions, classes\)"):
        compare(logits[:, 0], torch.zeros(5, 6).long())


def test_the_error_of_a_mean_counts_samples_not_rows() -> None:
    """Rows that are copies of one another tell no more than one of them."""
    values = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    sample = torch.arange(30)
    mean, error = mean_of_samples(values, sample)
    assert error == pytest.approx(float(values.std(correction=0)) / math.sqrt(30))
    again = mean_of_samples(values.repeat(9), sample.repeat(9))
    assert again == pytest.approx((mean, error))


def test_the_error_of_a_mean_is_that_of_many_draws() -> None:
    """The spread of means over draws of samples that differ, and have other numbers of rows."""
    generator = torch.Generator().manual_seed(0)
    means, errors = [], []
    for _ in range(400):
        rows = torch.randint(1, 9, (50,), generator=generator)
        level = torch.randn(50, generator=generator).double()
        sample = torch.repeat_interleave(torch.arange(50), rows)
        values = level[sample] + 0.5 * torch.randn(len(sample), generator=generator).double()
        mean, error = mean_of_samples(values, sample)
        means.append(mean)
        errors.append(error)
    spread = float(torch.tensor(means).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.1)


def test_embeddings_are_compared_by_their_cosines() -> None:
    dense, found = outputs(30, 8)
    want = [float(a @ b / a.norm() / b.norm()) for a, b in zip(dense, found, strict=True)]
    result = compare(found, reference=dense, judge="embeddings")
    assert result.cosine == pytest.approx(sum(want) / 30, rel=1e-6)
    assert result.cosine_error == pytest.approx(
        float(torch.tensor(want).std(correction=0)) / math.sqrt(30), rel=1e-5
    )
    assert result.agreement is None
    assert result.lost.amount == pytest.approx(100 * (1 - result.cosine))
    lengths_differ = compare(
        3 * found, reference=dense * torch.arange(1, 31)[:, None], judge="embeddings"
    )
    assert lengths_differ.cosine == pytest.approx(result.cosine, rel=1e-6)


def test_an_embedding_of_nothing_is_like_nothing_alone() -> None:
    rows = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    other = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert compare(other, reference=rows, judge="embeddings").cosine == pytest.approx(2 / 3)


def test_embeddings_at_each_position_leave_padding_out() -> None:
    dense, found = outputs(6, 5, 8)
    weight = lengths(6, 5)
    result = compare(found, reference=dense, judge="embeddings", weight=weight)
    rows = compare(found[weight != 0], reference=dense[weight != 0], judge="embeddings")
    assert result.cosine == pytest.approx(rows.cosine)


def test_unit_rows_are_judged_by_cosine_and_class_scores_as_before() -> None:
    dense, found = outputs(30, 8)
    assert compare(normalize(found), reference=normalize(dense)).cosine is not None
    assert compare(found, reference=dense).cosine is None
    assert compare(normalize(found), torch.zeros(30).long(), normalize(dense)).drop is not None


def test_the_error_of_embeddings_sees_directions_alone() -> None:
    dense, found = outputs(40, 6)
    want = relative_error([dense], [found], "embeddings")
    u, v = normalize(dense.double()), normalize(found.double())
    cosine = float((u * v).sum(1).mean())
    assert want == pytest.approx((2 - 2 * cosine) / float(1 - u.mean(0).square().sum()), rel=1e-9)
    lengths_of = torch.arange(1.0, 41)[:, None]
    assert direction_error([lengths_of * dense], [7 * found]) == pytest.approx(want, rel=1e-5)
    assert relative_error([u], [v]) == pytest.approx(want, rel=1e-5)  # found out by itself
    assert relative_error(dense.split(9), found.split(9), "embeddings") == pytest.approx(want)
    constant = dense[:1].expand(5, 6)
    assert direction_error([constant], [constant]) == 0


def test_the_error_of_tokens_is_that_of_their_rows() -> None:
    dense, found = outputs(9, 6, 5)
    weight = lengths(9, 6)
    want = relative_error([dense[weight != 0]], [found[weight != 0]])
    shifted = found + torch.randn(9, 6, 1, generator=torch.Generator().manual_seed(5))
    parts = (dense.split(4), shifted.split(4), "tokens", weight.split(4))
    assert relative_error(*parts) == pytest.approx(want, rel=1e-5)
    assert relative_error([dense], [found], "tokens") == pytest.approx(
        relative_error([dense.flatten(0, 1)], [found.flatten(0, 1)])
    )


@pytest.mark.parametrize("shape", [(20, 4, 3), (11, 5, 2, 3)])
def test_values_of_padding_do_not_count(shape) -> None:
    dense, found = outputs(*shape)
    ones = torch.ones(shape[:2])
    plain = value_error([dense], [found])
    assert value_error([dense], [found], [ones]) == pytest.approx(plain, rel=1e-9)
    weight = lengths(*shape[:2])
    want = value_error([dense], [found], [weight])
    for filling in (0.0, 1e4, math.nan):
        parts = (padded(of, weight, filling).split(3) for of in (dense, found))
        assert value_error(*parts, weight.split(3)) == pytest.approx(want, rel=1e-6)
    assert want != pytest.approx(plain, rel=1e-3)


def test_channels_of_unpadded_values_are_those_of_their_rows() -> None:
    """Where the channels are the largest view, positions may as well be samples."""
    dense, found = outputs(20, 4, 3)
    scale = torch.tensor([1.0, 1e3, 1e-3])
    found[..., 2] = 0
    weight = lengths(20, 4)
    want = value_error([(scale * dense)[weight != 0]], [(scale * found)[weight != 0]])
    assert value_error([scale * dense], [scale * found], [weight]) == pytest.approx(want, rel=1e-6)


def test_ragged_batches_are_as_one_padded_batch() -> None:
    dense, found = outputs(8, 6, 3)
    weight = torch.ones(8, 6)
    weight[:4, 3:] = 0
    parts = [[of[:4, :3], of[4:]] for of in (dense, found)]
    want = value_error([dense], [found], [weight])
    assert value_error(*parts) == pytest.approx(want, rel=1e-9)
    assert relative_error(*parts, "tokens") == pytest.approx(
        relative_error([dense], [found], "tokens", [weight]), rel=1e-9
    )
    (first, second), weights = of_one_length(parts[0])
    assert first.shape == second.shape
    assert weights is not None
    assert torch.equal(torch.cat(weights), weight)


def test_a_weight_counts_only_where_the_output_has_its_positions() -> None:
    pooled, found = outputs(8, 6)
    assert len(rows_of(pooled, torch.zeros(8, 6))) == 8
    dense = outputs(8, 5, 3)[0]
    assert len(rows_of(dense, torch.zeros(8, 6))) == 40
    plain = relative_error([pooled], [found])
    assert relative_error([pooled], [found], None, [torch.zeros(8, 6)]) == plain


def test_one_answer_is_told_of_answers_alone() -> None:
    dense = outputs(20, 4)[0]
    dense[:, 2] += 100
    assert one_answer(dense, "images")
    assert not one_answer(dense, "images", judge="embeddings")
    assert one_answer(dense[:, None], "images", judge="tokens")
    assert not one_answer(dense[:, None], "images")
    assert not one_answer(normalize(dense), "images")


def test_every_measure_says_its_unit() -> None:
    told = {name: of.amount(2) for name, of in MEASURES.items()}
    assert told == {
        "top-1": "2 points of top-1",
        "disagreement": "2 points of agreement",
        "top-1 per token": "2 points of top-1 per token",
        "disagreement per token": "2 points of agreement per token",
        "cosine": "2 hundredths of mean cosine",
        "metric": "2 of the metric",
    }
    assert MEASURES["top-1"].lost(1.5, 0.25) == "1.50 ± 0.25 points lost"
    assert MEASURES["cosine"].lost(-1.5, 0.25) == "1.50 ± 0.25 hundredths of mean cosine gained"
    assert MEASURES["metric"].lost(0.0021, None) == "0.0021 of the metric lost"


@pytest.mark.parametrize("judge", JUDGES)
def test_a_network_loses_nothing_against_itself(judge) -> None:
    dense = outputs(12, 6)[0] if judge == "classes" else outputs(12, 6, 4)[0]
    found = compare(dense, reference=dense, judge=judge)
    assert relative_error([dense], [dense], judge) == 0
    if judge == "values":
        assert found.output_error == 0
        assert found.lost is None
    else:
        assert found.lost.amount == pytest.approx(0, abs=1e-12)
