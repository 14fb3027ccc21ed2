"""A griffe extension: `Example:` becomes a code block, `References:` a list with one item per work."""

import re
from typing import Any

import griffe

_REFERENCES = re.compile(r"^References:\n((?:[ ]{4}.*\n?|\n)+)", re.MULTILINE)
_NEW_WORK = re.compile(r"^    (?=[^\W\d_a-z].*\(\d{4}\)\.)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrite the two sections that Google style does not know by these names."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Edit the docstring of one object before it is parsed."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _REFERENCES.sub(_as_list, text)


def _as_list(match: re.Match[str]) -> str:
    items = _NEW_WORK.sub("- ", match[1])
    return "**References**\n\n" + re.sub(r"^    ", "  ", items, flags=re.MULTILINE)
