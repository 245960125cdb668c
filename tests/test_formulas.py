"""Formulas of the documentation become MathML when the site is built."""

from __future__ import annotations

import html
import importlib.util
import re
from pathlib import Path

import markdown
import pytest

DOCS = Path(__file__).parents[1] / "docs"


def test_each_formula_is_mathml_and_none_is_left_as_tex() -> None:
    pytest.importorskip("latex2mathml", reason="it comes with the dev extra: make setup")
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec and spec.loader
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = (DOCS / "method.md").read_text(encoding="utf-8")
    arithmatex = {"pymdownx.arithmatex": {"generic": True}}
    extensions = ["tables", "pymdownx.arithmatex"]
    page = markdown.markdown(text, extensions=extensions, extension_configs=arithmatex)
    built = hooks.on_page_content(page)
    displayed = len(re.findall(r"^\$\$$", text, flags=re.MULTILINE)) // 2
    inline = len(re.findall(r"(?<!\$)\$[^$]+\$(?!\$)", re.sub(r"(?s)\$\$.*?\$\$", "", text)))
    assert displayed == 3 and built.count('<math xmlns="http://www.w3.org/1998/Math/MathML"') > 20
    assert built.count('display="block"') == displayed
    assert built.count('display="inline"') == inline
    plain = html.unescape(re.sub(r"(?s)<code>.*?</code>", "", built))
    assert not re.search(r"\\[a-zA-Z(\[]|\$", plain) and "arithmatex" not in plain


def test_pages_ask_no_other_host_for_anything() -> None:
    settings = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert "//" not in settings and "extra_javascript" not in settings and "font: false" in settings
