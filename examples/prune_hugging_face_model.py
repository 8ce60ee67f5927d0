"""Prunes an image classifier of Hugging Face.

pip install transformers torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
python examples/prune_hugging_face_model.py microsoft/resnet-18 images/
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

import secateur


class Scores(nn.Module):
    """A classifier that takes images and returns scores, as secateur wants it."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Map (batch, chan, height, width) to (batch, classes)."""
        return self.classifier(pixel_values=images).logits


def main(arguments: Sequence[str] | None = None) -> None:
    """Prunes, and writes the pruned classifier as Hugging Face reads it."""
    parser = argparse.ArgumentParser(description="Prune an image classifier of Hugging Face.")
    parser.add_argument("model", help="a name on the hub, or a folder")
    parser.add_argument("images", help="calibration images: a folder, or fractal:300")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--random", action="store_true", help="random weights, to try this out")
    parser.add_argument("-o", "--out", type=Path, default=Path("pruned-hugging-face"))
    options = parser.parse_args(arguments)

    if options.random:
        config = AutoConfig.from_pretrained(options.model)
        classifier = AutoModelForImageClassification.from_config(config)
    else:
        classifier = AutoModelForImageClassification.from_pretrained(options.model)
    processor = AutoImageProcessor.from_pretrained(options.model)
    result = secateur.prune(
        Scores(classifier.eval()),
        options.images,
        sparsity=options.sparsity,
        preprocess=secateur.Preprocess.from_hugging_face(processor),
    )
    print(result.report)
    result.model.classifier.save_pretrained(options.out)
    result.report.save(options.out / "report.json")


if __name__ == "__main__":
    main()
