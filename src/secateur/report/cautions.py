"""What a reader of a report has to know first: each function gives a warning, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from secateur.core.outputs import Judge
from secateur.data.images import FEW_IMAGES, MAX_IMAGES
from secateur.data.streams import digests
from secateur.evaluation.metrics import one_answer
from secateur.evaluation.results import Evaluation
from secateur.network.layers import ON_THE_FLY, Layer, Shares
from secateur.network.samples import Samples
from secateur.pruning.targets import MaxLatency, Target
from secateur.report.latency import LatencyReport
from secateur.report.layers import LayerReport
from secateur.report.model import SearchReport
from secateur.support.wording import counted

_LOST = 0.99  # error of a layer, relative to its variance, that leaves nothing of it
_SHOWN = 5  # layers that a warning names
_BLANK = 0.9  # of the images


def few(images: int) -> list[str]:
    """A warning where there are fewer images than serve."""
    if images >= FEW_IMAGES:
        return []
    return [
        f"only {counted(images, 'calibration image')}, expected a few hundred: "
        "the accuracy lost may be large; add images if you can"
    ]


def alike(images: Samples) -> list[str]:
    """A warning where many calibration images are few different ones, or blank."""
    count = len(images)
    if count < FEW_IMAGES:  # which is a warning already
        return []
    different = len(set(digests(images)))
    if different < FEW_IMAGES:
        return [
            f"the {counted(count, 'calibration image')} are copies of only {different}, expected a "
            "few hundred different ones: check what gives them; the accuracy lost may be large"
        ]
    if len(images.tensors) > 1 or not images.first.is_floating_point():
        return []
    pixels = images.first
    channels = pixels.flatten(2) if pixels.dim() > 3 else pixels.flatten(1)
    blank = (channels.amax(-1) == channels.amin(-1)).reshape(count, -1).all(1)
    if channels.shape[-1] == 1 or blank.sum() < _BLANK * count:
        return []
    blanks = int(blank.sum())
    are = "is" if blanks == 1 else "are"
    return [
        f"{blanks} of {counted(count, 'calibration image')} {are} blank, one value in each "
        "channel: check what gives them; the accuracy lost may be large"
    ]


def gone(layers: Sequence[LayerReport], present: Sequence[int]) -> list[str]:
    """A warning that names the layers of which nothing is left.

    Args:
        layers: the pruned ones.
        present: their weights that were not zero in the dense network.
    """
    gone = [
        layer.name
        for layer, before in zip(layers, present, strict=True)
        if before and (layer.zeros == layer.weights or layer.relative_error >= _LOST)
    ]
    if not gone:
        return []
    shown = ", ".join(gone[:_SHOWN]) + (f" and {len(gone) - _SHOWN} more" * (len(gone) > _SHOWN))
    of, have = counted(len(layers), "layer"), "has" if len(gone) == 1 else "have"
    return [
        f"{len(gone)} of {of} {have} no weight left or {have} lost {_LOST:.0%} or more of what "
        f"{'it computes' if len(gone) == 1 else 'they compute'} ({shown}): ask for fewer zeros, "
        "or exclude them"
    ]


def thin(layers: Sequence[LayerReport], images: int) -> list[str]:
    """What more images would be good for, where they would: layers with few samples."""
    thin = [of for of in layers if of.samples < of.columns]
    if not thin or not FEW_IMAGES <= images < MAX_IMAGES:
        return []
    worst = min(thin, key=lambda of: of.samples / of.columns)
    return [
        f"{counted(images, 'image gives', 'images give')} {len(thin)} of "
        f"{counted(len(layers), 'layer')} fewer samples than inputs "
        f"({worst.name}: {worst.samples} for {worst.columns}): more images, up to "
        f"{MAX_IMAGES}, would keep more accuracy"
    ]


def computed(layers: Sequence[Layer]) -> list[str]:
    """A warning where most weights stay dense for they are computed in each run."""
    share = Shares.of(layers).computed
    if share <= 0.5:
        return []
    of = [layer for layer in layers if str(layer.obstacle).startswith(ON_THE_FLY)]
    names = ", ".join(layer.name for layer in of[:3]) + (", ..." if len(of) > 3 else "")
    reasons = "; ".join(dict.fromkeys(str(layer.obstacle) for layer in of))
    return [f"{share:.0%} of the weights stay dense, in the layers {names}: {reasons}"]


def doubtful(calibration: Evaluation | None) -> list[str]:
    """A warning where nothing tells how far the outputs are from the dense ones, or they are far.

    An error of the whole variance is what the mean output would have, whatever goes in.
    """
    if calibration is None:
        return [
            "the network's first output is not one tensor with a row for each image: how far it "
            "is from the dense network's was not measured"
        ]
    error = calibration.output_error
    if error is None or error <= 1:
        return []
    return [
        f"on the calibration images the outputs' error is {100 * error:,.0f} % of their variance, "
        "more than their mean alone would have: prune less, exclude the last layers, or bring "
        "more images"
    ]


def same_answers(
    calibration: Evaluation | None,
    dense: Tensor | None,
    evaluation: Mapping[str, Evaluation],
    judge: Judge | None = None,
    weight: Tensor | None = None,
) -> list[str]:
    """A warning where agreement on the calibration images, and no other figure, means nothing."""
    if calibration is None or dense is None or evaluation:
        return []
    return one_answer(dense, "calibration images", judge=judge, weight=weight)


def slow(latency: LatencyReport | None, target: Target) -> list[str]:
    """A warning where the network takes more time than was asked for."""
    if latency is None or not isinstance(target, MaxLatency) or latency.low <= target.value:
        return []
    return [
        f"the pruned network takes {latency.text}, more than {target.value:g} asks for: "
        "ask for less, or measure again on an idle machine"
    ]


def undecided(search: SearchReport | None, limit: float) -> list[str]:
    """A warning where the images are too few to tell whether the loss is within the limit.

    Of answers the standard error counts as that of one image at least: few images may show no loss
    at all. Of the user's own metric it is not known.
    """
    if search is None or search.error is None:
        return []
    measure = search.counted_in
    error = max(search.error, 100 / search.images) if measure.counts_answers else search.error
    if error <= limit / 2:
        return []
    limit_text = counted(limit, measure.unit, f"{measure.unit}s")
    return [
        f"{search.on_text} cannot tell a drop of {limit_text}: its standard error is {error:.2f}; "
        "add images"
    ]
