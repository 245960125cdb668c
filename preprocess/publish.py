"""How finished files take their names: together, and to the end even if that is cut short.

All that is to happen is written down first, and whoever converts next finds that note and finishes.
A crash at any point leaves the old files, the new ones, or containers without manifests, which
nothing opens; no work is lost.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from harl_fast.data.container.manifest import PUBLISHING
from harl_fast.errors import DataError, OutputError, explain, one_line, shown
from harl_fast.files import uninterrupted
from preprocess.places import Place

NOTE = PUBLISHING
ASIDE = ".replaced.tmp"
"""Takes what is replaced, until all else is done."""


@dataclass
class Moves:
    """What is to happen to files of a place."""

    key: str
    """Names the conversion."""
    groups: list[list[tuple[str, str]]]
    """Old and new names. A name that a group frees, a later one may give anew: a group can be done
    again from its start. Manifests are among the first to go and the last to come."""
    clean: list[str]
    """Folders that are of no more use."""
    done: int = 0
    """Groups that are."""


def publish(place: Place, moves: Moves) -> None:
    """Do all of it; `OutputError` where something cannot be moved: `finish` may later."""
    place.remove(ASIDE)
    place.write(NOTE, asdict(moves))
    finish(place)


def finish(place: Place) -> str:
    """Finish what an earlier `publish` could not, if there is such, and return its key or ""."""
    if not place.exists(NOTE):
        return ""
    moves = _moves(place)
    try:
        with uninterrupted():
            for group in moves.groups[moves.done :]:
                moves.done += 1
                if group:  # else there is nothing to note
                    for old, new in group:
                        place.move(old, new)
                    place.flush()
                    place.write(NOTE, asdict(moves))
            for name in (*moves.clean, ASIDE):
                place.remove(name)
            place.remove(NOTE)
    except OSError as error:
        raise OutputError(
            f"{place}: the new files are whole, but cannot take their names: {explain(error)}: "
            f"it goes on from there"
        ) from error
    return moves.key


def _moves(place: Place) -> Moves:
    """Return what the note says; `DataError` unless it speaks of files inside the place."""
    try:
        moves = Moves(**place.read(NOTE))
        pairs = [(old, new) for group in moves.groups for old, new in group]
        names = [moves.key, *moves.clean, *(name for pair in pairs for name in pair)]
        outside = [name for name in names if name.startswith("/") or ".." in name.split("/")]
        problem = f"it names {shown(outside[0])}" if outside else ""
        if not 0 <= moves.done <= len(moves.groups):
            problem = f"it has {moves.done} of {len(moves.groups)} groups done"
    except (TypeError, ValueError, AttributeError) as error:
        problem = one_line(str(error))
    if problem:
        raise DataError(
            f"{place}/{NOTE} is no note of a conversion's files ({problem}): delete it, then "
            f"convert anew"
        )
    return moves
