"""What is logged and measured is what the docs say, and dashboard and alerts ask for nothing else."""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from notifyworker.observe import Metrics

ROOT = Path(__file__).parents[1]
LEVELS = {"debug", "info", "warning", "error", "critical"}
NUMBERS = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}


def logged() -> dict[str, tuple[list[str], list[str]]]:
    """Every event of the source, with its levels and the fields that are written down where it is logged."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for file in (ROOT / "notifyworker").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "log"):
                continue
            levels, event = _levels(node)
            if levels is None:
                continue
            assert isinstance(event, ast.Constant), f"{file}:{node.lineno}: the event's name is written out"
            known = found.setdefault(event.value, (set(), set()))
            known[0].update(levels)
            known[1].update(_fields(node))
    return {event: (sorted(levels), sorted(fields)) for event, (levels, fields) in found.items()}


def _levels(call: ast.Call) -> tuple[set[str] | None, ast.expr | None]:
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr in LEVELS:
        return {call.func.attr}, call.args[0]
    if call.func.attr == "log":
        numbers = {n.value for n in ast.walk(call.args[0]) if isinstance(n, ast.Constant) and isinstance(n.value, int)}
        return {NUMBERS[number] for number in numbers}, call.args[1]
    return None, None


def _fields(call: ast.Call) -> set[str]:
    """Of `**where` all that the one place has that uses it."""
    return {name for keyword in call.keywords for name in ([keyword.arg] if keyword.arg else ["method", "route"])}


def test_every_event_is_told_with_its_level_and_fields() -> None:
    page = (ROOT / "docs" / "log-events.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \| (.*?) \| (.+) \|$", page, re.MULTILINE)
    told = {event: (levels.split(", "), re.findall(r"`(\w+)`", fields)) for event, levels, fields, _ in rows}

    assert len(rows) == len(told) > 50
    assert told == logged()


def measured() -> dict[str, tuple[str, list[str]]]:
    """Every metric, as Prometheus knows it: its type and labels."""
    metrics = Metrics()
    for histogram in (metrics.pickup, metrics.execution):
        histogram.observe("a", 1)
    found = {}
    for family in metrics.registry.collect():
        collector = next((c for c in vars(metrics).values() if getattr(c, "_name", None) == family.name), None)
        labels = getattr(family, "_labelnames", None) or getattr(collector, "_labelnames", None) or []
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, list(labels))
    return found


def test_every_metric_is_told_with_its_type_and_labels() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?)\| (.+) \|$", page, re.MULTILINE)
    told = {name: (kind, re.findall(r"`(\w+)`", labels)) for name, kind, labels, _ in rows}

    assert len(rows) == len(told) > 15
    assert told == measured()


def _asked_for(text: str) -> set[str]:
    names = set(re.findall(r"\bnotifyworker_\w+", text))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def test_dashboard_and_alerts_ask_for_metrics_and_labels_that_there_are() -> None:
    known = measured()
    dashboard = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = (ROOT / "deploy" / "prometheus-rules.yaml").read_text()
    alerts = re.findall(r"^ +expr: (.+)$", rules, re.MULTILINE)

    assert len(alerts) == rules.count("- alert: ") > 5
    for expression in [*expressions, *alerts]:
        asked = _asked_for(expression)
        assert asked, expression
        assert asked <= known.keys(), expression
        labels = set(re.findall(r"(\w+)=~?\"", expression)) | {
            label for by in re.findall(r"by \((.*?)\)", expression) for label in re.split(r", ?", by)
        }
        assert labels <= {"instance", "le", *(label for name in asked for label in known[name][1])}, expression
    assert _asked_for("".join(expressions)) == set(known)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_promtool_takes_the_alerts() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    rules = ROOT / "deploy" / "prometheus-rules.yaml"
    done = subprocess.run([promtool, "check", "rules", str(rules)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{rules.read_text().count('- alert: ')} rules found" in done.stdout
