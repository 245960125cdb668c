"""What the programs share: the error of writing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from harl_fast.errors import DataError


@contextlib.contextmanager
def writing(out: Path, *, again: str = "run the command again") -> Iterator[None]:
    """Turn an `OSError` of the work inside into a `DataError` about ``out``, with what to do."""
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise DataError(
            f"writing {out} failed: {error.strerror or error}{place}. Check free space and rights "
            f"there, and {again}"
        ) from error
