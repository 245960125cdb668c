"""Shards converted by a Ray cluster: each once, the same bytes, whoever dies."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harl_fast.errors import ConfigError, DataError
from preprocess import beton
from preprocess.ray import cluster
from tests.preprocess.support import contents, image_folder

ROOT = Path(__file__).parents[2]


def options(data: Path, out: Path, *more: str) -> list[str]:
    fixed = ["--data", str(data), "--out", str(out), "--mask-size", "16", "--shard-size", "12"]
    return [*fixed, "--workers", "2", *more]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, and what one process makes of them."""
    data = image_folder(tmp_path_factory.mktemp("images"), classes=2, train=60, val=4)
    out = tmp_path_factory.mktemp("out")
    assert beton.main(options(data, out)) == 0
    return data, out


class StandIn:
    """Ray in this process: what `convert_on` asks of it. ``dies``: numbers of tasks that do."""

    exceptions = SimpleNamespace(RayError=RuntimeError)

    def __init__(self, *, dies: tuple[int, ...] = (), before: Any = None) -> None:
        self.dies, self.before = dies, before
        self.tasks = list[Any]()

    def remote(self, **arguments: object) -> Any:
        assert arguments["num_cpus"] == 1

        def submitted(function: Any) -> Any:
            def submit(*task: Any) -> int:
                self.tasks.append((function, task))
                return len(self.tasks) - 1

            return SimpleNamespace(remote=submit)

        return submitted

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def wait(self, running: list[int], *, timeout: float) -> tuple[list[int], list[int]]:
        return running[:1], running[1:]

    def get(self, number: int) -> Any:
        if number in self.dies:
            raise RuntimeError("worker died\n\nits trace")
        function, task = self.tasks[number]
        if self.before is not None:
            self.before(number)
        return function(*task)


def with_stand_in(monkeypatch: pytest.MonkeyPatch, stand_in: StandIn) -> None:
    @contextlib.contextmanager
    def cluster(address: str, *, workers: int) -> Iterator[StandIn]:
        yield stand_in

    monkeypatch.setattr("preprocess.build.cluster", cluster)


def test_without_the_package_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    data = image_folder(tmp_path / "images")
    with pytest.raises(ConfigError, match=r"--ray needs the package ray.*pip install"):
        beton.main(options(data, tmp_path / "out", "--ray", "auto"))


def test_a_shard_that_cannot_be_made_ends_the_conversion_and_the_rest_stays(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, expected = sets
    stand_in = StandIn(dies=(2,))
    with monkeypatch.context() as patch:
        with_stand_in(patch, stand_in)
        with pytest.raises(DataError, match=r"images 24 to 35 of train died, 9 times: worker di"):
            beton.main(options(data, tmp_path / "out", "--ray", "auto"))
    assert len(stand_in.tasks) == 4  # two for each core, no more
    (work,) = (tmp_path / "out").glob(".train-*.partial")
    assert len([path for path in work.iterdir() if path.is_dir()]) == 2
    assert beton.main(options(data, tmp_path / "out")) == 0
    assert contents(tmp_path / "out") == contents(expected)


def test_a_machine_that_sees_other_files_or_versions_makes_nothing(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, _ = sets

    def hide(number: int) -> None:
        (data / "train").rename(data / "hidden")

    def touch(number: int) -> None:
        os.utime(data / "train" / "class0" / "0.jpg")

    def upgrade(number: int) -> None:
        monkeypatch.setattr("preprocess.ray.tool_versions", lambda: {"ffcv": "2.0"})

    def unmount(number: int) -> None:
        for path in (tmp_path / "out").glob(".train-*.partial"):
            path.rename(tmp_path / "gone")

    for before, told in (
        (hide, r"images 0 to 11 of train could not be.*0\.jpg is missing or another file than on"),
        (touch, r"0\.jpg is missing or another file than on the head"),
        (unmount, r"there is no .*out: give an --out that all machines share"),
        (upgrade, r"other versions are installed \(ffcv 2\.0\): install the same"),
    ):
        with monkeypatch.context() as patch:
            with_stand_in(patch, StandIn(before=before))
            if before is upgrade:
                patch.setattr("preprocess.ray.tool_versions", lambda: {"ffcv": "1.0"})
            with pytest.raises(DataError, match=told):
                beton.main(options(data, tmp_path / "out", "--ray", "auto"))
        if (data / "hidden").exists():
            (data / "hidden").rename(data / "train")


def test_ray_leaves_sigterm_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray answers it by leaving at once, with traces of its own, while it connects and after."""
    ended = list[str]()

    def init(*, terminated: bool, **_: object) -> None:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        if terminated:
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    for terminated in (False, True):
        stand_in = SimpleNamespace(
            init=functools.partial(init, terminated=terminated), shutdown=lambda: ended.append("")
        )
        monkeypatch.setitem(sys.modules, "ray", stand_in)
        with pytest.raises(KeyboardInterrupt), cluster("auto", workers=1):
            assert not terminated
            assert signal.getsignal(signal.SIGTERM) is before
            raise KeyboardInterrupt
        assert signal.getsignal(signal.SIGTERM) is before
    assert len(ended) == 1


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_that_loses_a_machine_makes_the_same_bytes(
    sets: tuple[Path, Path], tmp_path: Path
) -> None:
    """It is lost while it converts; the shard is begun again on the other."""
    pytest.importorskip("ray", reason="needs the package ray: pip install 'ray>=2.40,<3'")
    from ray.cluster_utils import Cluster

    data, expected = sets
    out = tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        more = options(data, out, "--ray", cluster.address)
        process = subprocess.Popen(
            [sys.executable, "-m", "preprocess.beton", *more],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            # One task on each machine: two folders that are being written.
            wait_for(lambda: len(list(out.glob(".train-*.partial/.new.*"))) == 2, process)
            before = len(list(out.glob(".train-*.partial/0*")))
            cluster.remove_node(node, allow_graceful=False)
            printed, errors = process.communicate(timeout=600)
        finally:
            process.kill()
    finally:
        cluster.shutdown()
    assert process.returncode == 0, errors
    assert before < 10 and "train: 120 images" in printed
    assert contents(out) == contents(expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_auto_starts_a_cluster_of_this_machine(sets: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the package ray: pip install 'ray>=2.40,<3'")
    data, expected = sets
    subprocess.run(
        [sys.executable, "-m", "preprocess.beton", *options(data, tmp_path, "--ray", "auto")],
        cwd=ROOT,
        timeout=600,
        check=True,
    )
    assert contents(tmp_path) == contents(expected)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_conversion_in_one_line_and_finished_shards_stay(
    sets: tuple[Path, Path], tmp_path: Path, number: signal.Signals
) -> None:
    pytest.importorskip("ray", reason="needs the package ray: pip install 'ray>=2.40,<3'")
    command = options(sets[0], tmp_path, "--ray", "auto")
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocess.beton", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: list(tmp_path.glob(".train-*.partial/0*")), process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.endswith("\ninterrupted: no file is left half-written\n")
    assert not any(word in errors for word in ("Traceback", "SIGTERM", "Check failed"))
    assert not (tmp_path / ".writer.lock").exists()
    assert list(tmp_path.glob(".train-*.partial/0*"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1", "nowhere.invalid:6379"])
def test_an_address_must_answer(sets: tuple[Path, Path], tmp_path: Path, address: str) -> None:
    pytest.importorskip("ray", reason="needs the package ray: pip install 'ray>=2.40,<3'")
    with pytest.raises(DataError, match=rf"^--ray {address}: .*HOST:PORT of a cluster's head"):
        beton.main(options(sets[0], tmp_path / "out", "--ray", address))
    assert not (tmp_path / "out").exists()
