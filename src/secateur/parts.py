"""The networks between the dense one and what `prune` returns, compared with the dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from secateur.frontends import Frontend
from secateur.frontends import open as open_model
from secateur.hardware.compare_latency import Ratio
from secateur.report.build import compared_with, cost_left
from secateur.report.model import Report
from secateur.report.parts import INT8, PartReport
from secateur.session import Job


def part_reports(
    job: Job,
    networks: Mapping[str, Frontend],
    int8: Any,
    dense: torch.Tensor | None,
    times: Sequence[Ratio],
    report: Report,
) -> list[PartReport]:
    """What each part brought; nothing where there is only one.

    Args:
        job: of the first part.
        networks: after each part, by its name; the last one is returned in float32.
        int8: that one in INT8, an `onnx.ModelProto`; None = it was not asked for or not made.
        dense: the dense network's first output on the calibration images.
        times: of the dense network and of these, in turns; empty = not measured.
        report: of the last network, which is not measured twice; its seconds are told anew.
    """
    *before, last = networks
    parts = [*before, last, *[INT8] * (int8 is not None)]
    if len(parts) < 2:
        return []
    timed: list[dict[str, Any]] = [
        {"milliseconds": 1e3 * of.seconds, "ratio": of.ratio} for of in times[1:]
    ]
    timed += [{}] * (len(parts) - len(timed))
    found: list[PartReport] = []
    for name, time in zip(parts, timed, strict=True):
        if name == last:
            facts: dict[str, Any] = {
                "macs_fraction": report.macs_fraction,
                "bytes_fraction": report.bytes_fraction,
                "calibration": report.calibration,
                "evaluation": report.evaluation.get("pruned"),
            }
        elif name == INT8:
            job.watch.begin("comparing the network in INT8 with the dense one")
            facts = {
                "macs_fraction": report.macs_fraction,
                "bytes_fraction": int8.ByteSize() / job.run.costs.bytes.dense,
                "calibration": compared_with(dense, open_model(int8), job.images.tensor),
                "evaluation": report.evaluation.get("int8"),
            }
        else:
            job.watch.begin(f"comparing the network after {name} with the dense one")
            network, judged = networks[name], job.evaluation_set
            macs, size = cost_left(network, job.run)
            facts = {
                "macs_fraction": macs,
                "bytes_fraction": size,
                "calibration": compared_with(dense, network, job.images.tensor),
                "evaluation": None if judged is None else judged.evaluate(network),
            }
        found.append(PartReport(name=name, **facts, **time))
    job.watch.lap("parts")
    report.seconds = job.watch.seconds
    return found
