"""Secateur prunes trained neural networks without retraining them.

import secateur
result = secateur.prune(model, images, sparsity=0.7)
print(result.report)
"""

from secateur.allocation import NormalizedMagnitude, Uniform
from secateur.api import PruneResult, inspect, prune
from secateur.data import Preprocess, load_images
from secateur.errors import (
    DataError,
    MissingExtraError,
    ModelError,
    NumericalError,
    OptionError,
    OutputError,
    SecateurError,
    SecateurWarning,
    UserError,
)
from secateur.evaluate import Evaluation, evaluate
from secateur.methods import ADMM, LeastSquares, Magnitude
from secateur.patterns import Unstructured
from secateur.report import Report
from secateur.version import __version__

__all__ = [
    "ADMM",
    "DataError",
    "Evaluation",
    "LeastSquares",
    "Magnitude",
    "MissingExtraError",
    "ModelError",
    "NormalizedMagnitude",
    "NumericalError",
    "OptionError",
    "OutputError",
    "Preprocess",
    "PruneResult",
    "Report",
    "SecateurError",
    "SecateurWarning",
    "Uniform",
    "Unstructured",
    "UserError",
    "__version__",
    "evaluate",
    "inspect",
    "load_images",
    "prune",
]
