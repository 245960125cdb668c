"""Networks in ONNX: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from harl_fast.errors import ConfigError, DataError
from preprocess.masks import find_mask, open_method, parse_spec
from preprocess.masks.registry import try_method
from tests.preprocess.support import photo

SIDE = 32


def network(
    path: Path,
    *,
    batch: int | str = "n",
    side: int | str = SIDE,
    channels: int = 3,
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Write a network whose outputs are an image's first channel and minus the mean of all."""
    shape = [batch, channels, side, side]
    one = helper.make_tensor("one", TensorProto.INT64, [1], [0])
    axis = helper.make_tensor("axis", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Gather", ["image", "one"], ["first"], axis=1),
        helper.make_node("ReduceMean", ["image", "axis"], ["mean"], keepdims=1),
        helper.make_node("Neg", ["mean"], ["dark"]),
    ]
    outputs = [
        helper.make_tensor_value_info(name, kind, [batch, 1, side, side])
        for name in ("first", "dark")
    ]
    image = helper.make_tensor_value_info("image", kind, shape)
    graph = helper.make_graph(nodes, "tiny", [image], outputs, [one, axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def stretched(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return (values - values.min()) / (values.max() - values.min())


@pytest.fixture
def image() -> npt.NDArray[np.uint8]:
    return photo(3, height=SIDE, width=SIDE)  # no resizing: the expected map is exact


@pytest.mark.parametrize("batch", ["n", 1, 2])
def test_the_map_is_the_output_stretched_to_its_range(
    tmp_path: Path, image: npt.NDArray[np.uint8], batch: int | str
) -> None:
    file = network(tmp_path / "net.onnx", batch=batch)
    images = [image, image[::-1], 255 - image]
    softs = open_method(parse_spec(f"onnx:{file},size={SIDE}"))(images)
    for soft, rgb in zip(softs, images, strict=True):
        assert soft.dtype == np.float32
        np.testing.assert_allclose(soft, stretched(rgb[..., 0].astype(np.float32)), atol=1e-5)


def test_pixels_are_normalised_as_asked(tmp_path: Path, image: npt.NDArray[np.uint8]) -> None:
    file = network(tmp_path / "net.onnx")
    dark = image // 2
    unit = {"max": dark.max(), "255": 255}
    for scale, top in unit.items():
        spec = parse_spec(
            f"onnx:{file},size={SIDE},mean=0.1/0.2/0.3,std=0.5/1/2,scale={scale},output=1"
        )
        normal = (dark / np.float32(top) - [0.1, 0.2, 0.3]) / [0.5, 1, 2]
        expected = stretched(-normal.mean(axis=2).astype(np.float32))
        np.testing.assert_allclose(open_method(spec)([dark])[0], expected, atol=1e-5)


def test_an_output_without_contrast_becomes_the_stand_in(tmp_path: Path) -> None:
    file = network(tmp_path / "net.onnx")
    _, stand_in = find_mask(np.full((9, 9, 3), 80, np.uint8), f"onnx:{file},size={SIDE}")
    assert stand_in


def test_large_outputs_are_averaged_to_128_px(tmp_path: Path) -> None:
    file = network(tmp_path / "net.onnx", side="s")
    step = np.zeros((256, 256, 3), np.uint8)
    step[:, 101:] = 200
    (soft,) = open_method(parse_spec(f"onnx:{file},size=256"))([step])
    expected = np.zeros((128, 128), np.float32)
    expected[:, 51:], expected[:, 50] = 1, 0.5
    np.testing.assert_allclose(soft, expected, atol=1e-6)


def test_what_does_not_fit_is_refused_with_a_remedy(tmp_path: Path) -> None:
    file = network(tmp_path / "net.onnx")
    cases = {
        f"onnx:{file}": (ConfigError, f"takes images of 32 x 32 px, not 320.*size: {SIDE}"),
        f"onnx:{file},size={SIDE},output=2": (ConfigError, "only 2 outputs"),
        f"onnx:{file},size={SIDE},mean=1/2": (ConfigError, "mean has 2 numbers"),
        f"onnx:{network(tmp_path / 'grey.onnx', channels=1)},size={SIDE}": (DataError, "takes 1"),
        f"onnx:{network(tmp_path / 'd.onnx', kind=TensorProto.DOUBLE)},size={SIDE}": (
            DataError,
            "export it with float32",
        ),
    }
    (tmp_path / "text.onnx").write_text("no network")
    cases[f"onnx:{tmp_path}/text.onnx"] = (DataError, "no network that onnxruntime .* reads")
    for text, (kind, message) in cases.items():
        with pytest.raises(kind, match=message):
            try_method(parse_spec(text))


def test_without_onnxruntime_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = network(tmp_path / "net.onnx", batch=3)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DataError, match=r"pip install 'onnxruntime>="):
        open_method(parse_spec(f"onnx:{file},size={SIDE}"))


def test_the_written_network_is_sound(tmp_path: Path) -> None:
    onnx.checker.check_model(str(network(tmp_path / "net.onnx")))


def test_u2netp_finds_an_object() -> None:
    file = os.environ.get("HARL_FAST_U2NETP")
    if not file:
        pytest.skip("HARL_FAST_U2NETP is not set: give it the file u2netp.onnx (see the README)")
    y, x = np.mgrid[:200, :300]
    truth = np.hypot(y - 110, x - 180) < 60
    picture = np.full((200, 300, 3), (120, 160, 90), np.uint8)
    picture[truth] = (200, 40, 30)
    mask, stand_in = find_mask(picture, f"onnx:{file}")
    rows = np.arange(128) * 200 // 128
    expected = truth[rows][:, np.arange(128) * 300 // 128]
    assert not stand_in
    assert (mask & expected).sum() / (mask | expected).sum() > 0.8
