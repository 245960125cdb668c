"""Plan a pretraining: `python -m harl_fast.plan --help`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.errors import ConfigError, one_line, shown
from harl_fast.files import check_output, write_bytes
from harl_fast.options import Parser, checked, number, whole_number
from harl_fast.plan.hardware import GB, hardware, parse_bytes, parse_gpus

CHANGEABLE = (
    *("gpus", "cores", "ram", "images", "epochs", "batch", "config", "store", "megapixels"),
    *("disk", "nodes", "network", "precision", "price"),
)
"""Options that --compare takes by name; what else it is given is a key of the configuration."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the checked command line."""
    parser = Parser(
        prog="python -m harl_fast.plan",
        description="Say how long a pretraining takes on a machine, what bounds it, and whether it "
        "fits, before it is started. No GPU is needed. See docs/planning.md.",
    )
    add = parser.add_argument
    size = checked(parse_bytes)
    add("--gpus", type=checked(parse_gpus), metavar="NxGPU", help="default 8xA100-80GB")
    add("--cores", type=whole_number(1, 10**5), metavar="N", help="of each machine; default 128")
    add("--ram", type=size, metavar="SIZE", help="of each machine; default 1000GB")
    add("--images", type=whole_number(2, 10**12), metavar="N", help="default ImageNet's 1281167")
    add("--epochs", type=whole_number(1, 10**6), metavar="N", help="default the configuration's")
    add("--batch", type=whole_number(2, 10**7), metavar="N", help="global; default 4096")
    add("--config", default="paper", help="preset or YAML file; default %(default)s")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as launch/pretrain.py's")
    add("--store", help="jpg, passthrough, raw, yuv420, mix:P or mix:P:yuv420; default jpg")
    about = "of a stored image; default 0.16, ImageNet's at 512 px"
    add("--megapixels", type=number(1e-4, 100), metavar="M", help=about)
    about = "read rate of each machine's disk; default 3GB/s"
    add("--disk", type=size, metavar="RATE", help=about)
    add("--nodes", type=whole_number(1, 10**4), default=1, metavar="N", help="machines; default 1")
    add("--network", type=size, metavar="RATE", help="of each machine, such as 100Gb")
    add("--precision", choices=("bf16", "fp16", "fp32"), help="default bf16; of a processor fp32")
    add("--price", type=number(0, 10**6), metavar="P", help="of a GPU and hour")
    about = "also plan with these changes: options (gpus=8xH100-80GB) or configuration keys"
    add("--compare", nargs="+", action="append", default=[], metavar="KEY=VALUE", help=about)
    add("--picture", type=Path, metavar="FILE", help="draw what a step's time goes to, as PNG")
    about = "measure loader and step here for two minutes, on these containers"
    add("--measure", type=Path, metavar="FOLDER", help=about)
    add("--published", action="store_true", help="print docs/planning.md's table and end")
    args = parser.parse_args(argv)
    if args.measure and args.store:
        parser.error("argument --store: --measure takes the store of its containers")
    args.store = args.store or "jpg"
    return args


with harl_fast.program.head(__name__, parse):
    import torch

    from harl_fast.config import load_config
    from harl_fast.data.container.manifest import find_container, read_manifest
    from harl_fast.engine.views import size_phases
    from harl_fast.host import available_bytes, usable_cores
    from harl_fast.plan import measure
    from harl_fast.plan.planning import Measured, Request, make_plan, sides_text
    from harl_fast.plan.report import comparison, picture, published, text
    from harl_fast.plan.work import pretraining_work
    from harl_fast.runfiles import check_apart
    from harl_fast.tools.charts import check_extra


def request_of(args: argparse.Namespace) -> Request:
    """Return what a command line asks for. Raises ConfigError or DataError."""
    epochs = [f"epochs={args.epochs}"] if args.epochs else []
    config = load_config(args.config, overrides=[*args.set, *epochs])
    # Without --gpus, a measurement is of this machine as it is.
    here = args.measure is not None and args.gpus is None
    gpus, gpu = (1, "") if here and not torch.cuda.is_available() else args.gpus or (8, "A100-80GB")
    facts = hardware().store
    wanted = Request(
        config=config,
        name=" ".join([args.config, *args.set]),
        gpus=gpus,
        gpu=gpu,
        cores=args.cores or (usable_cores() if here else 128),
        ram_bytes=args.ram or (here and available_bytes()) or 1000 * GB,
        images=args.images or 1_281_167,
        batch=args.batch or (4096 if gpu else 64),
        store=args.store,
        megapixels=args.megapixels or facts["megapixels"].value,
        disk_bytes_s=args.disk or facts["disk_gb_s"].value * GB,
        nodes=args.nodes,
        network_bytes_s=args.network or math.inf,
        precision=args.precision or ("bf16" if gpu else "fp32"),
        price=args.price,
    )
    if args.measure is None:
        return wanted
    manifest = read_manifest(find_container(args.measure, "train"))
    return replace(
        wanted,
        images=args.images or manifest.count,
        store=str(manifest.store["kind"]),
        image_bytes=manifest.beton_bytes / manifest.count,
    )


def changed(args: argparse.Namespace, words: Sequence[str]) -> argparse.Namespace:
    """Return a command line with an alternative's changes. Raises ConfigError."""
    other = argparse.Namespace(**vars(args))
    for word in words:
        name, _, value = word.partition("=")
        if args.measure and (name in ("store", "precision", "config") or name.startswith("model.")):
            raise ConfigError(
                f"--compare {shown(word)}: --measure measures one store and one network; plan the "
                f"alternative by a command of its own"
            )
        if name in CHANGEABLE:
            setattr(other, name, getattr(parse([f"--{name}={value}"]), name))
        elif "=" in word:
            other.set = [*other.set, word]
        else:
            raise ConfigError(
                f"--compare {shown(word)}: write it as KEY=VALUE, with a key of the configuration "
                f"or one of {', '.join(CHANGEABLE)}"
            )
    return other


def measured_of(args: argparse.Namespace, requests: Sequence[Request]) -> Measured:
    """Return what was measured for requests that differ in no network and no store."""
    request, cuda = requests[0], torch.cuda.is_available()
    configs = [each.config for each in requests]
    loader = measure.loader_us(configs, args.measure, request.device)
    least = min(span[0] for span in loader.values())
    where = f"here: the loader, {least:,.0f} us per image and core on {usable_cores()} cores"
    if request.gpu and not cuda:
        return Measured(f"{where}; not the step, no GPU is here", loader)
    largest = max(map(request.sizes, size_phases(request.config)), key=sum)
    micro = make_plan(request).micro if request.gpu else min(16, request.batch)
    span = measure.step_seconds(
        request.config, largest, precision=request.precision, micro=max(2, micro)
    )
    device = torch.cuda.get_device_name() if cuda else "this processor"
    where += f"; a step at {sides_text(largest)} on {device}, {1e3 * span[0]:,.2f} ms per image"
    flops = pretraining_work(request.config, largest, half=request.half).flops
    return Measured(where, loader, span, flops, request.gpu)


def main(argv: Sequence[str] | None = None) -> int:
    """Plan, print, and draw; return the exit code."""
    args = parse(argv)
    if args.picture:
        check_extra()
        check_output(args.picture, option="--picture", suffix=".png")
        check_apart(args.picture, option="--picture")
    if args.published:
        print(published())
        return 0
    names = ["as given", *(" ".join(words) for words in args.compare)]
    requests = [request_of(each) for each in (args, *(changed(args, w) for w in args.compare))]
    for request in requests:
        request.check()
    if args.measure:
        measured = measured_of(args, requests)
        requests = [replace(request, measured=measured) for request in requests]
    plans = list(zip(names, map(make_plan, requests), strict=True))
    print(text(plans[0][1]))
    if args.compare:
        print(f"\n{comparison(plans)}")
    if args.picture:
        write_bytes(args.picture, picture(plans))
        print(one_line(f"picture: {args.picture}"))
    return 0


if __name__ == "__main__":
    harl_fast.program.run_main(main)
