"""Prunes a network and looks at what it cost: a script to start from.

    python examples/prune_your_model.py

It runs on the network that comes with Secateur. Put your own in the three functions.
"""

from pathlib import Path

from torch import Tensor, nn

import secateur
from secateur import example


def trained_network() -> nn.Module:
    """Your network, with its weights."""
    return example.trained()


def calibration_images() -> Tensor:
    """A few hundred images as the network takes them, (N, C, H, W); no labels needed.

    A folder works as well: pass its path to `secateur.prune`, with preprocess=Preprocess(...).
    """
    return example.calibration()


def test_images() -> tuple[Tensor, Tensor]:
    """Other images than those above, and their class numbers."""
    return example.test()


def main() -> None:
    """Prunes, evaluates, and saves the report."""
    dense = trained_network()
    print(secateur.inspect(dense, shape=calibration_images().shape[1:]))

    result = secateur.prune(dense, calibration_images(), sparsity=0.7)

    images, labels = test_images()
    cost = secateur.evaluate(result.model, images, labels, reference=dense)
    result.report.evaluation["pruned"] = cost
    print(result.report)
    result.report.save(Path("report.json"), overwrite=True)


if __name__ == "__main__":
    main()
