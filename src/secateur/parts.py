"""The networks between the dense one and what `prune` returns, compared with the dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from torch import Tensor

from secateur.frontends import Frontend
from secateur.frontends import open as open_model
from secateur.hardware.compare_latency import Ratio
from secateur.network.layers import Layer
from secateur.report.build import cost_left
from secateur.report.model import Report
from secateur.report.parts import INT8, PartReport
from secateur.session import Job


def part_reports(
    job: Job,
    networks: Mapping[str, Frontend],
    int8: Any,
    dense: Tensor | None,
    times: Sequence[Ratio],
    report: Report,
    left: Sequence[Layer] | None,
) -> list[PartReport]:
    """What each part brought; nothing where there is only one.

    Args:
        job: of the first part.
        networks: after each part, by its name; the last one is returned in float32.
        int8: that one in INT8, an `onnx.ModelProto`; None = it was not asked for or not made.
        dense: the dense network's first output on the calibration images.
        times: of the dense network and of these, in turns; empty = not measured.
        report: of the last network, which is not measured twice; its seconds are told anew.
        left: layers of the networks, where channels have left them.
    """
    *before, last = networks
    if not before and int8 is None:
        return []
    found = [_between(job, name, networks[name], dense, left) for name in before]
    found.append(_returned(last, report))
    if int8 is not None:
        found.append(_in_int8(job, int8, dense, report))
    job.watch.lap("parts")
    report.seconds = job.watch.seconds
    return [
        of if time is None else replace(of, milliseconds=1e3 * time.seconds, ratio=time.ratio)
        for of, time in zip_longest(found, times[1:])
    ]


def _between(
    job: Job, name: str, network: Frontend, dense: Tensor | None, left: Sequence[Layer] | None
) -> PartReport:
    assert left is not None  # other parts come only after channels
    job.watch.begin(f"comparing the network after {name} with the dense one")
    macs, size = cost_left(network, left, job.run)
    return PartReport(
        name=name,
        macs_fraction=macs,
        bytes_fraction=size,
        calibration=job.compared(dense, network),
        evaluation=job.evaluate(network),
    )


def _returned(name: str, report: Report) -> PartReport:
    return PartReport(
        name=name,
        macs_fraction=report.macs_fraction,
        bytes_fraction=report.bytes_fraction,
        calibration=report.calibration,
        evaluation=report.evaluation.get("pruned"),
    )


def _bytes(model: Any) -> int:
    """What an `onnx.ModelProto`, or the constants of an `openvino.Model`, take."""
    if hasattr(model, "ByteSize"):
        return model.ByteSize()
    return sum(op.get_byte_size() for op in model.get_ops() if op.get_type_name() == "Constant")


def _in_int8(job: Job, int8: Any, dense: Tensor | None, report: Report) -> PartReport:
    job.watch.begin("comparing the network in INT8 with the dense one")
    return PartReport(
        name=INT8,
        macs_fraction=report.macs_fraction,
        bytes_fraction=_bytes(int8) / job.run.costs.bytes.dense,
        calibration=job.compared(dense, open_model(int8)),
        evaluation=report.evaluation.get("int8"),
    )
