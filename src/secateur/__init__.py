"""Secateur prunes trained neural networks without retraining them.

import secateur
result = secateur.prune(model, images, sparsity=0.7)
print(result.report)
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from secateur.version import __version__

if TYPE_CHECKING:  # for type checkers and editors; _HOME says the same at run time
    from secateur.alignment import ChannelAlignment
    from secateur.allocations import NormalizedMagnitude, Sensitivity, Uniform
    from secateur.api import PruneResult, inspect, plan, prune
    from secateur.bench import Bench, bench
    from secateur.compare import Comparison, compare_reports
    from secateur.data import Preprocess, load_images
    from secateur.errors import (
        DataError,
        MissingExtraError,
        ModelError,
        NumericalError,
        OptionError,
        OutputError,
        PackError,
        SecateurError,
        SecateurWarning,
        UserError,
    )
    from secateur.evaluate import Evaluation, evaluate
    from secateur.forecast import Forecast
    from secateur.fractals import fractal_images
    from secateur.methods import (
        ADMM,
        AdamCalibration,
        BiasCorrection,
        LeastSquares,
        Magnitude,
        WeightCorrection,
    )
    from secateur.packing import PackedSize, pack, unpack
    from secateur.patterns import Unstructured
    from secateur.quantization import quantize
    from secateur.recipe import RECIPES, Recipe
    from secateur.report import Report
    from secateur.sweep import Sweep, sweep
    from secateur.tuning import BlockTuning

__all__ = [
    "ADMM",
    "RECIPES",
    "AdamCalibration",
    "Bench",
    "BiasCorrection",
    "BlockTuning",
    "ChannelAlignment",
    "Comparison",
    "DataError",
    "Evaluation",
    "Forecast",
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
    "Preprocess",
    "PruneResult",
    "Recipe",
    "Report",
    "SecateurError",
    "SecateurWarning",
    "Sensitivity",
    "Sweep",
    "Uniform",
    "Unstructured",
    "UserError",
    "WeightCorrection",
    "__version__",
    "bench",
    "compare_reports",
    "evaluate",
    "fractal_images",
    "inspect",
    "load_images",
    "pack",
    "plan",
    "prune",
    "quantize",
    "sweep",
    "unpack",
]

# Where each name is, read on first use: PyTorch alone takes more than a second to import.
_HOME = {
    "AdamCalibration": "secateur.methods",
    "ADMM": "secateur.methods",
    "Bench": "secateur.bench",
    "bench": "secateur.bench",
    "BiasCorrection": "secateur.methods",
    "BlockTuning": "secateur.tuning",
    "ChannelAlignment": "secateur.alignment",
    "compare_reports": "secateur.compare",
    "Comparison": "secateur.compare",
    "DataError": "secateur.errors",
    "evaluate": "secateur.evaluate",
    "Evaluation": "secateur.evaluate",
    "Forecast": "secateur.forecast",
    "fractal_images": "secateur.fractals",
    "inspect": "secateur.api",
    "LeastSquares": "secateur.methods",
    "load_images": "secateur.data",
    "Magnitude": "secateur.methods",
    "MissingExtraError": "secateur.errors",
    "ModelError": "secateur.errors",
    "NormalizedMagnitude": "secateur.allocations",
    "NumericalError": "secateur.errors",
    "OptionError": "secateur.errors",
    "OutputError": "secateur.errors",
    "pack": "secateur.packing",
    "PackedSize": "secateur.packing",
    "PackError": "secateur.errors",
    "plan": "secateur.api",
    "Preprocess": "secateur.data",
    "prune": "secateur.api",
    "PruneResult": "secateur.api",
    "quantize": "secateur.quantization",
    "Recipe": "secateur.recipe",
    "RECIPES": "secateur.recipe",
    "Report": "secateur.report",
    "SecateurError": "secateur.errors",
    "SecateurWarning": "secateur.errors",
    "Sensitivity": "secateur.allocations",
    "Sweep": "secateur.sweep",
    "sweep": "secateur.sweep",
    "Uniform": "secateur.allocations",
    "unpack": "secateur.packing",
    "Unstructured": "secateur.patterns",
    "UserError": "secateur.errors",
    "WeightCorrection": "secateur.methods",
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


class _Package(ModuleType):
    """Keeps functions in their place that are called like the module they are in.

    Importing the module `secateur.bench`, from anywhere, sets `secateur.bench` to the module.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == value.__name__:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
