"""The page `/docs`: the service's API as one HTML file that loads nothing from elsewhere.

FastAPI's own page loads its scripts from a public server, which a closed network does not reach, and which an operator
may not want to trust. This page has the same content, from the OpenAPI document, and a form to try each endpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""The value of the header `Content-Security-Policy` that belongs to the page: a browser then loads nothing else."""

_HEAD = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
h2 {{ margin-top: 2.5rem; border-top: 1px solid #bbb; padding-top: 1rem }}
pre, textarea {{ font: 14px/1.4 ui-monospace, monospace; background: #f3f3f3; padding: .6rem; overflow-x: auto }}
pre {{ white-space: pre-wrap }} textarea {{ width: 100%; box-sizing: border-box; border: 1px solid #bbb }}
table {{ border-collapse: collapse }} td, th {{ text-align: left; vertical-align: top; padding: .2rem 1rem .2rem 0 }}
</style>
<h1>{title}</h1><p>{summary} <a href="openapi.json">openapi.json</a> describes the API for programs.</p>
"""
_SCRIPT = """<script>
for (const form of document.forms) form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const output = form.querySelector("output"), body = form.querySelector("textarea");
  output.textContent = "…";
  try {
    const options = body ? {method: form.dataset.method, body: body.value,
                            headers: {"Content-Type": "application/json"}} : {};
    const response = await fetch(form.dataset.path.slice(1), options);
    output.textContent = `Status ${response.status}\\n${await response.text()}`;
  } catch (error) { output.textContent = String(error); }
});
</script></html>
"""


def docs_page(openapi: Mapping[str, Any], *, base_url: str) -> str:
    """Return the page.

    Args:
        openapi: the OpenAPI document of the service.
        base_url: the address of the service as the client knows it, ending with a slash; for the examples.
    """
    info = openapi["info"]
    parts = [_HEAD.format(title=escape(info["title"]), summary=escape(info.get("summary", "")))]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            parts += _endpoint(path, method.upper(), operation, openapi, base_url=base_url)
    return "".join([*parts, _SCRIPT])


def _endpoint(
    path: str, method: str, operation: Mapping[str, Any], openapi: Mapping[str, Any], *, base_url: str
) -> Iterator[str]:
    """Yield the section of one endpoint."""
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    yield f"<h2>{method} {escape(path)}</h2><p>{escape(operation.get('description', ''))}</p>"
    answer = operation.get("responses", {}).get("200", {}).get("content", {}).get("application/json", {})
    for title, body in (("The body, a JSON object:", content), ("The response:", answer)):
        if fields := _schema(body, openapi).get("properties"):
            yield f"<p>{title}</p>"
            yield from _table(fields)
    examples = [example["value"] for example in content.get("examples", {}).values()]
    command = f"curl {base_url}{path.removeprefix('/')}"
    for example in examples:
        data = json.dumps(example).replace("'", "'\\''")
        yield f"<pre>{escape(command)} -H 'Content-Type: application/json' -d '{escape(data)}'</pre>"
    yield f'<form data-path="{escape(path)}" data-method="{method}">'
    if method == "POST":
        text = json.dumps(examples[0]) if examples else ""
        yield f'<textarea rows="3" aria-label="Body of the request">{escape(text)}</textarea>'
    yield "<p><button>Send</button></p><pre><output></output></pre></form>"


def _schema(content: Mapping[str, Any], openapi: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of a body, and the one that it refers to if it is a reference."""
    schema: Mapping[str, Any] = content.get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    return openapi["components"]["schemas"][name] if name else schema


def _table(fields: Mapping[str, Any]) -> Iterator[str]:
    yield "<table><tr><th>key<th>type<th>meaning</tr>"
    for name, field in fields.items():
        kinds = " or ".join(_kind(choice) for choice in field.get("anyOf", [field]))
        yield f"<tr><td><code>{escape(name)}</code><td>{escape(kinds)}<td>{escape(field.get('description', ''))}</tr>"
    yield "</table>"


def _kind(schema: Mapping[str, Any]) -> str:
    kind = str(schema.get("type", "any"))
    return f"list of {_kind(schema['items'])}s" if kind == "array" and "items" in schema else kind
