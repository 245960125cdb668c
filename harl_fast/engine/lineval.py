"""A checkpoint's features judged on a folder of containers, from paths to result files."""

from __future__ import annotations

