"""Sets of shards: cut by rule, each made once, continued after any end, equal to one container."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harl_fast.data.container.manifest import find_container, read_manifest, read_shard
from harl_fast.data.reader import read_samples
from harl_fast.errors import DataError, HarlError
from harl_fast.lock import FOLDER_LOCK, locked
from harl_fast.pool import Team
from preprocess import beton, build, shards
from preprocess.verify import main as verify_main
from preprocess.work import shard_ranges
from tests.preprocess.support import contents, image_folder, photo, save

ROOT = Path(__file__).parents[2]
SIZE = 7
"""Images per shard."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = image_folder(tmp_path_factory.mktemp("set"), classes=2, train=15, val=3)
    (root / "train" / "class0" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (root / "train" / "class0" / "notes.txt").write_text("none")
    return root


def write(data: Path, out: Path, *options: str, size: int | None = SIZE) -> None:
    fixed = ["--data", str(data), "--out", str(out), "--mask-size", "16", "--workers", "1"]
    sizes = [] if size is None else ["--shard-size", str(size)]
    assert beton.main([*fixed, *sizes, "--mask-method", "full", *options]) == 0


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One container of all images."""
    out = tmp_path_factory.mktemp("whole")
    write(data, out, "--store", "mix:0.4", size=None)
    return out


@pytest.fixture(scope="module")
def several(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as a set."""
    out = tmp_path_factory.mktemp("several")
    write(data, out, "--store", "mix:0.4")
    return out


def shards_of(out: Path) -> list[Path]:
    folder = find_container(out, "train")
    return [folder / shard.file for shard in read_manifest(folder).shards]


def test_a_set_holds_the_samples_of_one_container_in_its_order(whole: Path, several: Path) -> None:
    one = read_samples(whole / "train.beton", range(30))
    found = [
        sample
        for path in shards_of(several)
        for sample in read_samples(path, range(read_manifest(path).count))
    ]
    assert [sample.name for sample in found] == [sample.name for sample in one]
    for sample, expected in zip(found, one, strict=True):
        np.testing.assert_array_equal(sample.image, expected.image)
        np.testing.assert_array_equal(sample.mask, expected.mask)
        assert sample.label == expected.label


def test_every_shard_is_a_container_and_the_manifest_merges_their_facts(
    whole: Path, several: Path
) -> None:
    set_, one = read_manifest(several / "train"), read_manifest(whole / "train.beton")
    # 31 files named as images in shards of 7; one of them is broken.
    assert [shard.count for shard in set_.shards] == [7, 7, 6, 7, 3]
    assert [shard.file for shard in set_.shards] == [f"0000{n}-of-00005.beton" for n in range(5)]
    for shard in set_.shards:
        read_shard(several / "train", shard)
    assert verify_main([str(path) for path in shards_of(several)]) == 0
    assert (set_.count, set_.class_counts, set_.skipped) == (30, [15, 15], 2)
    assert set_.count == one.count and set_.skipped == one.skipped
    for facts, expected in ((set_.mask, one.mask), (set_.store, one.store)):
        assert facts == expected
    (event,) = set_.history
    assert (event["first"], event["count"], event["source"]) == (0, 30, one.source)
    reports = [json.loads((out / "train.report.json").read_text()) for out in (whole, several)]
    assert reports[0] == reports[1]
    first = json.loads((several / "train" / "00000-of-00005.report.json").read_text())
    assert [item["path"] for item in first["skipped"]] == ["train/class0/notes.txt"]


def test_the_default_cut_counts_images_and_bytes() -> None:
    assert shard_ranges(np.full(10, 5), 4) == [range(0, 4), range(4, 8), range(8, 10)]
    assert shard_ranges(np.full(450_000, 5), None) == [
        range(0, 200_000),
        range(200_000, 400_000),
        range(400_000, 450_000),
    ]
    large = np.array([6, 6, 6, 6, 25, 1]) * 10**9
    assert shard_ranges(large, None) == [range(0, 3), range(3, 4), range(4, 5), range(5, 6)]
    assert shard_ranges(np.array([-1, -1]), None) == [range(0, 2)]
    assert shard_ranges(large, 6) == [range(0, 6)]  # a size that was asked for is kept


def test_no_shard_is_made_twice_and_changed_images_are_made_again(
    data: Path,
    several: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The third shard fails; the same command makes it and what follows."""
    own = tmp_path / "images"
    shutil.copytree(data, own / data.name)  # with the name and the times of the first
    made = list[str]()
    real = shards.write_shard

    def failing(place: Any, job: Any, *rest: Any) -> None:
        made.append(job.shown)
        if job.shown == stop:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(place, job, *rest)

    monkeypatch.setattr(build, "write_shard", failing)
    stop = "train/00002"
    with pytest.raises(OSError):
        write(own / data.name, tmp_path / "out", "--store", "mix:0.4")
    assert made == ["train/00000", "train/00001", "train/00002"]
    assert "note: 2 of 5 shards of train are finished and stay in " in capsys.readouterr().err
    made.clear()
    stop = ""
    path = own / data.name / "train" / "class0" / "0.jpg"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))
    write(own / data.name, tmp_path / "out", "--store", "mix:0.4")
    assert made == ["train/00000", *(f"train/0000{n}" for n in (2, 3, 4)), "val"]
    shown = capsys.readouterr().out
    assert "1 finished shards of an interrupted conversion are of images that have chan" in shown
    assert "train: 1 of 5 shards are finished already" in shown
    assert contents(tmp_path / "out") == contents(several)


def test_other_settings_keep_their_own_shards(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = shards.write_shard

    def failing(place: Any, job: Any, *rest: Any) -> None:
        if job.shown == "train/00003":
            raise KeyboardInterrupt
        real(place, job, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(build, "write_shard", failing)
        write(data, tmp_path)
    write(data, tmp_path, "--quality", "70")
    shown = capsys.readouterr().out
    assert "is of a conversion that was interrupted and differs in quality 90: the comm" in shown
    assert read_manifest(tmp_path / "train").store["quality"] == 70
    write(data, tmp_path)
    assert "train: 3 of 5 shards are finished already" in capsys.readouterr().out
    assert read_manifest(tmp_path / "train").store["quality"] == 90
    assert not list(tmp_path.glob(".*"))


def test_one_container_replaces_a_set_and_a_set_one_container(
    data: Path, whole: Path, several: Path, tmp_path: Path
) -> None:
    for size, expected in ((None, whole), (SIZE, several), (SIZE, several), (None, whole)):
        write(data, tmp_path, "--store", "mix:0.4", size=size)
        assert contents(tmp_path) == contents(expected)


def test_a_folder_of_other_things_in_a_sets_place_is_refused(data: Path, tmp_path: Path) -> None:
    save(photo(1), tmp_path / "train" / "cat" / "1.jpg")
    with pytest.raises(DataError, match=r"/train is to hold the shards of train, .*\(cat\)"):
        write(data, tmp_path)
    write(data, tmp_path, size=None)  # beside it one container has room
    assert find_container(tmp_path, "train") == tmp_path / "train.beton"


def test_a_shard_of_unreadable_images_is_left_out(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "set", classes=2, train=4, val=2)
    for index in range(SIZE):
        (root / "train" / "class0" / f"a{index}.jpg").write_bytes(b"\xff\xd8\xff")
    write(root, tmp_path / "out", size=3)  # class0: 0 to 3, a0 to a6; then class1
    set_ = read_manifest(tmp_path / "out" / "train")
    assert [shard.file[:5] for shard in set_.shards] == ["00000", "00001", "00003", "00004"]
    assert (set_.count, set_.skipped) == (8, SIZE)
    report = json.loads((tmp_path / "out" / "train.report.json").read_text())
    assert len(report["skipped"]) == SIZE


def test_a_full_disk_costs_one_shard(
    data: Path, several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old set stays as it is, finished shards stay, and the rest follows."""
    write(data, tmp_path, "--quality", "70")
    old = contents(tmp_path)
    real = shards.write_shard

    def full(place: Any, job: Any, results: Any, advance: Any, team: Any) -> None:
        if job.shown == "train/00003":  # what the workers write from now on ends as on a full disk
            for worker in team._team:
                resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (1 << 23, -1))
        real(place, job, results, advance, team)

    with monkeypatch.context() as patch, pytest.raises(OSError) as caught:
        patch.setattr(build, "write_shard", full)
        write(data, tmp_path, "--store", "mix:0.4")
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == f"{tmp_path}/train/00003.beton"
    found = contents(tmp_path)
    assert {name: found[name] for name in old} == old
    (work,) = tmp_path.glob(".train-*.partial")
    assert len([path for path in work.iterdir() if path.is_dir()]) == 3
    write(data, tmp_path, "--store", "mix:0.4")
    assert contents(tmp_path) == contents(several)


def test_a_worker_that_dies_while_it_writes_costs_one_shard(
    data: Path, several: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, follow_up = shards.write_shard, Team.follow_up

    def dying(self: Team[Any, Any], places: Any) -> None:
        worker = self._pending[0][0].process
        os.kill(worker.pid or 0, signal.SIGSTOP)
        follow_up(self, places)  # it has been told where its images go, and has not written them
        os.kill(worker.pid or 0, signal.SIGKILL)

    def write_shard(place: Any, job: Any, *rest: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if job.shown == "train/00002":
                patch.setattr(Team, "follow_up", dying)
            real(place, job, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_shard", write_shard)
        with pytest.raises(
            DataError, match=r"died \(SIGKILL\) while it held train/class\d/\d+\.jpg"
        ):
            write(data, tmp_path, "--store", "mix:0.4")
    assert not (tmp_path / "train").exists()
    (work,) = tmp_path.glob(".train-*.partial")
    assert len([path for path in work.iterdir() if path.is_dir()]) == 2
    write(data, tmp_path, "--store", "mix:0.4")
    assert contents(tmp_path) == contents(several)


def test_two_writers_are_locked_out(data: Path, tmp_path: Path) -> None:
    refused = pytest.raises(HarlError, match="is in use by process")
    with locked(tmp_path / FOLDER_LOCK, output=tmp_path), refused:
        write(data, tmp_path)


CHILD = """
import sys
from preprocess import beton
from harl_fast.program import run_main
print("ready", flush=True)
run_main(lambda: beton.main(sys.argv[1:]))
"""


class Conversion:
    """A conversion in a process group of its own."""

    def __init__(self, data: Path, out: Path) -> None:
        options = ["--data", data, "--out", out, "--shard-size", "8", "--workers", "2"]
        self.out = out
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *options, "--mask-method", "full", "--mask-size", "16"],
            cwd=ROOT,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def writes(self) -> bool:
        """Wait until it writes a shard; return whether it did before it ended."""
        while self.process.poll() is None:
            if any(self.out.glob(".*.partial/.new.*")):
                return True
            time.sleep(0.002)
        return False

    def kill(self) -> bool:
        """Kill the whole group; return whether it was still at work."""
        alive = self.process.poll() is None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            assert not alive
        self.process.communicate()
        return alive and self.process.returncode != 0


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    root = image_folder(tmp_path_factory.mktemp("kills"), classes=2, train=60, val=6)
    out = tmp_path_factory.mktemp("undisturbed")
    options = ["--shard-size", "8", "--workers", "1", "--mask-method", "full", "--mask-size", "16"]
    assert beton.main(["--data", str(root), "--out", str(out), *options]) == 0
    yield root, out


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_killed_conversion_continues_to_the_same_bytes(
    undisturbed: tuple[Path, Path], tmp_path: Path, *, kills: int = 20
) -> None:
    """Whatever finishes between two kills is compared, and begun anew."""
    data, expected = undisturbed[0], contents(undisturbed[1])
    out, draw, done, finished = tmp_path / "out", random.Random(kills), 0, 0
    while done < kills or not finished:
        run = Conversion(data, out)
        if done < kills:
            if draw.random() < 0.8:
                run.writes()
                time.sleep(draw.uniform(0, 0.8))
            else:
                time.sleep(draw.uniform(0, 4))
            done += run.kill()
        else:
            run.process.communicate()
        if run.process.returncode == 0:
            assert contents(out) == expected
            finished += 1
            shutil.rmtree(out)
