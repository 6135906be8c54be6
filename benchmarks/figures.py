"""Medians, percentiles, ratios, and the JSON that they are kept in."""

import json
import math
import statistics
from pathlib import Path
from typing import Any


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that so many per cent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def summed_up(rounds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Of each figure: median, least and greatest over the rounds."""
    keys = sorted({key for figures in rounds for key in figures})
    summary = {}
    for key in keys:
        values = [figures[key] for figures in rounds if key in figures]
        summary[key] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return summary


def save(path: Path, document: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(document), indent=1, ensure_ascii=False) + "\n")


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
