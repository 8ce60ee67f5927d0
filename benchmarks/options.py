"""Command-line options that the benchmarks share."""

import argparse
from pathlib import Path

import shared_data
from results_table import FOLDER


def add_files(parser: argparse.ArgumentParser, name: str) -> None:
    """Where the shared data are, and the CSV file to write: `name` among the results."""
    parser.add_argument("--data", type=Path, default=shared_data.FOLDER, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=FOLDER / name, metavar="CSV")


def words(text: str) -> list[str]:
    """Split at commas."""
    return text.split(",")


def numbers(text: str) -> list[float]:
    """Read numbers separated by commas."""
    return [float(part) for part in words(text)]
