"""The sentences of a page about a report, for readers new to pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.evaluation.results import METRIC, percent_text
from secateur.hardware.requirements import NO_SPEED_UP, speed_up_expected
from secateur.support.tables import shape_text
from secateur.support.wording import counted

if TYPE_CHECKING:
    from secateur.report.model import Report
    from secateur.report.sweep import Sweep


def percent(value: float, digits: int) -> str:
    """A fraction in percent."""
    return f"{100 * value:.{digits}f} %"


def lede(report: Report) -> str:
    """The first sentences of the page."""
    layers = counted(len(report.layers), "layer")
    share, what = percent(report.sparsity, 1), "set to zero"
    if report.channels:
        what = "removed, in whole channels" + " or set to zero" * report.has_zeros
    return (
        f"{share} of the weights of {layers} of a trained network were {what}, without retraining."
    )


def cards(report: Report) -> list[dict[str, str]]:
    """The figures that matter most."""
    zeros, size = "zeros", "size, packed"
    of = f"of the weights of pruned layers, {percent(report.network_sparsity, 1)} of all"
    macs = "if the runtime skips zeros; most do not"
    if report.channels:
        zeros, of = "removed", "of the weights of pruned layers"
    if not report.has_zeros:
        size, macs = "size", "on any runtime"
    return [
        _card(zeros, percent(report.sparsity, 1), of),
        _accuracy_card(report),
        _card(size, percent(report.bytes_fraction, 1), "of the dense network's bytes"),
        _card("multiplications left", percent(report.macs_fraction, 1), macs),
        _card("time", _duration(report.seconds.get("total", 0.0)), "for the whole call"),
    ]


def _card(what: str, figure: str, small: str) -> dict[str, str]:
    return {"what": what, "figure": figure, "small": small}


def _accuracy_card(report: Report) -> dict[str, str]:
    found = report.evaluation.get("pruned")
    if found is None:
        return _card("accuracy", "not measured", "no evaluation images were given")
    if found.metric is not None and found.metric_drop is not None:
        before = found.metric + found.metric_drop
        small = f"{before:.4f} before, {found.metric:.4f} now (your own metric)"
        return _card("metric", METRIC.lost(found.metric_drop, None), small)
    if found.drop is not None and found.top1 is not None:
        figure, per_token = found.lost_text, "" if found.tokens is None else " per token"
        right = f"{found.top1 + found.drop:.2f} % before, {found.top1:.2f} % now (top-1{per_token})"
        return _card("accuracy", figure, f"{right},{found.on_text}")
    if found.output_error is not None:
        figure = percent_text(found.output_error)
        return _card(
            "output error", figure, f"of the variance, on {counted(found.images, 'image')}"
        )
    if found.cosine is not None:
        return _card("mean cosine", f"{found.cosine:.4f}", f"with dense,{found.on_text}")
    agreement = 0.0 if found.agreement is None else found.agreement
    return _card(
        "same answer as before",
        f"{agreement:.2f} %",
        f"{found.on_text.strip()} without labels",
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def size_sentence(report: Report) -> str:
    """What zeros do to the size of a file."""
    if not report.has_zeros:
        return (
            "The network has fewer channels, and its file is smaller by as much as they took: "
            f"{percent(report.bytes_fraction, 1)} of the dense network's bytes."
        )
    return (
        "Zeros alone do not make a model file smaller, because it stores them like other numbers. "
        f"secateur pack reduces the network to about {percent(report.bytes_fraction, 1)} of the "
        "dense network's bytes or less: one bit per weight, and the nonzero weights."
    )


def speed_sentence(report: Report) -> str:
    """Whether zeros can make the network faster here."""
    if report.channels:
        measured = "measure it with secateur bench."
        if report.latency is not None:
            measured = f"here the network takes {report.latency.text}."
        return (
            "Every runtime multiplies less with fewer channels. How much time that saves depends "
            f"on the layers and the machine: {measured}"
        )
    if speed_up_expected(report.runtimes):
        names = ", ".join(one.name for one in report.runtimes if one.met)
        return f"On this machine {names} may run faster. Measure it on your own inputs."
    return (
        f"On this machine: {NO_SPEED_UP}. Most runtimes multiply by zero as slowly as by any other "
        "number; the table says what each runtime needs."
    )


def data_sentence(report: Report | Sweep) -> str:
    """Which images the layers were fitted to."""
    data = report.data
    real = "" if report.synthetic is None else "synthetic "
    shapes = data.inputs or {"": data.shape}
    shape = " and ".join(f"{shape_text(of)} {name}".strip() for name, of in shapes.items())
    return (
        f"{counted(data.images, f'{real}{data.noun}')} of shape {shape} from {data.source}. "
        f"The network was fitted to these {data.noun}s. On {data.noun}s of another kind it may be "
        "less accurate, which this page cannot show."
    )
