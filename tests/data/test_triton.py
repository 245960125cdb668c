"""The Triton kernels without a GPU: interpreted against the plain form, counted, and compiled."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harl_fast.config import DataConfig, ViewConfig
from harl_fast.data.views import color_cpu, color_device
from harl_fast.data.views.augment import AUGMENTATIONS, Augmentation

triton = pytest.importorskip("triton")

MEAN, STD = DataConfig().mean, DataConfig().std
ALL = {"gray_p": 0.5, "blur_p": 0.5, "solarize_p": 0.5}
ROUNDING = 1e-5
"""Of a dozen float32 operations and a sum of 2 * 17 products, on values up to 1 / 0.225."""
KERNELS, BYTES = 40, 6e9
"""Most kernels and bytes of a step at 2 x 512 x 224 px: 2 % of an A100's step at 1.5 TB/s."""


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Return the kernels' module, its kernels run by Triton's interpreter on the CPU."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.find_spec("harl_fast.data.views.color_triton")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(color_device, "fused_kernels", lambda device: module)
    yield module


def pictures(count: int, side: int, channels: int = 3) -> torch.Tensor:
    """Return (B, S, S, C) uint8 noise with a row of grey and one of pure red."""
    rng = np.random.default_rng(side)
    images = rng.integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    images[:, 0] = 77
    images[:, 1] = (255, 0, 0)[:channels]
    return torch.from_numpy(images)


@pytest.mark.parametrize(("side", "channels"), [(8, 3), (33, 3), (33, 1)])
def test_the_kernels_colour_as_the_plain_form(
    interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch, side: int, channels: int
) -> None:
    policies = [ViewConfig(size_px=side, **ALL), ViewConfig(size_px=side, blur_sigma=(1.0, 9.0))]
    colour = color_device.Photometric(policies, mean=MEAN[:channels], std=STD[:channels], seed=3)
    images, ids = [pictures(12, side, channels)] * 2, np.arange(12)
    got = colour.batch(images, ids=ids, epoch=1)
    monkeypatch.setattr(color_device, "fused_kernels", lambda device: None)
    for view, expected in enumerate(colour.batch(images, ids=ids, epoch=1)):
        torch.testing.assert_close(got[view], expected, rtol=0, atol=ROUNDING)
        assert got[view].is_contiguous(memory_format=torch.channels_last)
        assert expected.std() > 0.1


def test_the_kernels_know_every_order_of_the_jitter(interpreted: ModuleType) -> None:
    policy, orders = ViewConfig(size_px=16), list(itertools.permutations(range(4)))
    params = np.zeros((len(orders), color_cpu.PARAMS))
    params[:, color_cpu.JITTER], params[:, color_cpu.ORDER : color_cpu.ORDER + 4] = 1.0, orders
    params[:, color_cpu.FACTORS : color_cpu.FACTORS + 4] = 1.4, 0.6, 0.3, -0.45
    images = pictures(len(orders), 16)
    plain = color_device.Photometric([policy], mean=MEAN, std=STD, seed=0)
    expected = plain.colour(images, color_device.Draws.of(params), policy=policy)
    on_device = torch.from_numpy(params).float()
    got = interpreted.colour_views(images, on_device, mean=None, std=None, radius=0)
    torch.testing.assert_close(got, expected, rtol=0, atol=ROUNDING)


def test_operations_from_outside_come_before_the_normalisation(
    interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    dark = Augmentation(lambda x, _: x * 0.5, first_draw=color_cpu.PARAMS)
    monkeypatch.setitem(AUGMENTATIONS, "dark", dark)
    policy = ViewConfig(size_px=16, augment={"dark": 0.5}, **ALL)
    colour = color_device.Photometric([policy], mean=MEAN, std=STD, seed=0)
    images, ids = pictures(12, 16), np.arange(12)
    got = colour(images, view=0, ids=ids, epoch=0)
    monkeypatch.setattr(color_device, "fused_kernels", lambda device: None)
    expected = colour(images, view=0, ids=ids, epoch=0)
    torch.testing.assert_close(got, expected, rtol=0, atol=ROUNDING)


class Traffic(TorchDispatchMode):
    """Counts kernels on CUDA tensors and the bytes they move, and copies to the device."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.bytes, self.copies = 0, 0, 0

    def add(self, tensors: list[torch.Tensor]) -> None:
        """Count a kernel that reads or writes each of these once."""
        self.kernels += 1
        self.bytes += sum(t.nbytes for t in {id(t): t for t in tensors}.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, made = (
            [t for t in tree_leaves(x) if isinstance(t, torch.Tensor)] for x in (args, out)
        )
        if func.is_view or "empty" in str(func) or not any(t.is_cuda for t in made):
            return out
        if all(t.device.type == "cpu" for t in read) and read:
            self.copies += 1
        elif "index_put" in str(func):  # these two touch the chosen rows alone
            self.add([args[2], args[2].new_empty(args[2].shape)])
        elif "index.Tensor" in str(func):
            self.add([out, out.new_empty(out.shape)])
        else:
            self.add(read + made)
        return out


def traffic(monkeypatch: pytest.MonkeyPatch, kernels: ModuleType | None) -> Traffic:
    """Return what colouring the two views of 512 pictures of 224 px takes, without doing it."""
    counted, config = Traffic(), DataConfig()
    monkeypatch.setattr(color_device, "fused_kernels", lambda device: kernels)
    if kernels is not None:

        def launch(kernel: Any, grid: Any, *args: Any, **constants: Any) -> None:
            counted.add([each for each in args if isinstance(each, torch.Tensor)])

        monkeypatch.setattr(kernels, "launch", launch)
    with FakeTensorMode(allow_non_fake_inputs=True):
        colour = color_device.Photometric(config.views, mean=MEAN, std=STD, seed=0).to("cuda")
        images = [torch.empty(512, 224, 224, 3, dtype=torch.uint8, device="cuda")] * 2
        with counted:
            views = colour.batch(images, ids=np.arange(512), epoch=0)
    assert [view.shape for view in views] == [(512, 3, 224, 224)] * 2
    return counted


def test_a_step_takes_few_kernels_little_traffic_and_one_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from harl_fast.data.views import color_triton

    found = traffic(monkeypatch, color_triton)
    assert found.copies == 1
    assert found.kernels <= KERNELS and found.bytes <= BYTES
    plain = traffic(monkeypatch, None)  # which shows that the count counts
    assert plain.kernels > 10 * KERNELS and plain.bytes > 5 * BYTES and plain.copies > 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton works with a GPU")
def test_where_triton_fails_the_plain_form_takes_over_and_that_is_told(caplog: Any) -> None:
    # Past the cache, so that no later call finds this answer.
    assert color_device.fused_kernels.__wrapped__(torch.device("cuda")) is None
    assert "Triton cannot be used" in caplog.text and "data.colour=loader" in caplog.text
    assert color_device.fused_kernels.__wrapped__(torch.device("cpu")) is None


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernels_compile_for_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capability: int
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from harl_fast.data.views import color_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    target = GPUTarget("cuda", capability, 32)
    kinds = {torch.uint8: "*u8", torch.float32: "*fp32"}

    def compile_(kernel: Any, grid: Any, *args: Any, **constants: Any) -> None:
        given = [kinds[a.dtype] if isinstance(a, torch.Tensor) else "i32" for a in args]
        names = kernel.arg_names
        signature = dict(zip(names, given, strict=False)) | dict.fromkeys(constants, "constexpr")
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        found.append(triton.compile(source, target=target))

    found: list[Any] = []
    monkeypatch.setattr(color_triton, "launch", compile_)
    images, params = pictures(1, 32), torch.zeros(1, color_cpu.PARAMS)
    color_triton.colour_views(images, params, mean=None, std=None, radius=2)
    assert len(found) == 4
    assert all(made.asm["cubin"] for made in found)
