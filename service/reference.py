"""Generates the reference pages from the code.

    python -m service.reference > docs/api.md          # the API, from the OpenAPI document
    python -m service.reference docs/operate.md        # rewrites its tables of settings and metrics

Fields get their descriptions, objects and problems their docstrings. Tests check that the pages
match the code.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge, Histogram
from pydantic import SecretStr

from service import errors as problems
from service.app import create_app
from service.codecs.json import JSON
from service.metrics import Metrics
from service.settings import PREFIX, Settings

Document = Mapping[str, Any]

HEAD = """# API reference

Generated from the OpenAPI document (`/openapi.json`; try it at `/docs`) by
`python -m service.reference > docs/api.md`: change the descriptions in the code, not this page.
Headers, keys, limits and settings are in [operate.md](operate.md), the Python client and the
command in [client.md](client.md), and advice on what to request in [choosing.md](choosing.md).
"""

INFERENCE = """## Open Inference Protocol (v2)

What KServe and Triton speak, over the same work: `GET /v2`, `/v2/health/live`, `/v2/health/ready`,
`/v2/models/NAME` and `/v2/models/NAME/ready`, and `POST /v2/models/NAME/infer`; a model's also with
`/versions/1` behind its name. Tensors are JSON or binary (`binary_tensor_data`). Inputs and
parameters have the names of the fields above, and what is sent says what is asked. No input is
required, and all outputs come if none is named:

- No input: samples, as of [`POST /sample`](#post-sample). Output `samples` [n, ...].
- `data` [N, ...], perhaps `known`: their likelihood, as of [`POST /loglik`](#post-loglik). Outputs
  `bound`, `standard_error`, `relative_to_prior` [N], and `typicality` and others where there are.
- `observed` [N, ...], perhaps `known` and `noise_std`, or a parameter such as `label`: a posterior,
  as of [`POST /posterior`](#post-posterior). Outputs `samples` [N, n, ...], `mean`, `std`.

Parameters are numbers, text, or JSON as text: `{"num_samples": 4, "steps": 50, "sampler": "ddim"}`,
`{"quantiles": "[0.05, 0.95]"}`; `steps` are the sampler's. As elements of BYTES an image may be a
PNG, and a row of a table a JSON object. The response's `parameters` have `seed`, `exact` and other
numbers, and under `answer` the rest of the answer as JSON text, with the diagnostics. `x-deadline`
works as above; `timeout` and `priority` change nothing, and there are no sequences, streams or
jobs. An error is `{"error": "..."}`, with the status of the problem.

```sh
curl localhost:8000/v2/models/gaussian-mixture/infer -d '{"parameters": {"num_samples": 2}}'
curl localhost:8000/v2/models/gaussian-mixture/infer -d '{"outputs": [{"name": "bound"}],
  "inputs": [{"name": "data", "datatype": "FP32", "shape": [1, 2], "data": [0.5, -1]}]}'
```

```python
import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient("localhost:8000")
asked = {"num_samples": 4, "steps": 20}
drawn = client.infer("mnist", [], parameters=asked).as_numpy("samples")
observed = triton.InferInput("observed", [1, 1, 28, 28], "FP32")
observed.set_data_from_numpy(drawn[:1])
known = triton.InferInput("known", [28, 28], "BOOL")
known.set_data_from_numpy(np.arange(28 * 28).reshape(28, 28) < 14 * 28)
found = client.infer("mnist", [observed, known], parameters=asked)
print(found.as_numpy("samples").shape, found.get_response()["parameters"]["method"])
```

[operate.md](operate.md) has Triton's routes that load and unload models.
"""

PROBLEMS = """## Problems

An error is `application/problem+json`, schema [`ProblemDocument`](#problemdocument); `type` is
`urn:noneq:problem:` and the name below. Those marked are refusals because of a limit or the load,
before anything is computed.
"""


def page(document: Document) -> str:
    """Render the API page, Markdown."""
    return "\n".join(_lines(document)).rstrip() + "\n"


def _lines(document: Document) -> Iterator[str]:
    schemas = document["components"]["schemas"]
    routes = [
        (method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    yield HEAD
    yield document["info"]["description"].strip()
    yield "\n| route | |\n|---|---|"
    for method, path, operation in routes:
        anchor = re.sub(r"[^a-z-]", "", f"{method}-{path}".lower())
        first = operation["description"].split("\n\n")[0]
        yield f"| [`{method} {path}`](#{anchor}) | {_cell(first)} |"
    told: set[str] = set()
    later = {_ref(operation["responses"].get("202", {})) for *_, operation in routes}
    for method, path, operation in routes:
        yield f"\n## {method} {path}\n\n{_plain(operation['description'])}"
        asked = _ref(operation.get("requestBody", {}))
        if asked:
            told.add(asked)
            yield from _request(asked, schemas[asked])
        answered = operation["responses"]["200"]
        own = _ref(answered) not in later  # those are among the objects
        told |= {_ref(answered)} if own else set()
        yield from _answer(answered, operation["responses"], schemas, own=own)
    yield "\n## Streams\n"
    texts = (operation["responses"]["200"]["description"] for *_, operation in routes)
    # The text is the same for every route with streams.
    yield next((about.partition("\n\n")[2].strip() for about in texts if "\n\n" in about), "")
    yield f"\n{INFERENCE}"
    yield "\n## Objects"
    for name in sorted(schemas.keys() - told):
        yield f"\n### {name}\n\n{_about(schemas[name])}\n"
        yield from _fields(schemas[name])
    yield f"\n{PROBLEMS}\n| status | name | title | when |\n|---|---|---|---|"
    for problem in _problems():
        mark = " (refused)" if problem.refusal else ""
        about = _cell(inspect.getdoc(problem) or "").split("Args:")[0].strip()
        yield f"| {problem.status} | `{problem.slug}`{mark} | {problem.title} | {about} |"


def _request(name: str, schema: Document) -> Iterator[str]:
    yield f"\n**Request** (`{name}`):\n"
    yield from _fields(schema)
    yield "\nFor example, one body per line:\n\n```json"
    yield from (json.dumps(example, ensure_ascii=False) for example in schema["examples"])
    yield "```"


def _answer(
    answered: Document, responses: Document, schemas: Document, *, own: bool
) -> Iterator[str]:
    name = _ref(answered)
    forms = answered["description"].split("\n\n")[0].strip()
    if name and not own:
        yield f"\n**Answer** ([`{name}`](#{name.lower()})): {_about(schemas[name])}"
        yield from [forms] if len(answered["content"]) > 1 else []
    elif name:
        yield f"\n**Answer** (`{name}`): {_about(schemas[name])}"
        yield f"{forms}\n" if len(answered["content"]) > 1 else ""
        yield from _fields(schemas[name])
    elif len(answered.get("content", {})) > 1:
        yield f"\n{forms}"
    later = _ref(responses.get("202", {}))
    if later:
        yield f"\nWith `Prefer: respond-async` it is 202 and a [`{later}`](#{later.lower()})."
    statuses = [status for status in responses if status >= "400"]
    if statuses:
        yield f"\n[Problems](#problems): {', '.join(statuses)}."


def _fields(schema: Document) -> Iterator[str]:
    """Render a table of an object's fields, with defaults if it is a request."""
    asked, told = schema.get("additionalProperties") is False, _attributes(schema)
    yield f"| field | type |{' default |' if asked else ''} |"
    yield "|---|---|---|" + ("---|" if asked else "")
    for name, field in schema["properties"].items():
        about = _cell(field.get("description") or told.get(name, ""))
        default = ""
        if asked:
            default = "required | " if name in schema.get("required", ()) else _default(field)
        yield f"| `{name}` | {_type(field)} | {default}{about} |"


def _default(field: Document) -> str:
    """Render a default as JSON; for an object only its name, since its fields have their own."""
    value = field.get("default", field.get("x-default"))
    value = dict(list(value.items())[:1]) if isinstance(value, dict) else value
    return f"`{json.dumps(value)}` | "


def _type(field: Document) -> str:
    """Describe a field's type and range."""
    if "$ref" in field:
        name = _name(field)
        return f"[`{name}`](#{name.lower()})"
    if "anyOf" in field or "oneOf" in field:
        return " or ".join(dict.fromkeys(map(_type, field.get("anyOf") or field["oneOf"])))
    if "const" in field or "enum" in field:
        values = field.get("enum") or [field["const"]]
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    kind = field.get("type", "anything")
    if kind != "array":
        return f"{kind}{_range(field, 'imum')}"
    items = field.get("items") or {}
    of = _type(items) if items.keys() & {"type", "$ref", "anyOf", "oneOf"} else ""
    return f"{f'list of {of}' if of else 'array'}{_range(field, 'Items', ' of them')}"


def _range(field: Document, of: str, what: str = "") -> str:
    """Describe the range of values ("imum") or of a list's length ("Items") in words."""
    bounds = {
        "at least": field.get(f"min{of}"),
        "above": field.get("exclusiveMinimum"),
        "at most": field.get(f"max{of}"),
        "below": field.get("exclusiveMaximum"),
    }
    given = {
        word: str(bound).removesuffix(".0") for word, bound in bounds.items() if bound is not None
    }
    words = " and ".join(f"{word} {bound}" for word, bound in given.items())
    if given.keys() == {"at least", "at most"}:
        words = f"{given['at least']} to {given['at most']}"
    return f" ({words}{what})" if words else ""


def _about(schema: Document) -> str:
    return _plain(schema.get("description", "").split("Attributes:")[0].strip())


def _attributes(schema: Document) -> dict[str, str]:
    """Parse the field descriptions in an object's docstring."""
    _, _, attributes = schema.get("description", "").partition("Attributes:\n")
    entries = re.split(r"\n {4}(?=\w+: )", f"\n{attributes.rstrip()}")[1:]
    parts = (entry.partition(": ") for entry in entries)
    return {name: f"{about[:1].upper()}{about[1:]}" for name, _, about in parts}


def _plain(text: str) -> str:
    """Escape Markdown (x_0 * y is not emphasis), leaving code unchanged."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*<~])", r"\\\1", part) for part in parts
    )


def _cell(text: str) -> str:
    return " ".join(_plain(text).replace("|", "\\|").split())


def _ref(body: Document) -> str:
    """Return the name of a body's JSON schema; empty without one."""
    schema = body.get("content", {}).get(JSON, {}).get("schema", {})
    return _name(schema) if "$ref" in schema else ""


def _name(schema: Document) -> str:
    return str(schema["$ref"].rpartition("/")[2])


def _problems() -> list[type[problems.Problem]]:
    """List every problem that has a name, by status."""
    found = [each for each in vars(problems).values() if inspect.isclass(each)]
    named = [each for each in found if issubclass(each, problems.Problem) and "slug" in vars(each)]
    return sorted(named, key=lambda each: (each.status, each.slug))


def with_tables(text: str) -> str:
    """Put the current tables of settings and metrics into docs/operate.md."""
    text = _with_rows(text, "Settings", [_setting(name) for name in Settings.model_fields])
    metrics = [x for x in vars(Metrics()).values() if isinstance(x, Counter | Gauge | Histogram)]
    return _with_rows(text, "Watching", [_metric(one) for one in metrics])


def _with_rows(text: str, heading: str, rows: list[str]) -> str:
    """Replace the rows of the first table below a heading."""
    before, mark, after = text.partition(f"\n## {heading}\n")
    lines = after.split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("|---")) + 1
    return before + mark + "\n".join([*lines[:start], *rows, *lines[lines.index("", start) :]])


def _setting(name: str) -> str:
    field = Settings.model_fields[name]
    default = field.default
    if isinstance(default, SecretStr):
        default = default.get_secret_value()
    shown = str(default).lower() if isinstance(default, bool) else default
    shown = "" if default in (None, "") else f"`{shown}`"
    return f"| `{PREFIX}{name.upper()}` | {shown} | {field.description} |"


def _metric(one: Counter | Gauge | Histogram) -> str:
    name = f"{one._name}_total" if isinstance(one, Counter) else one._name
    labels = ", ".join(f"`{label}`" for label in one._labelnames)
    return f"| `{name}` | {one._type} | {labels} | {one._documentation} |"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        operate = Path(sys.argv[1])
        operate.write_text(with_tables(operate.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(page(create_app(Settings()).openapi()))
