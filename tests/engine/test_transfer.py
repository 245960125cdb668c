"""Batches reach the device: as they are on a CPU, on CUDA by a stream of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from harl_fast.engine.transfer import Transfer


class Cuda:
    """Stands in for torch.cuda, streams and tensors; notes what is asked of which stream."""

    def __init__(self) -> None:
        self.now, self.log = "compute", []

    def note(self, text: str) -> None:
        """Add a line."""
        self.log.append(f"{self.now}: {text}")

    def stream_of_its_own(self, device: torch.device) -> str:
        """Return a stream, which is a name here."""
        return "copies"

    @contextlib.contextmanager
    def stream(self, name: str) -> Iterator[None]:
        """Make a stream the current one."""
        before, self.now = self.now, name
        yield
        self.now = before

    def current_stream(self, device: torch.device) -> Any:
        """Return the current stream, to wait by."""
        cuda, name = self, self.now

        class Stream(str):
            def wait_stream(self, other: str) -> None:
                cuda.note(f"wait for {other}")

        return Stream(name)


class Tensor:
    """Stands in for a tensor."""

    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def to(self, device: torch.device, *, non_blocking: bool) -> Tensor:
        """Note a copy."""
        assert device.type == "cuda" and non_blocking
        self.cuda.note(f"copy {self.name}")
        return Tensor(self.cuda, f"{self.name} on the device")

    def record_stream(self, stream: str) -> None:
        """Note that the memory is in use."""
        self.cuda.note(f"keep {self.name} for {stream}")


def test_copies_have_a_stream_that_the_computation_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda()
    monkeypatch.setattr(torch.cuda, "Stream", cuda.stream_of_its_own)
    monkeypatch.setattr(torch.cuda, "stream", cuda.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", cuda.current_stream)
    transfer = Transfer(torch.device("cuda", 0))
    sources: Any = [Tensor(cuda, "a"), Tensor(cuda, "b")]
    moved: Any = transfer(sources, asked=lambda: cuda.note("asked"))
    assert [each.name for each in moved] == ["a on the device", "b on the device"]
    assert cuda.log == [
        "copies: copy a",
        "copies: copy b",
        "copies: asked",  # an event recorded here waits for nothing but the copies
        "compute: wait for copies",
        "compute: keep a on the device for compute",
        "compute: keep b on the device for compute",
    ]


def test_on_a_cpu_nothing_is_copied() -> None:
    tensors, asked = [torch.ones(2), torch.zeros(3)], []
    moved = Transfer(torch.device("cpu"))(tensors, asked=lambda: asked.append(1))
    assert all(new is old for new, old in zip(moved, tensors, strict=True)) and asked == [1]
