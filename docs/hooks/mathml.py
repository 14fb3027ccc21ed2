"""A mkdocs hook: formulas become MathML while the site is built, so that pages need no script and no network."""

import html
import re

import latex2mathml.converter

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: object) -> str:
    """Replace what `pymdownx.arithmatex` marked as a formula."""
    return _FORMULA.sub(_convert, html)


def _convert(match: re.Match[str]) -> str:
    display = "block" if match[1] == "div" else "inline"
    return latex2mathml.converter.convert(html.unescape(match[2]), display=display)
