"""The page at /docs: the OpenAPI document, to read and to try.

Owns the page. Swagger UI's files come from the wheel `flask-swagger-ui` (Swagger UI 5, unchanged), not from
somebody else's site, and the page's policy lets the browser ask nobody but us.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from api.errors import Answer, problem

__all__ = ["docs_asset", "docs_page"]

_PAGE: Final = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Headrace API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="api"></div>
<noscript>This page needs JavaScript; <a href="openapi.json">openapi.json</a> does not.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# validatorUrl: without null, Swagger UI would show the document to a validator on the internet.
_START: Final = b"""SwaggerUIBundle({
  url: "openapi.json", dom_id: "#api", deepLinking: true, validatorUrl: null, queryConfigEnabled: false,
  presets: [SwaggerUIBundle.presets.apis], layout: "BaseLayout", docExpansion: "list", defaultModelsExpandDepth: 0,
});
"""
# Swagger UI styles its elements inline, and draws its icons from data: URLs.
_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
)
_TYPES: Final = {
    "start.js": b"text/javascript",
    "swagger-ui-bundle.js": b"text/javascript",
    "swagger-ui.css": b"text/css",
    "favicon-32x32.png": b"image/png",
}


async def docs_page() -> Answer:
    """The page."""
    return Answer(200, [(b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", _POLICY)], _PAGE)


async def docs_asset(name: str) -> Answer:
    """A file that the page asks for."""
    if name not in _TYPES:
        return problem(404, "not_found", "there is no such file")
    # "no-cache": ask again each time, since the files change with the installed version.
    return Answer(200, [(b"content-type", _TYPES[name]), (b"cache-control", b"no-cache")], _asset(name))


@cache
def _asset(name: str) -> bytes:
    return _START if name == "start.js" else (files("flask_swagger_ui") / "dist" / name).read_bytes()
