"""How all charts look: one style, text taken literally, and what to install if it is missing."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harl_fast.errors import HarlError, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#777777", "#009E73"
"""Of Okabe and Ito's colours, which colour-blind readers tell apart."""
LONGEST_NAME = 28
"""Characters of a class name on a chart."""
_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    # A class may be named "$x$".
    "text.parse_math": False,
    "figure.dpi": 110,
}


def check_extra() -> None:
    """Raise HarlError unless the packages of the extra ``eval`` are there."""
    try:
        import matplotlib
        import scipy  # noqa: F401
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        raise HarlError(
            f"pictures need the package {error.name}, which is not installed: pip install .[eval]"
        ) from error
    matplotlib.use("agg")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw in the style of all charts, whatever a user's matplotlibrc asks for, such as LaTeX."""
    import matplotlib as mpl

    # A context does not restore the backend, which is the process's.
    plain = {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"}
    with mpl.rc_context(plain | _STYLE):
        yield


def panels(width: float, height: float, *, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of a size in inches, and its panels from left to right."""
    # A plain Figure is freed with its last reference; pyplot would keep it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file's bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


@functools.cache
def _font() -> Any:
    from matplotlib.font_manager import findfont, get_font

    return get_font(findfont("DejaVu Sans"))  # matplotlib's own, and its default


def label(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name as it stands on a chart: on one line, its middle left out if it is long.

    Letters that the charts' font lacks are written as escapes: it would draw each as the same box.
    """
    name = one_line(name)
    if not name.isascii():
        name = "".join(c if _font().get_char_index(ord(c)) else ascii(c)[1:-1] for c in name)
    if len(name) <= longest:
        return name
    head = (longest - 1) // 2
    return f"{name[:head]}…{name[len(name) - (longest - 1 - head) :]}"


def bars(
    axes: Axes,
    names: Sequence[str],
    values: Sequence[float],
    *,
    colours: Any,
    texts: Sequence[str],
    longest: int = LONGEST_NAME,
) -> None:
    """Draw horizontal bars from the top down, each with its name before and its text behind it."""
    places = range(len(names))
    axes.barh(places, values, color=colours, height=0.75)
    axes.set_yticks(places, [label(name, longest) for name in names], fontsize=9)
    axes.invert_yaxis()
    axes.set_ylim(len(names) - 0.4, -0.6)
    for place, value, text in zip(places, values, texts, strict=True):
        side = -1 if value < 0 else 1
        axes.annotate(
            text,
            (value, place),
            (3 * side, 0),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="center",
            fontsize=8,
            color="#333333",
        )
