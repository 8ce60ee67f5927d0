"""The networks between the dense one and what `prune` returns, compared with the dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from secateur.evaluation.metrics import Evaluation
from secateur.frontends import Frontend
from secateur.frontends import open as open_model
from secateur.hardware.compare_latency import Ratio
from secateur.report.build import compared_with, cost_left
from secateur.report.parts import INT8, PartReport
from secateur.session import Job


def part_reports(
    job: Job,
    networks: Mapping[str, Frontend],
    int8: Any,
    dense: torch.Tensor | None,
    times: Sequence[Ratio],
    known: Mapping[str, Evaluation],
) -> list[PartReport]:
    """What each part brought; nothing where there is only one.

    Args:
        job: of the first part.
        networks: after each part, by its name; the last one is returned in float32.
        int8: that one in INT8, an `onnx.ModelProto`; None = it was not asked for or not made.
        dense: the dense network's first output on the calibration images.
        times: of the dense network and of these, in turns; empty = not measured.
        known: evaluations of "pruned" and "int8", which are not made twice.
    """
    every = {**networks, **({} if int8 is None else {INT8: open_model(int8)})}
    if len(every) < 2:
        return []
    last = list(networks)[-1]
    found = {last: known.get("pruned"), INT8: known.get("int8")}
    reports = []
    for number, (name, network) in enumerate(every.items()):
        job.watch.begin(f"comparing the network after {name} with the dense one")
        macs, size = cost_left(networks.get(name, networks[last]), job.run)
        if int8 is not None and name == INT8:
            size = int8.ByteSize() / job.run.costs.bytes.dense
        time = times[number + 1] if number + 1 < len(times) else None
        evaluation = found.get(name)
        if evaluation is None and job.evaluation_set is not None:
            evaluation = job.evaluation_set.evaluate(network)
        reports.append(
            PartReport(
                name=name,
                macs_fraction=macs,
                bytes_fraction=size,
                milliseconds=None if time is None else 1e3 * time.seconds,
                ratio=None if time is None else time.ratio,
                calibration=compared_with(dense, network, job.images.tensor),
                evaluation=evaluation,
            )
        )
    job.watch.lap("parts")
    return reports
