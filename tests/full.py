"""A stream that takes nothing, as a log on a full disk."""

from __future__ import annotations

import errno
import io


class FullStream(io.StringIO):
    """Raises what a full disk does."""

    def write(self, text: str) -> int:
        """Take nothing."""
        raise OSError(errno.ENOSPC, "No space left on device")
