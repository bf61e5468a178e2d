"""HTML built so that nothing reaches the page unescaped: only :class:`Markup` is taken as it is."""

import html
import re
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""What no HTML may hold, not even as a reference."""
_VOID: Final = {"meta", "br", "hr"}


class Markup(str):
    """HTML that was built here."""

    __slots__ = ()


def printable(text: str) -> str:
    """The text with what HTML and SVG may not hold replaced."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def escape(content: str) -> Markup:
    """Text as HTML; what is HTML already stays as it is."""
    return content if isinstance(content, Markup) else Markup(html.escape(printable(content)))


def tag(element: str, *children: str, **attributes: str) -> Markup:
    """An element.

    Args:
        element: Its name; constant.
        children: Escaped unless they are :class:`Markup`.
        attributes: Escaped; ``class_`` is ``class``, and ``aria_label`` is ``aria-label``.
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(printable(value))}"' for name, value in attributes.items()
    )
    if element in _VOID:
        return Markup(f"<{element}{named}>")
    return Markup(f"<{element}{named}>{join(children)}</{element}>")


def join(children: tuple[str, ...] | list[str]) -> Markup:
    """One after another, escaped unless they are :class:`Markup`."""
    return Markup("".join(escape(child) for child in children))
