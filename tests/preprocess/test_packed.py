"""Each kind of source gives the samples of the folder that it was packed from, to the last bit."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from harl_fast.data.container.manifest import read_manifest, sample_name
from harl_fast.data.reader import read_samples
from preprocess import beton
from preprocess.images.decode import decode_image, open_file
from preprocess.masks.__main__ import main as masks_main
from preprocess.sources import SOURCES, Choices, Source, folder_source, read_source
from tests.preprocess.packed import KINDS, files, to_tar
from tests.preprocess.support import image_folder, photo, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = image_folder(tmp_path_factory.mktemp("set"), classes=3, train=4, val=2)
    save(photo(77), root / "train/class1/deep.png")
    return root


@pytest.fixture(params=sorted(KINDS))
def packed(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Path:
    place: Path = KINDS[request.param](folder, tmp_path)
    return place


def stem(name: str) -> str:
    """Return a sample's name without suffix, and without the split, which has several names."""
    return PurePosixPath(*PurePosixPath(name).parts[1:]).with_suffix("").as_posix()


def pixels(source: Source) -> dict[str, dict[str, tuple[int, bytes]]]:
    """Return label and decoded pixels of each split's images by their stems."""
    return {
        name: {
            stem(image): (label, decode_image(split.image(row), side_px=512).rgb.tobytes())
            for row, (image, label) in enumerate(zip(split.names, split.labels, strict=True))
        }
        for name, split in source.splits.items()
    }


def test_the_samples_are_those_of_the_folder(folder: Path, packed: Path, tmp_path: Path) -> None:
    expected = read_source(folder, Choices())
    source = read_source(packed, Choices(scratch=tmp_path / "scratch"))
    assert pixels(source) == pixels(expected)
    assert [len(split.names) for split in source.splits.values()] == [13, 6]
    numbered = packed.name == "shards"  # a .cls holds a number
    assert source.classes == (["0", "1", "2"] if numbered else expected.classes)


@pytest.fixture(scope="module")
def photos(real_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Up to 20 real photos in train/ and in val/ of each of eight classes."""
    root = tmp_path_factory.mktemp("photos") / "set"
    for name, split in folder_source(real_images).splits.items():
        taken = Counter[int]()
        for row, label in enumerate(split.labels):
            taken[label] += 1
            if label < 8 and taken[label] <= 20:
                path = split.root / split.names[row]
                target = root / name / PurePosixPath(*PurePosixPath(split.names[row]).parts[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    return root


def contents(source: Source) -> dict[str, dict[str, tuple[int, str]]]:
    """Return label and SHA-256 of each split's files by their stems."""
    found: dict[str, dict[str, tuple[int, str]]] = {}
    for name, split in source.splits.items():
        found[name] = {}
        for row, image in enumerate(split.names):
            with open_file(split.file(row)) as stream:
                digest = hashlib.sha256(stream.read()).hexdigest()
            found[name][stem(image)] = (split.labels[row], digest)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_real_photos_are_the_same_from_each_kind(photos: Path, tmp_path: Path, kind: str) -> None:
    expected = contents(read_source(photos, Choices()))
    place = KINDS[kind](photos, tmp_path)
    assert contents(read_source(place, Choices(scratch=tmp_path / "scratch"))) == expected
    assert sum(map(len, expected.values())) >= 20


def test_only_one_kind_fits(packed: Path) -> None:
    assert len([name for name, reader in SOURCES.items() if reader.fits(packed)]) == 1


def stored(out: Path) -> Iterator[tuple[str, str, int, bytes, bytes]]:
    for split in ("train", "val"):
        beton_file = out / f"{split}.beton"
        for sample in read_samples(beton_file, range(read_manifest(beton_file).count)):
            name = stem(sample_name(beton_file, sample.id))
            yield split, name, sample.label, sample.image.tobytes(), sample.mask.tobytes()


def converted(data: Path, masks: Path, out: Path) -> list[tuple[str, str, int, bytes, bytes]]:
    options = ["--out", str(out), "--mask-size", "16", "--workers", "2", "--masks", str(masks)]
    assert beton.main(["--data", str(data), *options]) == 0
    assert not (out / ".unpacked").exists()
    return sorted(stored(out))


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with the mask of one image; the others get the heuristic's."""
    half = np.zeros((48, 64), np.uint8)
    half[:, :32] = 255
    return save(half, tmp_path_factory.mktemp("masks") / "train/class0/0.png").parents[2]


@pytest.fixture(scope="module")
def expected(
    folder: Path, masks: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, str, int, bytes, bytes]]:
    return converted(folder, masks, tmp_path_factory.mktemp("out"))


@pytest.mark.parametrize("kind", ["shards", "parquet", "saved", "tgz"])
def test_containers_and_masks_of_a_tree_are_those_of_the_folder(
    kind: str,
    folder: Path,
    masks: Path,
    expected: list[tuple[str, str, int, bytes, bytes]],
    tmp_path: Path,
) -> None:
    assert converted(KINDS[kind](folder, tmp_path), masks, tmp_path / "out") == expected
    (mask,) = [row[-1] for row in expected if row[:2] == ("train", "class0/0")]
    assert mask == np.repeat([[1] * 8 + [0] * 8], 16, axis=0).astype(np.bool_).tobytes()


@pytest.mark.parametrize("kind", ["shards", "saved", "zip"])
def test_made_masks_serve_a_packed_set_and_notices_changes(
    kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = KINDS[kind](folder, tmp_path)
    made, out = tmp_path / "masks", tmp_path / "out"
    options = ["--data", str(data), "--workers", "2", "--out"]
    assert masks_main([*options, str(made)]) == 0
    assert masks_main([*options, str(made)]) == 0
    assert "train: 13 masks, 13 there before" in capsys.readouterr().out
    assert beton.main([*options, str(out), "--masks", str(made)]) == 0
    assert read_manifest(out / "train.beton").mask["fallbacks"] == 0
    # Packed again, every image has another time but the same bytes.
    for _, file in files(data) if data.is_dir() else [("", data)]:
        file.touch()
    assert masks_main([*options, str(made)]) == 0
    assert "train: 13 masks, 13 there before" in capsys.readouterr().out


def test_a_compressed_tar_is_unpacked_by_make_beton_only(folder: Path, tmp_path: Path) -> None:
    data = to_tar(folder, tmp_path / "set.tar.gz", mode="w:gz")
    with pytest.raises(beton.DataError, match=r"set.tar.gz is compressed.*unpack it first"):
        read_source(data, Choices())
