"""Tolerances have names, reasons and margins, so that no test is red now and then."""

import ast
import re
from pathlib import Path

import pytest
import torch
from support import tolerances
from support.tolerances import BY_HAND, FLOAT64_SUMS, GREY_LEVELS, MOVED, Floor, Tolerance, above, below, close, near
from support.tolerances import same_images as same

FOLDER = Path(__file__).resolve().parents[1]
FILES = sorted(f for f in FOLDER.rglob("*.py") if f.name != "tolerances.py")
NAMED = {name: value for name, value in vars(tolerances).items() if isinstance(value, Tolerance | Floor)}
ORDERS = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def numbers(side: ast.AST) -> list[object]:
    """The numbers of a sum or a product, not those that a function is given."""
    if isinstance(side, ast.Constant):
        return [side.value]
    return [n for part in ast.iter_child_nodes(side) for n in numbers(part)] if not isinstance(side, ast.Call) else []


def unnamed(source: str) -> list[int]:
    """Lines that allow a difference on their own: no name, and no comment that says why."""
    found, lines = [], source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            allowed = [getattr(k.value, "value", 1) for k in node.keywords if k.arg in ("rtol", "atol")]
            exact = name == "assert_close" and allowed == [0, 0]
            if name in ("approx", "allclose", "isclose", "assert_allclose") or name == "assert_close" and not exact:
                found.append(node.lineno)
        elif isinstance(node, ast.Assert) and "#" not in "".join(lines[node.lineno - 1 : node.end_lineno]):
            compared = [c for c in ast.walk(node) if isinstance(c, ast.Compare) and isinstance(c.ops[-1], ORDERS)]
            sides = [side for c in compared for side in (c.left, *c.comparators)]
            if any(isinstance(n, float) and not n.is_integer() for side in sides for n in numbers(side)):
                found.append(node.lineno)
    return sorted(found)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_every_tolerance_has_a_name_or_a_reason_beside_it(file: Path) -> None:
    lines = unnamed(file.read_text(encoding="utf-8"))
    assert not lines, (
        f"{file.name}, lines {lines}: use tests/support/tolerances.py, or say why in a comment on the line"
    )


def test_what_has_no_name_is_found() -> None:
    found = ["assert_close(a, b)", "assert_close(a, b, rtol=0, atol=1e-6)", "assert a == approx(b)", "assert a < 0.01"]
    for line in found:
        assert unnamed(line) == [1], line
    assert not unnamed("assert_close(a, b, rtol=0, atol=0)\nassert a < 3\nassert a == 0.5\nassert a > 0.1  # because")


@pytest.mark.parametrize("name", NAMED)
def test_a_tolerance_says_its_name_has_a_reason_and_a_margin_of_three(name: str) -> None:
    assert NAMED[name].name == name
    assert NAMED[name].seen <= 1 / 3  # what a margin of three is
    source = (FOLDER / "support" / "tolerances.py").read_text(encoding="utf-8")
    assert re.search(rf"^#[^\n]+\n{name} = ", source, re.MULTILINE), f"a comment above {name} says why"
    elsewhere = "".join(file.read_text(encoding="utf-8") for file in FILES)
    assert re.search(rf"\b{name}\b", elsewhere) or source.count(name) > 2, f"{name} is not used"


def test_what_differs_by_more_fails() -> None:
    one = torch.ones(3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="not close"):
        close({"a": [one, 2.0]}, {"a": [one, 2.0 + 1e-4]}, BY_HAND)
    with pytest.raises(AssertionError):
        close(one, one.float(), FLOAT64_SUMS)
    with pytest.raises(AssertionError):
        close([one, one], [one], FLOAT64_SUMS)
    with pytest.raises(AssertionError, match="of the norm differs"):
        near(one, one + 1e-9, FLOAT64_SUMS)
    with pytest.raises(AssertionError, match="2 grey levels"):
        same(torch.zeros(1, 100).int(), torch.tensor([[2] + [0] * 99]).int())
    with pytest.raises(AssertionError, match="GREY_LEVELS"):
        same(torch.zeros(1, 4).int(), torch.tensor([[1, 0, 0, 0]]).int())
    for value in (float("nan"), 1.0):
        with pytest.raises(AssertionError, match="GREY_LEVELS"):
            below(value, GREY_LEVELS)
    for value in (float("nan"), 0.0):
        with pytest.raises(AssertionError, match="MOVED"):
            above(value, MOVED)
    with pytest.raises(AssertionError, match="not close"):
        close(float("nan"), 0.0, BY_HAND)
