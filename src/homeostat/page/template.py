"""A report as one HTML page that needs nothing but itself.

A report has a template `NAME.html`, which extends `page.html` and may import the macros of `pieces.html`, and a style
sheet `NAME.css`, which comes after `page.css`. Every text is escaped, a name that the template has and the context
lacks is an error, and the content security policy allows the one style sheet by its hash and nothing else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from homeostat.page.text import clean

_HOME = "homeostat.page"


def render(package: str, name: str, context: Mapping[str, Any]) -> str:
    """The page that a template makes of what it is to show; the same context gives the same bytes.

    Args:
        package: where the template `name`.html and the style sheet `name`.css are.
        name: of both, without a suffix.
        context: what the template names. `page.html` itself needs `kind` (what sort of report this is), `title` and
            `version` (texts or None).
    """
    style, digest = _style(package, name)
    return _template(package, name).render(dict(context) | {"style": Markup(style), "style_hash": digest})


@functools.cache
def _style(package: str, name: str) -> tuple[str, str]:
    """The style sheet and its hash as a content security policy wants it."""
    style = _resource(_HOME, "page.css") + "\n" + _resource(package, f"{name}.css")
    return style, base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


@functools.cache
def _template(package: str, name: str) -> jinja2.Template:
    common = {shared: _resource(_HOME, shared) for shared in ("page.html", "pieces.html")}
    environment = jinja2.Environment(
        loader=jinja2.DictLoader(common),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    return environment.from_string(_resource(package, f"{name}.html"))


def _resource(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _printable(value: object) -> object:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
