"""What lies in a run folder, and which outputs of other programs would replace it."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harl_fast.errors import ConfigError, OutputError
from harl_fast.files import check_output, to_stderr
from harl_fast.lock import FOLDER_LOCK, discard_folder, lock_beside, locked

SEEDS = "seeds.json"
"""In a folder of runs ``seed-N``: their seeds, results, mean and deviation."""
LATEST = "latest"
"""Names the newest checkpoint."""
CHECKPOINT_NAME = re.compile(r"step-[0-9]{8,18}")
"""Of a checkpoint's files, without their suffixes."""
RESULT_FILES = ("result.json", "per_class.csv", "predictions.npz", "head.safetensors")
"""Of an evaluation's result, see `eval.results`; a folder with the first three holds one."""
EXPORT_FILES = ("config.json", "model.safetensors", "projector.safetensors", "README.md")
"""Of an exported encoder, see `model.folder`; a folder with the first two holds one."""


class _Inside:
    """A file or folder of a run folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: RunFolder, kind: type[RunFolder]) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class RunFolder:
    """Where a run's files lie."""

    path: Path
    config = _Inside("config.yaml")
    """The resolved method configuration."""
    engine = _Inside("engine.json")
    """The resolved engine file."""
    metrics = _Inside("metrics.jsonl")
    """One JSON record per log line."""
    skipped = _Inside("skipped.jsonl")
    """One JSON record per step without effect: its number and its samples' ids by rank."""
    status = _Inside("run.json")
    """What the run is doing, see `monitor.runjson`."""
    deepspeed = _Inside("deepspeed.log")
    """What DeepSpeed logs on rank 0."""
    subset = _Inside("subset.txt")
    """Names of the training images of a fine-tuning on some of them."""
    provenance = _Inside("provenance.json")
    """See `engine.provenance`."""
    lock = _Inside(FOLDER_LOCK)
    """Held by the process that writes here, see `harl_fast.lock`."""
    finished = _Inside("finished")
    """Marker of a run that came to its end: JSON with step and reason. Written when all ranks have
    finished."""
    preempted = _Inside("preempted")
    """The same for one that saved and left before its end."""
    stop = _Inside("stop")
    """Asks the run to save and leave, where no signal reaches it."""
    checkpoints = _Inside("checkpoints")
    """See `engine.checkpoint`."""
    evaluations = _Inside("eval")
    """Results, see `eval.results`."""

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files, in a folder named after the run, as TensorBoard shows it."""
        return self.path / "tensorboard" / self.path.resolve().name


@contextlib.contextmanager
def replacing_runs(
    runs: Sequence[Path], *, engine: Path, inputs: Collection[Path] = ()
) -> Iterator[None]:
    """Make sure that runs can be replaced, and that no other process replaces them meanwhile.

    For a program that trains one after the other and then reads them: what stands in the way of any
    is told before its work. inputs: files and folders that must not go with a run. Raises
    ConfigError if the engine file is missing, OutputError or HarlError for what is in the way.
    """
    for folder in runs:
        _check_room(folder, engine=engine)
        for each in inputs:
            if folder.resolve() in each.resolve().parents:
                raise OutputError(
                    f"{each} lies in the run folder {folder}, which is to be replaced: give "
                    f"another folder for the run"
                )
    with contextlib.ExitStack() as held:
        for folder in runs:
            held.enter_context(locked(lock_beside(folder), output=folder))
        yield


def discard_run(folder: Path, *, engine: Path) -> None:
    """Delete the run in a folder, if it holds one, to make room for the next under ``engine``.

    Raises ConfigError if the engine file is missing, HarlError if another process writes there.
    """
    _check_engine(engine)
    _check_link(folder)
    aside = _aside(folder)
    if aside.exists():  # of a process that was killed while it deleted
        discard_folder(aside)
    if _holds_run(RunFolder(folder)):
        _move_aside(folder)
        discard_folder(aside)


@contextlib.contextmanager
def making_room(folder: Path, *, engine: Path) -> Iterator[None]:
    """Move the run in a folder, if it holds one, aside while the next one starts there.

    It is deleted at the end if the next one has begun, and comes back if not: a start can be
    refused, for an engine file of another machine or too few images. Raises as `discard_run`, and
    OutputError for a folder that holds anything else.
    """
    run, aside = RunFolder(folder), _aside(folder)
    _check_room(folder, engine=engine)
    if _holds_run(run):
        if aside.exists():  # of a process that was killed when its run had begun
            discard_folder(aside)
        _move_aside(folder)
    try:
        yield
    finally:
        if aside.exists():
            if _holds_run(run):
                discard_folder(aside)
            else:
                shutil.rmtree(folder, ignore_errors=True)
                aside.rename(folder)
                to_stderr(f"{folder} holds what it held before: the new run did not begin")


def _aside(folder: Path) -> Path:
    """Return where a run is moved first, for half of one would not be known for a run."""
    return folder.with_name(f".{folder.name}.before")


def _move_aside(folder: Path) -> None:
    """Move a run aside. Raises HarlError if another process writes there or evaluates it."""
    run, aside = RunFolder(folder), _aside(folder)
    locks = run.lock, lock_beside(run.evaluations)
    with locked(locks[0], output=folder), locked(locks[1], output=run.evaluations):
        folder.rename(aside)
        for lock in locks:
            (aside / lock.name).unlink()


def _check_room(folder: Path, *, engine: Path) -> None:
    _check_engine(engine)
    if _holds_run(RunFolder(folder)):
        _check_link(folder)
    elif folder.is_dir() and not all(map(before_a_run, folder.iterdir())):
        raise OutputError(
            f"{folder} holds other files than a run's, which is to be replaced: give another folder"
        )


def _check_link(folder: Path) -> None:
    if folder.is_symlink():
        raise OutputError(f"{folder} is a link, and is to be replaced: name what it leads to")


def _check_engine(engine: Path) -> None:
    if not engine.is_file():
        raise ConfigError(
            f"--engine {engine} is not there: give a file such as ds_configs/cpu.json"
        )


def _holds_run(run: RunFolder) -> bool:
    return run.config.exists() and run.engine.exists()


def runs_of_seeds(folder: Path) -> list[Path]:
    """Return the runs in a folder of ``--seeds``, in the order of their names; none in others."""
    return sorted(each.parent for each in folder.glob("seed-*/config.yaml"))


def before_a_run(path: Path) -> bool:
    """Return whether a process that ended before its run had begun left this in its folder."""
    names = ("deepspeed.log", "engine.json", "provenance.json", "preempted", "run.json")
    return path.name in (*names, "subset.txt", "stop") or (
        path.name.startswith(".") and path.name.endswith((".tmp", ".lock"))
    )


def check_named(folder: Path, *, option: str, base: Path | None = None) -> None:
    """Raise OutputError for a folder that has no name of its own, which could not be replaced.

    That is the folder that a program runs in, and those above. base: what it is relative to, if not
    the current folder.
    """
    here = {Path.cwd(), (base or Path.cwd()).resolve()}
    place = ((base or Path.cwd()) / folder).resolve()
    if not place.name or any(place in (each, *each.parents) for each in here):
        raise OutputError(
            f"{option} {folder} is the folder that this runs in, or one above: give a folder of "
            f"its own"
        )


def check_folders(outputs: Mapping[str, Path], *, data: Path | None = None, base: Path) -> None:
    """Raise OutputError unless a program's outputs are folders of their own that can be written.

    outputs: by option, relative to ``base``. data: a folder of images, which none of them is.
    """
    places = {option: (base / folder).resolve() for option, folder in outputs.items()}
    for option, folder in outputs.items():
        check_named(folder, option=option, base=base)
        place = places[option]
        for other, theirs in places.items():
            if other != option and (place == theirs or place in theirs.parents):
                raise OutputError(
                    f"{other} {outputs[other]} lies in {option} {folder}: give folders apart"
                )
        if data is not None and place == data.resolve():
            raise OutputError(f"{option} {folder} holds the images: give a folder of its own")
        check_output(place, option=option, folder=True)


def home(ckpt: Path) -> Path:
    """Return the folder that keeps features and results of a checkpoint: its run's, or its own."""
    if ckpt.is_dir():
        return ckpt.parent if ckpt.name == "checkpoints" else ckpt
    return ckpt.parent.parent if ckpt.parent.name == "checkpoints" else ckpt.parent


def is_part_of_a_checkpoint(path: Path) -> bool:
    """Return whether a file has, or would take, a name of this format among checkpoints."""
    named = path.name == LATEST or CHECKPOINT_NAME.fullmatch(path.stem) is not None
    return named and any(path.parent.glob("step-*.json"))


def holds(folder: Path, names: Sequence[str]) -> bool:
    """Return whether all these files are in a folder."""
    return all((folder / name).is_file() for name in names)


def check_apart(out: Path, *, option: str) -> None:
    """Raise OutputError if the file ``out`` would replace one of a run, an export or a result.

    A result's folder takes no others at all: it moves when another one takes its place. option:
    where the user gave it.
    """
    folder = RunFolder(out.parent)
    own = [entry.name for entry in vars(RunFolder).values() if isinstance(entry, _Inside)]
    of_run = out.name in own and (folder.config.exists() or folder.checkpoints.is_dir())
    of_runs = out.name == SEEDS and runs_of_seeds(out.parent)
    if of_run or of_runs or is_part_of_a_checkpoint(out):
        raise OutputError(f"{option} {out} is a file of the run itself: choose another name")
    if out.name in EXPORT_FILES and holds(out.parent, EXPORT_FILES[:2]):
        raise OutputError(f"{option} {out} is a file of the export itself: choose another name")
    if holds(out.parent, RESULT_FILES[:3]):
        raise OutputError(f"{option} {out} lies in the folder of a result: choose another folder")
