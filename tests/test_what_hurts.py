"""docs/what-hurts.md: every test that it names is there and is run by what the page says, and every row shows it or owns up."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "what-hurts.md").read_text()
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]


def there_are() -> dict[str, bool]:
    """Each test's name, and whether all of it is left to `make test-slow`."""
    found = {}
    for file in TESTS.glob("test_*.py"):
        tree = ast.parse(file.read_text())
        is_file_slow = any(
            isinstance(node, ast.Assign) and ast.unparse(node) == "pytestmark = pytest.mark.slow" for node in tree.body
        )
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                is_slow = "pytest.mark.slow" in [ast.unparse(decorator) for decorator in node.decorator_list]
                found[node.name] = is_file_slow or is_slow
    return found


def test_every_test_that_is_named_is_there_and_is_run_by_what_the_page_says():
    named = {name: bool(slow) for name, slow in re.findall(r"`(test_\w+)`( \(slow\))?", PAGE)}
    there = there_are()
    assert named == {name: there.get(name) for name in named}


def test_every_entry_has_a_test_or_owns_up():
    assert [row[0] for row in ROWS] == [str(n) for n in range(1, 33)]
    for number, _, why, shown_by in ROWS:
        owns_up = re.search(r"\*\*(Can happen|Not offered|Not yet shown)|No fault that a test could show", why)
        assert "`test_" in shown_by or owns_up, number
