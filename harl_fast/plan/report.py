"""What a plan looks like: text, a table of alternatives, the published table, a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harl_fast.config import load_config
from harl_fast.host import CACHE_SHARE
from harl_fast.plan.hardware import GB, hardware
from harl_fast.plan.planning import (
    COMPUTE,
    CORES,
    NETWORK,
    STORE,
    Phase,
    Plan,
    Request,
    make_plan,
    sides_text,
)
from harl_fast.tools import charts

UNTIMED = (
    "Nothing here has been timed on a GPU: a step is a roofline fitted to published runs "
    "of other programs. Start, checkpoints and probes are left out."
)
SCHEDULE = "data.size_schedule=steps:160,0.7:192,0.85:224"
_COLOURS = (charts.BLUE, charts.ORANGE, charts.GREEN, charts.GREY, "#CC79A7", "#F0E442", "#56B4E9",
            "#000000")  # fmt: skip


def _ram(plan: Plan) -> str:
    room = f"{CACHE_SHARE:.0%} of {plan.request.ram_bytes / GB:,.0f} GB of memory"
    return f"stays in {room}" if plan.in_ram else f"does not stay in {room}: read from disk"


def _headroom(phase: Phase) -> str:
    shares = (
        f"{name} {phase.rates[name] / phase.rate:,.1f} x"
        for name in (COMPUTE, NETWORK, CORES, STORE)
        if name != phase.binding and math.isfinite(phase.rates[name])
    )
    return ", ".join(shares) or "none counted"


def _machine(request: Request) -> str:
    each = f"{request.gpus}x{request.gpu}" if request.gpu else "the processor at hand"
    return f"{request.nodes} x {each}" if request.nodes > 1 else each


def _memory(plan: Plan) -> str:
    request = plan.request
    have = hardware().gpus[request.gpu].memory_gb.value
    share, taken = request.batch // request.ranks, plan.memory_bytes / GB
    if not plan.micro:
        return f"two images need {taken:,.1f} GB per GPU, which has {have:g}: this cannot run"
    text = f"{taken:,.1f} of {have:g} GB per GPU with {plan.micro} images at once"
    if plan.micro < share:
        text += f" ({share} do not fit: gradient_accumulation_steps {share // plan.micro})"
    return text


def text(plan: Plan) -> str:
    """Return a plan as lines of names and values."""
    request, phase = plan.request, plan.longest
    rows = [
        ("plan", f"{request.name} on {_machine(request)}, {request.images:,} images x "
                 f"{request.config.epochs} epochs, batch {request.batch}, {request.precision}"),
        ("hours", f"{plan.hours():,.1f} ({plan.hours('fast'):,.1f} to {plan.hours('slow'):,.1f}), "
                  f"{plan.rate:,.0f} images/s"),
        ("binding", f"{phase.binding}; headroom of the others: {_headroom(phase)}"),
        ("store", f"{request.store}, {plan.store_bytes / GB:,.0f} GB; {_ram(plan)}"),
    ]  # fmt: skip
    if request.gpu:
        most = max(math.ceil(each.cores_needed) for each in plan.phases["likely"])
        spare = max(1, request.cores - request.gpus)
        rows += [
            ("memory", _memory(plan)),
            ("cores", f"the loader needs {most:,} of the {spare:,} that {request.gpus} main "
                      f"threads leave"),
            ("energy", f"{plan.energy_kwh:,.0f} kWh at the machines' greatest power"),
        ]  # fmt: skip
    if plan.price is not None:
        rows.append(("price", f"{plan.price:,.0f} at {request.price:g} per GPU and hour"))
    for each in plan.phases["likely"]:
        parts = ", ".join(f"{name} {1e3 * s:,.1f}" for name, s in each.parts.items())
        label = f"{each.epochs} epochs at {sides_text(each.sizes)}, {each.rate:,.0f} images/s"
        rows.append(("step", f"{label}; ms: {parts}"))
    if request.measured is not None:
        rows.append(("measured", request.measured.where))
    if request.gpu:
        rows.append(("note", UNTIMED))
    return "\n".join(f"{name:<10}{value}" for name, value in rows)


def comparison(plans: Sequence[tuple[str, Plan]]) -> str:
    """Return a table of named plans."""
    lines = [f"{'hours':>8}{'least':>8}{'most':>8}{'kWh':>9}{'price':>10}  binding, alternative"]
    for name, plan in plans:
        hours = "".join(f"{plan.hours(case):>8,.1f}" for case in ("likely", "fast", "slow"))
        price = "-" if plan.price is None else f"{plan.price:,.0f}"
        fits = "" if plan.micro else " (does not fit into the GPU's memory)"
        lines.append(
            f"{hours}{plan.energy_kwh:>9,.0f}{price:>10}  {plan.longest.binding}, {name}{fits}"
        )
    return "\n".join(lines)


def published() -> str:
    """Return the published hours beside planned ones of the same run, in Markdown."""
    table, compiled = hardware(), "model.compile=true"
    rows = (
        ("eager, fp32 (TF32)", "fp32", ()),
        ("eager, bf16", "bf16", ()),
        ("compiled", "bf16", (compiled,)),
        ("eager, sizes 160, 192, 224", "bf16", (SCHEDULE,)),
        ("compiled, sizes 160, 192, 224", "bf16", (compiled, SCHEDULE)),
    )
    lines = []
    for name, precision, overrides in rows:
        plan = make_plan(
            Request(
                config=load_config("paper", overrides=overrides),
                precision=precision,
                megapixels=table.store["megapixels"].value,
                disk_bytes_s=table.store["disk_gb_s"].value * GB,
            )
        )
        request = plan.request
        steps, hours = request.images // request.batch, table.published["hours"].value
        sums = " + ".join(
            f"{phase.epochs * steps:,} x {request.batch / phase.rate:.3f} s"
            for phase in plan.phases["likely"]
        )
        span = f"{plan.hours('fast'):.0f} to {plan.hours('slow'):.0f}"
        lines.append(f"| {name} | {plan.rate:,.0f} | **{plan.hours():.0f}** | {span} | {sums} |")
    return "\n".join(
        (
            "| 8 A100-80GB, `paper`, 1000 epochs of ImageNet | images/s | hours | range | steps |",
            "|---|---|---|---|---|",
            f"| HARL as published | {request.total_images / hours / 3600:,.0f} | **{hours:g}** | | "
            f"{steps * 1000:,} x {3.6 * hours / steps:.3f} s, from its README |",
            *lines,
        )
    )


def picture(plans: Sequence[tuple[str, Plan]]) -> bytes:
    """Return a PNG file of what a step's time goes to, a bar per plan and phase."""
    bars = [
        (f"{name}, {max(phase.sizes)} px" if len(plan.phases["likely"]) > 1 else name, plan, phase)
        for name, plan in plans
        for phase in plan.phases["likely"]
    ]
    names = list(dict.fromkeys(part for _, _, phase in bars for part in phase.parts))
    with charts.style():
        figure, (axes,) = charts.panels(9, 1.9 + 0.45 * len(bars))
        left = [0.0] * len(bars)
        for number, part in enumerate(names):
            widths = [1e3 * phase.parts.get(part, 0.0) for _, _, phase in bars]
            colour = _COLOURS[number % len(_COLOURS)]
            axes.barh(range(len(bars)), widths, left=left, color=colour, label=part, height=0.7)
            left = [before + width for before, width in zip(left, widths, strict=True)]
        for what, resource in (("loader", CORES), ("store", STORE)):
            places = [
                (row, 1e3 * plan.request.batch / phase.rates[resource])
                for row, (_, plan, phase) in enumerate(bars)
                if math.isfinite(phase.rates[resource])
            ]
            if places:
                rows, times = zip(*places, strict=True)
                axes.plot(times, rows, "|" if what == "loader" else "x", color="black",
                          markersize=16, label=f"the {what} makes a batch")  # fmt: skip
        axes.set_yticks(range(len(bars)), [charts.label(name, 48) for name, _, _ in bars])
        axes.invert_yaxis()
        axes.set_xlabel("milliseconds per step, planned")
        figure.legend(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
        return charts.png(figure)
