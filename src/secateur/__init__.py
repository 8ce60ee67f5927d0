"""Secateur prunes trained neural networks without retraining them.

import secateur
result = secateur.prune(model, images, sparsity=0.7)
print(result.report)
"""

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
from secateur.version import __version__

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
