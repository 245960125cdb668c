"""The mask network's file and inference: round trip, refusals, folding, independence of batches."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from harl_fast.errors import DataError
from preprocess.masks.heuristic.method import outlined
from preprocess.masks.selftrained.ensemble import MEMBERS, opinions
from preprocess.masks.selftrained.network import (
    BATCH,
    FORMAT,
    Architecture,
    MaskNet,
    border_cues,
    load_network,
    predict,
    read_network,
    save_network,
    square,
)
from tests.preprocess.support import photo

TINY = Architecture(side=32, widths=(8, 8, 16, 16), lateral=8, top=8)


@pytest.fixture(scope="module")
def net() -> MaskNet:
    """A network whose normalisation differs from identity, as after training."""
    torch.manual_seed(0)
    net = MaskNet(TINY)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    with torch.no_grad():
        net.head.weight.mul_(20)  # maps that differ clearly between images
    return net.eval()


@pytest.fixture(scope="module")
def file(net: MaskNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "masks.safetensors"
    save_network(net, path, {"images": 7})
    return path


def pictures(count: int) -> list[npt.NDArray[np.uint8]]:
    return [photo(index, height=40 + 7 * index, width=90 - 3 * index) for index in range(count)]


def test_a_file_gives_the_same_network_back(net: MaskNet, file: Path) -> None:
    again, metadata = read_network(file)
    assert again.architecture == TINY
    assert metadata["images"] == 7
    expected = net.state_dict()
    assert again.state_dict().keys() == expected.keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_header_is_json_that_other_programs_can_read(file: Path) -> None:
    with safe_open(file, framework="np") as opened:
        header = json.loads(opened.metadata()["harl_fast"])
    assert header["format"] == FORMAT
    assert header["architecture"]["side"] == TINY.side


def test_predictions_are_the_unfolded_networks_probabilities(net: MaskNet, file: Path) -> None:
    # Seen to fail with a normalisation left out of the folding: differences of 0.1 and more.
    squares = np.stack([square(image, 32) for image in pictures(3)])
    heard = np.random.default_rng(0).random((3, len(MEMBERS), 16, 16), np.float32)
    got = predict(load_network(file).net, squares, heard, bfloat16=False)
    pixels = torch.from_numpy(squares.transpose(0, 3, 1, 2).astype(np.float64))
    cues = np.concatenate([np.stack([border_cues(one, 16) for one in squares]), heard], axis=1)
    with torch.no_grad():
        logits = copy.deepcopy(net).double()(pixels, torch.from_numpy(cues).double())
    expected = 1 / (1 + np.exp(-logits[:, 0].numpy()))
    assert np.ptp(expected) > 0.1  # else any constant map would pass
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_a_map_joins_the_network_with_its_ensemble(file: Path) -> None:
    image = pictures(1)[0]
    network = load_network(file, bfloat16=False)
    maps = np.stack(opinions(image))
    heard = np.stack([cv2.resize(m, (16, 16), interpolation=cv2.INTER_AREA) for m in maps])
    pixels = square(image, 32)
    own = predict(network.net, pixels[None], heard[None], bfloat16=False)[0]
    large = np.clip(cv2.resize(own, (64, 64), interpolation=cv2.INTER_LINEAR), 0, 1)
    expected = outlined(pixels, (large + maps.mean(axis=0)) / 2)
    np.testing.assert_allclose(network.maps([image])[0], expected, atol=1e-4)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_map_does_not_depend_on_its_batch(file: Path, bfloat16: bool) -> None:
    network = load_network(file, bfloat16=bfloat16)
    images = pictures(BATCH + 3)
    together = network.maps(images)
    assert len(together) == len(images)
    # bfloat16 has 8 bits: another order of additions moves a logit by a few 1/256.
    tolerance = 0.03 if bfloat16 else 1e-5
    for index in (0, 5, BATCH + 2):
        alone = network.maps([images[index]])[0]
        np.testing.assert_allclose(together[index], alone, atol=tolerance)
    assert np.abs(together[0] - together[5]).max() > tolerance


def test_maps_of_no_images_and_of_tiny_ones(file: Path) -> None:
    network = load_network(file)
    assert network.maps([]) == []
    (soft,) = network.maps([np.zeros((1, 3, 3), np.uint8)])
    assert soft.shape == (128, 128)
    assert 0 <= soft.min() and soft.max() <= 1


def test_inference_takes_one_thread_and_restores_the_number(file: Path) -> None:
    network = load_network(file)
    seen: list[int] = []
    network.net.head.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        network.maps(pictures(1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.safetensors is no file; make it again"):
        load_network(tmp_path / "none.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_off_file_is_refused(file: Path, tmp_path: Path, share: float) -> None:
    data = file.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(DataError, match=r"cut\.safetensors is damaged.*make masks-train"):
        load_network(cut)


def test_a_changed_weight_is_refused(file: Path, tmp_path: Path) -> None:
    data, other = bytearray(file.read_bytes()), tmp_path / "other.safetensors"
    data[-3] ^= 1
    other.write_bytes(data)
    with pytest.raises(DataError, match=r"other.safetensors is damaged .*checksum.*masks-train"):
        load_network(other)


def test_other_safetensors_files_are_refused(file: Path, tmp_path: Path) -> None:
    tensors = load_file(file)
    with safe_open(file, framework="np") as opened:
        header = json.loads(opened.metadata()["harl_fast"])
    other = tmp_path / "other.safetensors"

    def refuse(tensors: dict[str, torch.Tensor], entry: dict[str, str], message: str) -> None:
        save_file(tensors, other, metadata=entry)
        with pytest.raises(DataError, match=message):
            load_network(other)

    refuse(tensors, {}, "no mask network: its header has no 'harl_fast'")
    newer = {"harl_fast": json.dumps({**header, "format": "harl_fast masks 9"})}
    refuse(tensors, newer, "has format 'harl_fast masks 9', this program reads")
    fewer = {name: tensor for name, tensor in tensors.items() if name != "head.bias"}
    refuse(fewer, {"harl_fast": json.dumps(header)}, "is damaged or no mask network")
    refuse(tensors, {"harl_fast": "{"}, "is damaged or no mask network")
    wider = {**header, "architecture": {**header["architecture"], "top": 9}}
    refuse(tensors, {"harl_fast": json.dumps(wider)}, "is damaged or no mask network")


def test_a_failed_write_leaves_the_old_file(net: MaskNet, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    path.write_bytes(file.read_bytes())
    with pytest.raises(TypeError):
        save_network(net, path, {"unfit for JSON": object()})
    assert path.read_bytes() == file.read_bytes()
    assert list(tmp_path.iterdir()) == [path]
