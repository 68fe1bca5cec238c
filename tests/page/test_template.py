"""What every page keeps to: it stands alone, escapes every text, and needs all that its template names."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import jinja2
import pytest

from homeostat.page.template import render

HOSTILE = '</style><script>alert("x")</script>\x00\u202e'
BODY = """{%- extends "page.html" -%}
{%- from "pieces.html" import facts -%}
{%- block head %}
<h1>{{ headline }}</h1>
{% endblock %}
{%- block main %}
{{ facts([("name", headline)]) }}
{% endblock %}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a template and a style sheet of its own; each test's has a name of its own, as they are cached."""
    name = f"pages_of_{re.sub(r'[^a-z0-9]', '_', tmp_path.name)}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "mine.html").write_text(BODY)
    (folder / "mine.css").write_bytes(b"h1 { color: var(--ink); }\r\n")
    monkeypatch.syspath_prepend(tmp_path)
    return name


CONTEXT = {"kind": "test", "title": "a <title>", "version": None, "headline": HOSTILE}


def test_every_text_is_escaped(package: str) -> None:
    html = render(package, "mine", CONTEXT)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 2
    assert not {"\x00", "\u202e"} & set(html)
    assert "<title>a &lt;title&gt; · homeostat test</title>" in html


def test_the_policy_allows_the_one_style_sheet_and_nothing_else(package: str) -> None:
    html = render(package, "mine", CONTEXT)
    style = html[html.index("<style>") + len("<style>") : html.index("</style>")]
    assert style.endswith("h1 { color: var(--ink); }\n")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"content=\"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\"" in html


def test_what_the_template_names_must_be_given(package: str) -> None:
    with pytest.raises(jinja2.UndefinedError, match="headline"):
        render(package, "mine", {key: value for key, value in CONTEXT.items() if key != "headline"})


def test_the_same_context_gives_the_same_bytes(package: str) -> None:
    assert render(package, "mine", CONTEXT) == render(package, "mine", dict(reversed(CONTEXT.items())))
