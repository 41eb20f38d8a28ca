"""The reliability page names tests that exist, and leaves no scenario of the catalogue out."""

import ast
from pathlib import Path
import re

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
SCENARIOS = {"A": 12, "B": 15, "C": 7, "D": 17, "E": 5, "F": 5, "G": 6, "H": 2, "I": 3, "J": 4, "K": 2, "L": 3}
"""The catalogue's letters and how many scenarios each has."""

_NAME = re.compile(r"`(test_\w+)::(test_\w+)`")


def functions(path: Path) -> set[str]:
    """Names of the functions at the top of a file."""
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_test_that_is_named_exists() -> None:
    files = {path.stem: path for path in TESTS.rglob("test_*.py")}
    named = set(_NAME.findall(PAGE.read_text()))
    assert len(named) > 80
    known = {file: functions(files[file]) for file, _ in named if file in files}
    assert sorted(f"{file}::{test}" for file, test in named if test not in known.get(file, set())) == []


def test_every_scenario_has_its_row_and_every_row_its_test_or_its_reason() -> None:
    rows = re.findall(r"^\| ([A-L]\d+) \|(.+)$", PAGE.read_text(), re.MULTILINE)
    assert [name for name, _ in rows] == [
        f"{letter}{number}" for letter, last in SCENARIOS.items() for number in range(1, last + 1)
    ]
    for name, row in rows:
        assert _NAME.search(row) or "**open**" in row or "**n/a**" in row, name
