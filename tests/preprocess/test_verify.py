"""The verifier finds exactly the samples whose bytes changed, and says so by exit code and JSON."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from harl_fast.data.container.manifest import (
    manifest_path,
    read_manifest,
    sums_path,
    write_manifest,
)
from harl_fast.errors import OutputError
from harl_fast.files import sha256_file
from preprocess.prints import prints_path, write_prints
from preprocess.verify import DAMAGED, REFUSED, SOUND, main
from preprocess.verify import _rows as rows_of
from tests.betons import plain_item, write_beton, write_checksums
from tests.data.jpegfuzz import CRAFTED, SAMPLES, crafted_beton
from tests.data.support import copied
from tests.sets import split_beton

COUNT = 70  # more than one chunk


@pytest.fixture(scope="module")
def beton(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A container with all checksums, as `make beton` writes it."""
    path = write_beton(tmp_path_factory.mktemp("v") / "train.beton", plain_item, count=COUNT)
    return write_checksums(path)


def overwrite(path: Path, sample: int, part: int, offset: int, data: bytes) -> None:
    """Put bytes into a sample's image (part 0) or mask (part 1)."""
    place = int(rows_of(path, read_manifest(path), None)["place"][sample, part])
    with open(path, "r+b") as stream:
        stream.seek(place + offset)
        stream.write(data)


def report(tmp_path: Path, *args: object) -> tuple[int, dict]:
    out = tmp_path / "report.json"
    code = main([*map(str, args), "--report", str(out), "--workers", "1"])
    return code, json.loads(out.read_text())[0]


@pytest.mark.parametrize("deep", [(), ("--deep",)])
def test_a_sound_container_passes(beton: Path, tmp_path: Path, deep: tuple[str, ...]) -> None:
    code, found = report(tmp_path, beton, *deep)
    assert code == SOUND and found["sound"] and found["damaged"] == []
    assert found["samples"] == COUNT and found["checksum"] == "same"
    assert found["decoded"] == found["sums"] == bool(deep)


def test_a_manifest_without_a_checksum_of_itself_is_noted(
    beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(beton, tmp_path)
    code, found = report(tmp_path, path)
    assert code == SOUND and found["sealed"]
    assert "note: " not in capsys.readouterr().out
    tree = json.loads(manifest_path(path).read_text())
    del tree["manifest_sha256"]
    manifest_path(path).write_text(json.dumps(tree))
    code, found = report(tmp_path, path)
    assert code == SOUND and found["sealed"] is False
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"note: {path}: its manifest has no checksum of itself")
    assert f"{COUNT} samples are as written" in second


def test_older_checksums_find_damage_too(beton: Path, tmp_path: Path) -> None:
    """Containers written before have CRC-32."""
    path = copied(beton, tmp_path)
    data, manifest = path.read_bytes(), read_manifest(path)
    rows = rows_of(path, manifest, None)
    parts = [zip(row["place"].tolist(), row["size"].tolist(), strict=True) for row in rows]
    sums = [[zlib.crc32(data[place : place + size]) for place, size in two] for two in parts]
    np.save(sums_path(path), np.array(sums, "<u4"))
    known = sha256_file(sums_path(path))
    write_manifest(path, dataclasses.replace(manifest, sums_sha256=known))
    assert report(tmp_path, path, "--deep")[0] == SOUND
    overwrite(path, 66, 0, 400, b"\x11")
    overwrite(path, 67, 1, 3, b"\x55")
    code, found = report(tmp_path, path)
    got = {one["id"]: one["problems"] for one in found["damaged"]}
    assert code == DAMAGED and got.keys() == {66, 67}
    assert "image bytes changed" in got[66] and got[67] == ["mask bytes changed"]


def test_damage_is_named_sample_by_sample(
    beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(beton, tmp_path)
    overwrite(path, 5, 0, 200, b"\xff\xd9" + bytes(400))  # ends the JPEG early
    overwrite(path, 66, 0, 400, b"\x11")  # a JPEG decodes on, to other pixels
    overwrite(path, 67, 1, 3, b"\x55")
    code, found = report(tmp_path, path)
    assert code == DAMAGED and not found["sound"] and found["checksum"] == "differs"
    got = {item["id"]: set(item["problems"]) for item in found["damaged"]}
    assert got.keys() == {5, 66, 67}
    assert got[5] == {"image does not decode", "image bytes changed"}
    assert "image bytes changed" in got[66] and got[67] == {"mask bytes changed"}
    assert found["damaged"][0]["name"] == "sample5.jpg"
    shown = capsys.readouterr()
    assert "3 of 70 samples are damaged" in shown.out and "sample67.jpg" in shown.out
    assert "decoding train.beton: 70 of 70" in shown.err


def test_without_checksums_of_samples_decoding_finds_what_it_can(
    beton: Path, tmp_path: Path
) -> None:
    path = copied(beton, tmp_path)
    write_manifest(path, dataclasses.replace(read_manifest(beton), sums_sha256=""))
    overwrite(path, 5, 0, 200, b"\xff\xd9" + bytes(400))
    overwrite(path, 67, 1, 3, b"\x55")
    code, found = report(tmp_path, path, "--deep")
    assert code == DAMAGED and [item["id"] for item in found["damaged"]] == [5]
    assert not found["sums"]


def test_bytes_between_the_samples_count_too(
    beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(beton, tmp_path)
    rows = rows_of(path, read_manifest(path), None)
    with open(path, "r+b") as stream:
        stream.seek(int((rows["place"] + rows["size"]).max()) + 10)  # the rest of FFCV's page
        stream.write(b"\x01")
    code, found = report(tmp_path, path)
    assert code == DAMAGED and found["damaged"] == [] and found["checksum"] == "differs"
    assert "outside the samples" in capsys.readouterr().out


def test_a_container_that_cannot_be_judged_is_refused(beton: Path, tmp_path: Path) -> None:
    code, found = report(tmp_path, tmp_path / "none.beton")
    assert code == REFUSED and "none.beton does not exist" in found["refused"]
    (tmp_path / "none.beton").write_bytes(beton.read_bytes())
    code, found = report(tmp_path, tmp_path / "none.beton")
    assert code == REFUSED and "no manifest beside it" in found["refused"]
    path = copied(beton, tmp_path)
    path.write_bytes(beton.read_bytes()[:-100])
    code, found = report(tmp_path, path)
    assert code == REFUSED and "cut short" in found["refused"]
    # The worst of several files decides.
    assert main([str(beton), str(path), str(beton)]) == REFUSED


def test_all_cores_find_the_same(beton: Path, tmp_path: Path) -> None:
    path = copied(beton, tmp_path)
    overwrite(path, 69, 0, 200, b"\xff\xd9" + bytes(400))
    out = tmp_path / "report.json"
    assert main([str(path), "--workers", "2", "--report", str(out)]) == DAMAGED
    assert [item["id"] for item in json.loads(out.read_text())[0]["damaged"]] == [69]


def test_a_report_that_cannot_be_written_is_an_error(beton: Path) -> None:
    with pytest.raises(OutputError, match="--report"):
        main([str(beton), "--report", f"{beton}/report.json"])


def test_a_report_does_not_replace_a_file_of_a_container_beside_it(
    beton: Path, tmp_path: Path
) -> None:
    train = copied(beton, tmp_path)
    other = train.with_name("other.beton")
    other.touch()
    shard = tmp_path / "val" / "00000-of-00001.beton"
    shard.parent.mkdir()
    shard.touch()
    for report in (other.with_suffix(".json"), tmp_path / "val.json", shard.with_suffix(".json")):
        with pytest.raises(OutputError, match="belongs to "):
            main([str(train), "--report", str(report)])


def test_a_report_does_not_replace_a_file_of_a_run(beton: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(OutputError, match="is a file of the run itself"):
        main([str(beton), "--report", str(tmp_path / "config.yaml")])


def test_changed_fingerprints_of_source_files_are_named(
    beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(beton, tmp_path)
    prints = np.arange(read_manifest(path).count)
    known = write_prints(path, prints)
    write_manifest(path, dataclasses.replace(read_manifest(path), prints_sha256=known))
    assert main([str(path)]) == SOUND
    write_prints(path, prints[::-1])
    assert main([str(path)]) == REFUSED
    assert "train.prints.npy was changed" in capsys.readouterr().out
    prints_path(path).unlink()  # additions then go by names
    assert main([str(path)]) == SOUND


def test_a_crafted_jpeg_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """libjpeg alone would call it sound: it scales the hidden picture to the size asked for."""
    path = crafted_beton(tmp_path)
    assert main([str(path), "--deep", "--workers", "1"]) == DAMAGED
    told = capsys.readouterr().out
    assert f"1 of {SAMPLES} samples are damaged" in told
    assert f"sample {CRAFTED} (sample{CRAFTED}.jpg): image does not decode" in told


def judged(tmp_path: Path, path: Path, *args: object) -> tuple[int, list[dict]]:
    out = tmp_path / "set.json"
    code = main([str(path), *map(str, args), "--report", str(out), "--workers", "1"])
    return code, json.loads(out.read_text())


def test_a_set_is_judged_as_the_container_of_its_samples(
    beton: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, several = copied(beton, tmp_path), split_beton(beton, tmp_path / "set", shards=7)
    code, found = judged(tmp_path, several, "--deep")
    assert code == SOUND and len(found) == 7 and all(shard["decoded"] for shard in found)
    assert sum(shard["samples"] for shard in found) == COUNT
    shard, place = several / "00003-of-00007.beton", 2  # ten in each
    overwrite(one, 32, 0, 400, b"\x11")
    overwrite(shard, place, 0, 400, b"\x11")
    overwrite(one, 69, 1, 3, b"\x55")
    overwrite(several / "00006-of-00007.beton", 9, 1, 3, b"\x55")
    code, found = judged(tmp_path, several)
    assert code == DAMAGED == report(tmp_path, one)[0]
    damaged = [finding for shard in found for finding in shard["damaged"]]
    assert damaged == report(tmp_path, one)[1]["damaged"] and len(damaged) == 2
    assert [number for number, shard in enumerate(found) if not shard["sound"]] == [3, 6]
    assert [each["decoded"] for each in found] == [number in (3, 6) for number in range(7)]
    (several / "00001-of-00007.beton").unlink()  # the others are judged all the same
    code, found = judged(tmp_path, several)
    assert code == REFUSED and "00001-of-00007.beton is missing" in found[1]["refused"]
    assert [finding for shard in found for finding in shard["damaged"]] == damaged
    assert "00003-of-00007.beton: 1 of 10 samples are damaged" in capsys.readouterr().out
    assert judged(tmp_path, shard)[0] == DAMAGED  # alone, its ids are its own
    assert judged(tmp_path, shard)[1][0]["damaged"][0]["id"] == place
