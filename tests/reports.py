"""A report by hand, with something in every field, shared by the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secateur import Bench
from secateur.evaluation.results import Evaluation
from secateur.hardware.latency import Timing
from secateur.hardware.layer_facts import LayerFacts
from secateur.hardware.machine import Machine
from secateur.hardware.requirements import requirements, survey
from secateur.pruning.allocations import Curve
from secateur.pruning.search import Try
from secateur.report.layers import DenseLayer, LayerReport
from secateur.report.model import DataReport, Report, SearchReport, StepReport
from secateur.report.parts import PartReport

MACHINE = Machine(cpu="a CPU", flags=frozenset({"avx2"}), versions={"torch": "2.13.0"})


def layer(name: str, index: int = 0, **more: Any) -> LayerReport:
    sparsity = more.pop("sparsity", 0.5 + 0.02 * (index % 20))
    facts = LayerFacts(kind="conv", shape=(8, 8, 1, 1), sparsity=sparsity, two_of_four=False)
    held = LayerReport(
        name=name,
        kind="conv",
        shape=(8, 8, 1, 1),
        columns=8,
        weights=1000,
        zeros=round(1000 * sparsity),
        sparsity=sparsity,
        macs=5000,
        bytes=4000,
        packed_bytes=125 + 4 * (1000 - round(1000 * sparsity)),
        relative_error=0.01 * (index + 1),
        damping=0.1,
        samples=100,
        sensitivity=Curve((0.5, 0.75, 0.9), (0.001 * (index + 1), 0.02, 0.3 + index), index != 1),
        requirements=requirements(facts),
        notes=(f"note of {name}",),
    )
    return replace(held, **more)


def report(*names: str, **more: Any) -> Report:
    layers = [layer(name, index) for index, name in enumerate(names or ("a.conv", "b.conv"))]
    zeros, weights = sum(of.zeros for of in layers), sum(of.weights for of in layers)
    pruned = Evaluation(
        images=200, top1=88.5, standard_error=2.3, drop=1.5, drop_error=0.9, agreement=97.0, kl=0.02
    )
    dense = Evaluation(
        images=200, top1=90.0, standard_error=2.1, drop=0.0, drop_error=0.0, agreement=100.0, kl=0.0
    )
    held: dict[str, Any] = {
        "sparsity": zeros / weights,
        "network_sparsity": 0.4,
        "macs_fraction": 0.45,
        "bytes_fraction": 0.35,
        "requested": {
            "target": {"name": "max_drop", "value": 2},
            "recipe": {"method": {"name": "admm"}, "allocation": {"name": "sensitivity"}},
            "seed": 0,
            "device": "cpu",
        },
        "search": SearchReport(
            measure="top-1",
            judged_on="evaluation images",
            images=200,
            sparsity=0.51,
            drop=1.5,
            error=0.9,
            tries=(Try(0.51, 1.5, 0.9), Try(0.9, 33.0, 3.0)),
        ),
        "layers": layers,
        "dense_layers": [
            DenseLayer(
                name="stem",
                kind="conv",
                shape=(8, 3, 3, 3),
                weights=216,
                macs=900,
                bytes=864,
                reason="first layer",
            )
        ],
        "data": DataReport(source="a folder", images=300, shape=(3, 8, 8), notes=("chosen well",)),
        "seconds": {"data": 0.5, "total": 150.0},
        "calibration": Evaluation(images=300, agreement=99.0, kl=0.01),
        "steps": [StepReport(name="first-step", calibration=None, evaluation=pruned)],
        "evaluation": {"dense": dense, "pruned": pruned},
        "parts": [
            PartReport(
                name="channels",
                macs_fraction=0.7,
                bytes_fraction=0.8,
                milliseconds=1.5,
                ratio=0.75,
                calibration=None,
                evaluation=pruned,
            )
        ],
        "runtimes": survey([of.requirements for of in layers], MACHINE),
        "exports": {"model.safetensors": {"bytes": 12345, "relative_difference": 1e-7}},
        "summary": ["How it was done, in a sentence."],
        "warnings": ["only 300 images of a warning"],
        "notes": ["a note of the report"],
        "versions": {"secateur": "0.1.0", "torch": "2.13.0"},
    }
    return Report(**{**held, **more})


def bench(*timings: Timing) -> Bench:
    return Bench(
        timings=timings,
        files=tuple(one.file for one in timings),
        threads=1,
        batch=1,
        rounds=20,
        processes=5,
        confidence=0.95,
        sparse_rate=0.5,
        cpu="a CPU",
        versions={"openvino": "1"},
        warnings=("a warning",),
        notes=("a note",),
    )
