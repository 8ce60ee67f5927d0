"""Command-line options that the benchmarks share."""

import argparse
from pathlib import Path

import shared_data
from results_table import FOLDER


def add_files(parser: argparse.ArgumentParser, name: str) -> None:
    """Where the shared data are, and the CSV file to write: `name` among the results."""
    parser.add_argument("--data", type=Path, default=shared_data.FOLDER, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=FOLDER / name, metavar="CSV")


def add_half(parser: argparse.ArgumentParser) -> None:
    """Which images the results are judged on; see `shared_data`."""
    explained = "test images to judge by: choose settings on one half, quote figures of the other"
    parser.add_argument("--half", choices=["choose", "quote"], default="choose", help=explained)


def words(text: str) -> list[str]:
    """Split at commas."""
    return text.split(",")


def numbers(text: str) -> list[float]:
    """Read numbers separated by commas."""
    return [float(part) for part in words(text)]
