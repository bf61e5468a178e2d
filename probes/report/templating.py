"""Pages from Jinja2 templates (``pip install 'plumbob[bench]'``): every value escaped, no script, nothing loaded.

Nothing but the values decides the bytes of a page. Of these, only the SVG that :mod:`probes.report.figures` draws goes
in as it is: ``templates/macros.html`` says so where it does.
"""

import importlib.util
import re
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from probes.errors import PlumbobError

if TYPE_CHECKING:
    from jinja2 import Environment

_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that HTML may not hold, not even as a reference."""


def require_renderer() -> None:
    """Check that pages and their figures can be made, before what they show is measured.

    Raises:
        PlumbobError: matplotlib or Jinja2 is missing.
    """
    missing = [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]
    if missing:
        raise PlumbobError(f"A report's page needs {' and '.join(missing)}.", "Run: pip install 'plumbob[bench]'")


def render_template(name: str, **values: Any) -> str:
    """Render a page.

    Args:
        name: A file in ``templates/``.
        values: By the name that the template knows them by; it may leave none out.

    Raises:
        PlumbobError: matplotlib or Jinja2 is missing.
    """
    require_renderer()
    return _environment().get_template(name).render(values)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("probes.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _printable(value: Any) -> Any:
    """Replace what HTML may not hold; markup is built of what went through here."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    return value
