"""The search for the largest sparsity within a drop: on functions, and on real networks."""

import dataclasses
import re
import weakref

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import secateur
from secateur import DataError, OptionError, example
from secateur.evaluation.inference import predict
from secateur.evaluation.metrics import compare
from secateur.pruning.recipe import RECIPES
from secateur.pruning.search import WALKS, WIDTH, PredictedLoss, Try, bracket, search

UNKNOWN = PredictedLoss.of(None)


def searched(loss, limit, expected=UNKNOWN):
    return search(lambda s: (Try(s, loss(s), 0.1), f"at {s}"), limit, expected)


@given(
    scale=st.floats(-1, 1.5),
    power=st.floats(1.5, 6),
    end=st.floats(0.3, 2),
    limit=st.floats(0.2, 10),
)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_a_rising_loss_is_kept_within_the_limit_and_nearly_used_up(
    scale, power, end, limit
) -> None:
    def loss(s):
        return 10**scale * s**power / (1 - s) ** end

    assume(loss(0.05) <= limit)  # six tries do not reach much further down
    best, result, tries = searched(loss, limit)
    assert best.drop <= limit
    assert best in tries
    assert result == f"at {best.sparsity}"
    assert len(tries) <= WALKS
    assert len({one.sparsity for one in tries}) == len(tries)
    assert all(0 < one.sparsity < 1 for one in tries)
    assert best.sparsity == max(one.sparsity for one in tries if one.drop <= limit)
    # far from the limit at worst, where the loss is nothing like what was expected
    assert best.sparsity >= 0.99 or loss(min(best.sparsity + 0.25, 0.999999)) > limit


@pytest.mark.parametrize("limit", [0.5, 1.0, 3.0])
def test_it_ends_within_a_point_of_sparsity_where_the_curves_are_right(limit) -> None:
    def loss(s):
        return 8 * s**4 / (1 - s)

    right = PredictedLoss.of(lambda s: (loss(s) / 10) ** 2)
    best, _, tries = searched(loss, limit, right)
    assert loss(best.sparsity + WIDTH) > limit
    assert len(tries) <= 4
    assert tries[0].drop == pytest.approx(limit, rel=0.25)
    _, high = bracket(tries, limit)
    assert high is not None
    assert high.sparsity - best.sparsity <= WIDTH * 1.001


def test_wrong_curves_cost_walks_not_the_limit() -> None:
    def loss(s):
        return 8 * s**4 / (1 - s)

    for factor in (1e-4, 1e4):
        wrong = PredictedLoss.of(lambda s, f=factor: f * (loss(s) / 10) ** 2)
        best, _, tries = searched(loss, 2.0, wrong)
        assert best.drop <= 2.0 < loss(best.sparsity + 0.05)
        assert len(tries) <= WALKS


def test_a_loss_that_only_jumps_is_bisected() -> None:
    best, _, tries = searched(lambda s: 0.0 if s < 0.42 else 50.0, 1.0)
    assert 0.42 - 0.1 < best.sparsity < 0.42
    assert len(tries) == WALKS


def test_a_network_that_loses_nothing_is_pruned_to_the_end() -> None:
    best, _, _ = searched(lambda s: -0.1, 1.0)
    assert best.sparsity > 0.98


def test_a_limit_that_no_try_keeps_tells_the_nearest() -> None:
    with pytest.raises(
        OptionError, match=r"max_drop is 0.5, expected at least 5.\d\d ± 0.10 points, the least"
    ):
        searched(lambda s: 5 + s, 0.5)


def test_where_less_is_lost_from_a_sparsity_on_it_is_tried_too() -> None:
    def loss(s):
        return 8 * s**4 / (1 - s) * (0.5 if s >= 0.75 else 1.0)

    right = PredictedLoss.of(lambda s: (8 * s**4 / (1 - s) / 10) ** 2)
    attempt = lambda s: (Try(s, loss(s), 0.1), None)  # noqa: E731
    limit = loss(0.7)
    before, _, _ = search(attempt, limit, right)
    after, _, tries = search(attempt, limit, right, 0.75)
    assert before.sparsity < 0.71
    assert after.sparsity > 0.75
    assert after.drop <= limit
    assert after.sparsity == max(one.sparsity for one in tries if one.drop <= limit)
    assert len(tries) <= WALKS
    far, _, tries = search(attempt, loss(0.5), right, 0.75)
    assert far.sparsity < 0.51
    assert all(one.sparsity < 0.75 for one in tries)  # not worth a try


def test_only_the_best_result_is_held() -> None:
    class Result:
        pass

    made: list[weakref.ref] = []

    def attempt(s):
        assert sum(ref() is not None for ref in made) <= 1
        result = Result()
        made.append(weakref.ref(result))
        return Try(s, 30 * s**4 / (1 - s), 0.1), result

    search(attempt, 1.0, UNKNOWN)
    assert len(made) > 2


# on a real network

UNTUNED = dataclasses.replace(RECIPES["default"], reconstruction=None, schedule=(0.0,))  # quick
UNMEASURED = {"recipe": UNTUNED, "allocation": "normalized-magnitude"}
QUICK = {
    "recipe": UNTUNED,
    "method": "least-squares",
    "allocation": secateur.Sensitivity(levels=(0.5, 0.9)),
}


@pytest.fixture(scope="module")
def network():
    return example.trained()


@pytest.fixture(scope="module")
def test_images():
    images, labels = example.test()
    return images[:1000], labels[:1000]


@pytest.fixture(scope="module")
def kept(network, test_images):
    return secateur.prune(
        network, example.calibration(), max_drop=3, evaluation=test_images, **QUICK
    )


def test_the_drop_stays_within_and_two_points_more_do_not(network, test_images, kept) -> None:
    images, labels = test_images
    dense = predict(network, images)
    found = compare(predict(kept.model, images), labels, dense)
    search = kept.report.search
    assert found.drop <= 3
    assert search.drop == pytest.approx(found.drop)
    assert search.error == pytest.approx(found.drop_error)
    assert kept.report.sparsity == pytest.approx(search.sparsity, abs=1e-5)
    more = secateur.prune(network, example.calibration(), sparsity=search.sparsity + 0.02, **QUICK)
    assert compare(predict(more.model, images), labels, dense).drop > 3


def test_the_result_is_that_of_the_sparsity_found(network, kept) -> None:
    straight = secateur.prune(
        network, example.calibration(), sparsity=kept.report.search.sparsity, **QUICK
    ).model
    parts = zip(kept.model.parameters(), straight.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in parts)


def test_the_report_tells_the_search(kept, tmp_path) -> None:
    report = kept.report
    search = report.search
    assert report.requested["target"] == {"name": "max_drop", "value": 3}
    assert (search.measure, search.judged_on) == ("top-1", "evaluation images")
    assert search.images == 1000
    assert 2 <= len(search.tries) <= WALKS
    assert report.evaluation["pruned"].drop == pytest.approx(search.drop)
    assert report.evaluation["dense"].drop == 0
    assert report.data.images == 300  # none held back
    text = " ".join(str(report).split())
    assert f"{search.drop:.2f} ± {search.error:.2f} yes" in text
    tries = (f"{100 * of.sparsity:.2f} {of.drop:.2f} ± " for of in search.tries)
    assert all(text.count(row) for row in tries)
    report.save(tmp_path / "report.json")
    assert secateur.Report.load(tmp_path / "report.json") == report


def test_without_labels_it_is_disagreement_on_images_held_back(network) -> None:
    result = secateur.prune(network, example.calibration(), max_drop=4, **QUICK)
    search = result.report.search
    assert (search.measure, search.judged_on) == ("disagreement", "held-back calibration images")
    assert search.images == 75
    assert result.report.data.images == 225
    assert "75 of 300 images held back to measure the drop on" in result.report.data.notes
    assert not result.report.evaluation
    held = example.calibration()[3::4]
    found = compare(predict(result.model, held), reference=predict(network, held))
    assert search.drop == pytest.approx(100 - found.agreement)
    share = search.drop / 100
    assert search.error == pytest.approx(100 * (share * (1 - share) / 75) ** 0.5)
    assert search.drop <= 4


def test_unlabelled_evaluation_images_are_judged_on(network, test_images) -> None:
    report = secateur.prune(
        network, example.calibration(), max_drop=5, evaluation=test_images[0][:200], **QUICK
    ).report
    assert (report.search.measure, report.search.images) == ("disagreement", 200)
    assert report.data.images == 300
    assert report.evaluation["pruned"].agreement == pytest.approx(100 - report.search.drop)


def test_images_that_cannot_tell_are_a_warning(network, test_images) -> None:
    images, labels = test_images
    with pytest.warns(secateur.SecateurWarning, match="images cannot tell a drop of 3 points"):
        report = secateur.prune(
            network,
            example.calibration()[:40],
            max_drop=3,
            evaluation=(images[:60], labels[:60]),
            method="magnitude",
            **UNMEASURED,
        ).report
    (warning,) = report.warnings
    error = max(report.search.error, 100 / 60)  # one image at least
    assert warning.startswith("60 evaluation images cannot tell")
    assert f"its standard error is {error:.2f}; add images" in warning


def test_evaluation_images_that_were_fitted_to_are_a_warning(network, test_images) -> None:
    calibration = example.calibration()[:40]
    both = torch.cat([calibration[10:15], test_images[0][:95]])
    with pytest.warns(
        secateur.SecateurWarning, match="5 of 100 evaluation images are calibration images"
    ):
        secateur.prune(
            network, calibration, sparsity=0.5, evaluation=both, method="magnitude", **UNMEASURED
        )


def test_the_division_is_measured_once_and_all_walks_are_shown(network, test_images) -> None:
    @dataclasses.dataclass(frozen=True)
    class Counting(secateur.Sensitivity):
        def fit(self, inputs):
            calls.append(inputs)
            return super().fit(inputs)

    calls: list = []
    seen: list[tuple[int, int, str]] = []
    allocation = Counting(levels=(0.5, 0.9))
    report = secateur.prune(
        network,
        example.calibration()[:60],
        max_drop=5,
        evaluation=tuple(of[:300] for of in test_images),
        recipe=secateur.Recipe(method=secateur.Magnitude(), allocation=allocation),
        progress=lambda *call: seen.append(call),
    ).report
    assert len(calls) == 1
    walks = len(report.search.tries)
    assert len(seen) == (1 + walks) * len(report.layers)
    assert all(done <= total == 7 * len(report.layers) for done, total, _ in seen)


def test_evaluation_data_are_judged_for_any_target(network, test_images) -> None:
    report = secateur.prune(
        network, example.calibration(), sparsity=0.5, method="magnitude", evaluation=test_images
    ).report
    assert report.search is None
    assert report.evaluation["pruned"].top1 is not None
    assert report.evaluation["pruned"].images == 1000


def test_too_few_images_to_hold_some_back_are_one_sentence(network) -> None:
    with pytest.raises(DataError, match=re.escape("got 7 calibration images, expected at least 8")):
        secateur.prune(network, example.calibration()[:7], max_drop=1)


def test_evaluation_images_that_do_not_fit_are_told_before_pruning(network) -> None:
    with pytest.raises(DataError, match="evaluation images from tensor: the model fails"):
        secateur.prune(
            network, example.calibration(), sparsity=0.5, evaluation=torch.zeros(4, 3, 28, 28)
        )


def test_a_recipe_of_several_levels_goes_through_them_at_every_try(network, test_images) -> None:
    seen: list[tuple[int, int, str]] = []
    recipe = secateur.Recipe(method=secateur.BiasCorrection(), schedule=(0.1, 0.0))
    result = secateur.prune(
        network,
        example.calibration()[:60],
        max_drop=5,
        evaluation=tuple(of[:300] for of in test_images),
        recipe=recipe,
        allocation="normalized-magnitude",
        inputs="dense",
        progress=lambda *call: seen.append(call),
    )
    search = result.report.search
    assert search.drop <= 5
    walks = 2 * len(search.tries) + 2  # the last two for the step before the correction
    assert len(seen) <= walks * len(result.report.layers)
    corrected = [step.evaluation.drop for step in result.report.steps]
    assert corrected[-1] == pytest.approx(search.drop)
    assert len(corrected) == 2
