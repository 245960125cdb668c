"""Write an encoder for other programs: `python -m harl_fast.tools.export --help`."""

from __future__ import annotations

import argparse
import errno
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.errors import ConfigError, OutputError, nearest, one_line
from harl_fast.eval.options import input_options
from harl_fast.files import check_output, sync, to_stderr
from harl_fast.options import Parser
from harl_fast.runfiles import check_named

if TYPE_CHECKING:
    from harl_fast.engine.networks import Pretrained
    from harl_fast.eval.results import Result
    from harl_fast.tools.forms import Classifier

TO = ("folder", "torchvision", "onnx", "detectron2")
"""Of `forms.FORMS`, which needs torch."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = Parser(
        prog="python -m harl_fast.tools.export",
        description="Write a checkpoint's encoder into a new folder for other programs, and load "
        "it back there where they are installed.",
    )
    add = parser.add_argument
    add("--ckpt", type=Path, required=True, help="run, step file, or weights of another program")
    add(
        "--to",
        choices=TO,
        default=TO[0],
        help="folder: Hugging Face's layout, for timm and torch.hub (default); torchvision: .pth "
        "and .safetensors; onnx: pixels in [0, 1] to features; detectron2: .pkl and .yaml",
    )
    add("--out", type=Path, required=True, metavar="FOLDER", help="new or empty folder")
    about = "result.json whose classifier is added; the inputs are those that it was judged on"
    add("--head", type=Path, metavar="RESULT", help=about)
    for option, settings in input_options().items():
        add(option, **settings)
    return parser.parse_args(argv)


def export_encoder(
    ckpt: Path | str,
    out: Path | str,
    *,
    to: str = "folder",
    head: Path | str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size_px: int | None = None,
) -> str:
    """Write an encoder in a new folder, load it back, and return what was written and seen.

    ckpt, mean, std, size_px: as for `load_pretrained`. to: "folder" (Hugging Face's layout),
    "torchvision" (``model.pth``, ``model.safetensors``), "onnx" (``model.onnx``) or "detectron2"
    (``model.pkl``, ``model.yaml``). head: the ``result.json`` of an evaluation of these weights,
    whose linear classifier is added; its mean, std, size_px and crop come before the checkpoint's,
    and others are refused. Raises HarlError or OSError; nothing is left then.
    """
    from harl_fast.engine.networks import load_pretrained
    from harl_fast.eval.results import read_result
    from harl_fast.tools.forms import FORMS

    if to not in FORMS:
        raise ConfigError(f"TO={to} is none of {', '.join(FORMS)}{nearest(to, FORMS)}")
    check_out(Path(out), option="OUT")
    result = None if head is None else read_result(Path(head))
    pretrained = load_pretrained(Path(ckpt), mean=mean, std=std, size_px=size_px)
    FORMS[to].refuse(pretrained.model)
    if result is None:
        return write(pretrained, Path(out), to=to)
    classifier = _classifier(result, pretrained, where=f"HEAD {head}")
    given = {"mean": mean, "std": std, "size_px": None if size_px is None else [size_px]}
    _check_inputs(result.preprocessing, given, where=f"HEAD {head}")
    to_stderr(one_line(f"inputs: those that HEAD {head} was judged on"))
    return write(_judged_on(result, pretrained), Path(out), to=to, head=classifier)


def check_out(out: Path, *, option: str) -> None:
    """Raise OutputError unless ``out`` can be made, or is an empty folder, not the current one."""
    check_named(out, option=option)
    if out.is_dir() and any(out.iterdir()):
        raise OutputError(f"{option} {out} is not empty: give a new folder")
    if out.is_mount():
        raise OutputError(f"{option} {out} is where a disk is mounted: give a new folder in it")
    check_output(out, option=option, folder=True)


def write(pretrained: Pretrained, out: Path, *, to: str, head: Classifier | None = None) -> str:
    """Write one form into a new folder, load it back, and return what was written and seen.

    The folder appears whole or not at all. Raises HarlError or OSError.
    """
    from harl_fast.tools.forms import FORMS

    place = out.resolve()  # a folder takes no link's name
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed process that had this number
    temporary.mkdir(parents=True)
    try:
        FORMS[to].write(temporary, pretrained, head)
        seen = FORMS[to].check(temporary, pretrained, head)
        for path in temporary.iterdir():
            sync(path)
        os.replace(temporary, place)
        sync(place.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # only renaming meets those
            raise OutputError(
                f"{out} was filled by another process meanwhile, and stays as it is: give a new "
                f"folder"
            ) from error
        if error.filename is not None and Path(error.filename).is_relative_to(temporary):
            error.filename = str(out / Path(error.filename).relative_to(temporary))
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size_mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    return f"{out}: {to} of {pretrained.model.arch}, {size_mb:.1f} MB; {seen}"


def _classifier(result: Result, pretrained: Pretrained, *, where: str) -> Classifier:
    """Return the linear head of a result; ConfigError unless it is of these weights."""
    from harl_fast.tools.comparison import freshly_initialised
    from harl_fast.tools.forms import Classifier

    if result.head is None:
        raise ConfigError(
            f"{where} has no head.safetensors beside it: its classifier stands on layers of "
            f"the projector, which no export has; train one with --ft-proj-selector 0"
        )
    if freshly_initialised(result):
        raise ConfigError(
            f"{where} is of a freshly initialised encoder, the baseline of a result: give that "
            f"result, of the trained one"
        )
    if result.checkpoint.get("weights_sha256") != pretrained.weights_sha256:
        raise ConfigError(
            f"{where} was trained on the features of "
            f"{result.checkpoint.get('path', 'other weights')}, not on those of "
            f"{pretrained.source}: give a result of this checkpoint"
        )
    width, features = result.head.weight.shape[1], pretrained.backbone.out_channels
    if width != features:
        raise ConfigError(
            f"{where} takes {width} features, the encoder has {features}: give a head that "
            f"stands on the backbone itself (--ft-proj-selector 0)"
        )
    return Classifier(result.head.weight, result.head.bias, [*result.data["classes"]])


def _check_inputs(
    seen: Mapping[str, Any], given: Mapping[str, Sequence[float] | None], *, where: str
) -> None:
    """Raise ConfigError if a result is of other inputs than those that a user gives."""
    judged = {"mean": seen["mean"], "std": seen["std"], "size_px": [seen["size_px"]]}
    for name, values in given.items():
        # A result may lack the first two.
        pairs = zip(judged[name], values or (), strict=False)
        if not all(math.isclose(*pair, rel_tol=1e-6) for pair in pairs):
            option = f"--{name.replace('_', '-')}"
            was, now = (",".join(f"{v:g}" for v in each or ()) for each in (judged[name], values))
            raise ConfigError(
                f"{where} was judged with {option} {was}, which {now} is not: evaluate again "
                f'with {now} (`make lineval ARGS="{option} {now}"`), or leave {option} out'
            )


def _judged_on(result: Result, pretrained: Pretrained) -> Pretrained:
    """Return an encoder with the inputs of a result of it; those that it lacks stay."""
    seen = result.preprocessing
    return replace(
        pretrained,
        mean=tuple(seen["mean"]) or pretrained.mean,
        std=tuple(seen["std"]) or pretrained.std,
        size_px=seen["size_px"],
        crop=seen["crop"],
    )


def main(argv: list[str] | None = None) -> int:
    """Parse and export; return the exit code."""
    args = vars(parse(argv))
    # Torch takes seconds, which --help and usage errors need not wait for.
    print(one_line(export_encoder(args.pop("ckpt"), args.pop("out"), **args)))
    return 0


if __name__ == "__main__":
    harl_fast.program.run_main(main)
