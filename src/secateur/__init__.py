"""Secateur prunes trained neural networks without retraining them.

import secateur
result = secateur.prune(model, images, sparsity=0.7)
print(result.report)
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from secateur.version import __version__

if TYPE_CHECKING:  # for type checkers and editors; _HOME says the same at run time
    from secateur.advice import advise
    from secateur.api import inspect, plan, prune
    from secateur.core.methods import (
        ADMM,
        AdamCalibration,
        BiasCorrection,
        LeastSquares,
        Magnitude,
        WeightCorrection,
    )
    from secateur.core.patterns import NM, Block, Channels, Unstructured
    from secateur.data.fractals import fractal_images
    from secateur.data.preprocess import Preprocess
    from secateur.data.sources import Data, load_images
    from secateur.data.text import Text
    from secateur.errors import (
        DataError,
        IncompleteError,
        MissingExtraError,
        ModelError,
        NumericalError,
        OptionError,
        OutputError,
        PackError,
        ProcessError,
        SecateurError,
        SecateurWarning,
        UserError,
    )
    from secateur.evaluation.evaluation_set import evaluate
    from secateur.evaluation.results import Evaluation
    from secateur.export.int8 import quantize
    from secateur.export.packing import PackedSize, pack, unpack
    from secateur.frontends.loading import load
    from secateur.hardware.acceleration.report import AccelerationReport
    from secateur.hardware.acceleration.run import Acceleration, accelerate
    from secateur.hardware.acceleration.saved import load_accelerated
    from secateur.hardware.bench import bench
    from secateur.hardware.bench_modules import bench_modules
    from secateur.hardware.catalogue import runtimes
    from secateur.hardware.latency import Bench
    from secateur.pruning.alignment import ChannelAlignment
    from secateur.pruning.allocations import NormalizedMagnitude, Sensitivity, Uniform
    from secateur.pruning.permutation import ChannelPermutation
    from secateur.pruning.recipe import RECIPES, Recipe
    from secateur.pruning.reconstruction import BlockReconstruction
    from secateur.render.page import save_page
    from secateur.report.advice import Advice, Suggestion
    from secateur.report.comparison import Comparison, compare_reports
    from secateur.report.model import Report
    from secateur.report.plan import Plan
    from secateur.report.sweep import Sweep
    from secateur.result import PruneResult
    from secateur.sweeps import sweep

__all__ = [
    "ADMM",
    "NM",
    "RECIPES",
    "Acceleration",
    "AccelerationReport",
    "AdamCalibration",
    "Advice",
    "Bench",
    "BiasCorrection",
    "Block",
    "BlockReconstruction",
    "ChannelAlignment",
    "ChannelPermutation",
    "Channels",
    "Comparison",
    "Data",
    "DataError",
    "Evaluation",
    "IncompleteError",
    "LeastSquares",
    "Magnitude",
    "MissingExtraError",
    "ModelError",
    "NormalizedMagnitude",
    "NumericalError",
    "OptionError",
    "OutputError",
    "PackError",
    "PackedSize",
    "Plan",
    "Preprocess",
    "ProcessError",
    "PruneResult",
    "Recipe",
    "Report",
    "SecateurError",
    "SecateurWarning",
    "Sensitivity",
    "Suggestion",
    "Sweep",
    "Text",
    "Uniform",
    "Unstructured",
    "UserError",
    "WeightCorrection",
    "__version__",
    "accelerate",
    "advise",
    "bench",
    "bench_modules",
    "compare_reports",
    "evaluate",
    "fractal_images",
    "inspect",
    "load",
    "load_accelerated",
    "load_images",
    "pack",
    "plan",
    "prune",
    "quantize",
    "runtimes",
    "save_page",
    "sweep",
    "unpack",
]

# Where each name is, read on first use: PyTorch alone takes more than a second to import.
_HOME = {
    "accelerate": "secateur.hardware.acceleration.run",
    "Acceleration": "secateur.hardware.acceleration.run",
    "AccelerationReport": "secateur.hardware.acceleration.report",
    "AdamCalibration": "secateur.core.methods",
    "ADMM": "secateur.core.methods",
    "Advice": "secateur.report.advice",
    "advise": "secateur.advice",
    "Bench": "secateur.hardware.latency",
    "bench": "secateur.hardware.bench",
    "bench_modules": "secateur.hardware.bench_modules",
    "BiasCorrection": "secateur.core.methods",
    "Block": "secateur.core.patterns",
    "BlockReconstruction": "secateur.pruning.reconstruction",
    "ChannelAlignment": "secateur.pruning.alignment",
    "ChannelPermutation": "secateur.pruning.permutation",
    "Channels": "secateur.core.patterns",
    "compare_reports": "secateur.report.comparison",
    "Comparison": "secateur.report.comparison",
    "Data": "secateur.data.sources",
    "DataError": "secateur.errors",
    "evaluate": "secateur.evaluation.evaluation_set",
    "Evaluation": "secateur.evaluation.results",
    "Plan": "secateur.report.plan",
    "fractal_images": "secateur.data.fractals",
    "IncompleteError": "secateur.errors",
    "inspect": "secateur.api",
    "LeastSquares": "secateur.core.methods",
    "load": "secateur.frontends.loading",
    "load_accelerated": "secateur.hardware.acceleration.saved",
    "load_images": "secateur.data.sources",
    "Magnitude": "secateur.core.methods",
    "MissingExtraError": "secateur.errors",
    "ModelError": "secateur.errors",
    "NM": "secateur.core.patterns",
    "NormalizedMagnitude": "secateur.pruning.allocations",
    "NumericalError": "secateur.errors",
    "OptionError": "secateur.errors",
    "OutputError": "secateur.errors",
    "pack": "secateur.export.packing",
    "PackedSize": "secateur.export.packing",
    "PackError": "secateur.errors",
    "plan": "secateur.api",
    "ProcessError": "secateur.errors",
    "Preprocess": "secateur.data.preprocess",
    "prune": "secateur.api",
    "PruneResult": "secateur.result",
    "quantize": "secateur.export.int8",
    "Recipe": "secateur.pruning.recipe",
    "RECIPES": "secateur.pruning.recipe",
    "Report": "secateur.report.model",
    "runtimes": "secateur.hardware.catalogue",
    "save_page": "secateur.render.page",
    "SecateurError": "secateur.errors",
    "SecateurWarning": "secateur.errors",
    "Sensitivity": "secateur.pruning.allocations",
    "Suggestion": "secateur.report.advice",
    "Sweep": "secateur.report.sweep",
    "sweep": "secateur.sweeps",
    "Text": "secateur.data.text",
    "Uniform": "secateur.pruning.allocations",
    "unpack": "secateur.export.packing",
    "Unstructured": "secateur.core.patterns",
    "UserError": "secateur.errors",
    "WeightCorrection": "secateur.core.methods",
}


def __getattr__(name: str) -> Any:
    """A public name or a module of the package, imported on first use."""
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        setattr(sys.modules[__name__], name, value)
        return value
    path = f"{__name__}.{name}"
    if not name.startswith("_"):
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path:
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The names that are there by now, and the public ones."""
    return sorted({*globals(), *__all__})
