"""docs/api.md is the API as it is, of today's OpenAPI document: every field and problem."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service import errors as problems
from service.app import create_app
from service.reference import page
from service.settings import Settings

FILE = Path(__file__).parents[2] / "docs" / "api.md"


@pytest.fixture(scope="module")
def document() -> Mapping[str, Any]:
    found: Mapping[str, Any] = create_app(Settings()).openapi()
    return found


def test_the_page_is_current(document: Mapping[str, Any]) -> None:
    written = FILE.read_text(encoding="utf-8")
    assert page(document) == written, "python -m service.reference > docs/api.md"


def test_every_route_field_and_problem_is_told(document: Mapping[str, Any]) -> None:
    told = page(document)
    for path, methods in document["paths"].items():
        for method in methods:
            assert f"\n## {method.upper()} {path}\n" in told
    for name, schema in document["components"]["schemas"].items():
        _, _, part = re.split(rf"(\(`{name}`\):|\n### {name}\n)", told, maxsplit=1)
        table = part.split("\n\n| field ")[1].split("\n\n")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(schema["properties"])
    for problem in vars(problems).values():
        if isinstance(problem, type) and "slug" in vars(problem):
            assert f"| {problem.status} | `{problem.slug}`" in told


def test_its_links_lead_somewhere(document: Mapping[str, Any]) -> None:
    told = page(document)
    headings = re.findall(r"^#+ (.*)$", told, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]*)\)", told))
    assert links <= anchors
    assert {"post-sample", "get-modelsname", "ancestral", "problems"} <= links


def told_of(field: Mapping[str, Any], **schema: object) -> str:
    """The row of one field of a request."""
    asked = {"description": "A.\n\nAttributes:\n    x: of it.", "additionalProperties": False}
    document = {
        "info": {"description": ""},
        "paths": {},
        "components": {"schemas": {"Asked": {**asked, **schema, "properties": {"x": field}}}},
    }
    found = re.search(r"^\| `x` \| (.*) \|$", page(document), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("field", "row"),
    [
        ({"type": "integer", "default": 8}, "integer | `8` | Of it."),
        ({"type": "number", "minimum": 0.0, "maximum": 1}, "number (0 to 1) | `null` | Of it."),
        (
            {"anyOf": [{"type": "number", "exclusiveMaximum": 0.5}, {"type": "null"}]},
            "number (below 0.5) or null | `null` | Of it.",
        ),
        (
            {"type": "array", "minItems": 1, "items": {"type": "string"}, "description": "a * b|c"},
            "list of string (at least 1 of them) | `null` | a \\* b\\|c",
        ),
        ({"enum": ["a", "b"], "default": "a"}, '`"a"` or `"b"` | `"a"` | Of it.'),
        (
            {"oneOf": [{"$ref": "#/components/schemas/Asked"}], "default": {"kind": "m", "n": 1}},
            '[`Asked`](#asked) | `{"kind": "m"}` | Of it.',
        ),
    ],
)
def test_a_field_is_told_with_type_range_and_default(field: Mapping[str, Any], row: str) -> None:
    assert told_of(field) == row


def test_what_is_required_says_so() -> None:
    assert told_of({"type": "integer"}, required=["x"]) == "integer | required | Of it."
