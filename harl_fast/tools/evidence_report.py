"""The page that `make evidence` writes: tables, pictures and sentences, all out of result files."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harl_fast.errors import ConfigError, nearest, shown
from harl_fast.files import format_seconds, write_bytes, write_text
from harl_fast.host import utc_time
from harl_fast.tools import charts
from harl_fast.tools.evidence import Results
from harl_fast.tools.evidence_arms import KINDS, Claim, Kind, Plan, Suite
from harl_fast.tools.evidence_scores import LABELS, PROBES, READ_OUTS
from harl_fast.tools.paired import Difference, over_repeats

ABOUT: dict[Kind, str] = {
    "photos": "Accuracy in percent on photographs. Linear heads are [logistic regression]"
    f"(evaluation.md) on all training images, or on {LABELS} of each class drawn by the seed; k-NN "
    "has k = 20 by cosine, once more with the training images' mean taken off. ",
    "composites": "Accuracy in percent on the [demo's set](demo.md): objects before scenes that "
    "distract by design. ",
}
SPREAD = (
    "Masks are used in training only. Means over the seeds, with the half width of Student's t "
    "95 % interval."
)
HEAD = """# Evidence: do masks pay?

This page is written by `make evidence DATA=<folder with train/ and val/>`; no number is typed. Each
arm (`experiments/<suite>/<arm>.yaml`) is trained several times, each time with another seed, and
differs from the others of its suite (`experiments/suites.yaml`) in what its file says alone:
images, views, network, optimizer and length are equal. What is read out of the frozen features was
settled beforehand, and nothing is chosen on validation images. Intervals are of the seeds alone:
other images can move the figures more. Stopped at any time, the same command goes on; `ONLY=`,
`SEEDS=`, `EPOCHS=` and `QUICK=1` do less."""
QUICK = "**This is the quick form. It shows that every part works; its figures mean nothing.**"


@dataclass(frozen=True)
class Findings:
    """The results of one suite."""

    kind: Kind
    suite: Suite
    results: dict[str, dict[int, dict[str, Any]]]
    """By arm, in the suite's order, and seed."""

    def values(self, arm: str, by: str) -> dict[int, float]:
        """Return an arm's accuracies in a read-out, by seed."""
        found = {s: each["accuracy"].get(by) for s, each in self.results.get(arm, {}).items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def difference(self, arm: str, other: str, by: str) -> Difference | None:
        """Return how far an arm is above another, paired by seed; None without two such pairs."""
        ours, theirs = self.values(arm, by), self.values(other, by)
        pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
        return over_repeats(pairs) if len(pairs) > 1 else None


def findings(plan: Plan, results: Results) -> dict[Kind, Findings]:
    """Return the results of each suite that has some."""
    found: dict[Kind, dict[str, dict[int, dict[str, Any]]]] = {}
    for trial, result in results.items():
        arms = found.setdefault(trial.kind, {})
        arms.setdefault(trial.name, {})[trial.seed] = dict(result)
    return {
        kind: Findings(kind, plan.suites[kind], {
            name: found[kind][name] for name in plan.suites[kind].arms if name in found[kind]
        })
        for kind in KINDS if kind in found
    }  # fmt: skip


def claim_text(claim: Claim, found: Findings, named: str) -> str:
    """Return in a sentence whether a claim holds. named: how its read-out is called."""
    pairs = {other: found.difference(claim.arm, other, claim.by) for other in claim.over}
    lacking = [other for other, each in pairs.items() if each is None]
    if lacking:
        return (
            f"**Not known yet**: {claim.claim}. Two seeds of {claim.arm} and {lacking[0]} decide."
        )
    known = {other: each for other, each in pairs.items() if each is not None}
    sign = -1 if claim.lower else 1
    wrong = [o for o, each in known.items() if each.clear and sign * each.value < 0]
    head = "Not shown"
    if wrong:
        head = "Does not hold"
    elif all(each.clear for each in known.values()):
        head = "Holds"
    said = ", ".join(
        f"minus `{other}` {each.value:+.1f} ({each.low:+.1f} to {each.high:+.1f})"
        for other, each in known.items()
    )
    why = {
        "Holds": "",
        "Not shown": " An interval that holds 0 leaves it open.",
        "Does not hold": f" It is the other way round beside {' and '.join(wrong)}.",
    }[head]
    return f"**{head}**: {claim.claim}. By {named}, in points: `{claim.arm}` {said}.{why}"


def write_page(page: Path, plan: Plan, results: Results, *, quick: bool) -> None:
    """Write the page, and its pictures into ``assets/`` beside it. Raises OSError."""
    parts, known = [HEAD, *(_asked(plan, kind) for kind in KINDS)], findings(plan, results)
    parts += [QUICK] * (quick and bool(known))
    if not known:
        parts.append("**Not yet run.**")
    for kind, found in known.items():
        about = ABOUT[kind] + SPREAD
        parts += [f"## {kind.capitalize()}", about, *_body(found, page.parent / "assets")]
    if known:
        parts += ["## What it stands on", _basis(known)]
        missing: dict[str, list[str]] = {}
        for trial in plan.trials:
            if trial not in results:
                missing.setdefault(f"{trial.kind}/{trial.name}", []).append(str(trial.seed))
        said = "; ".join(f"{arm} (seed {', '.join(seeds)})" for arm, seeds in missing.items())
        parts.append(f"Missing: {said or 'nothing'}.")
    write_text(page, "\n\n".join(part.strip() for part in parts) + "\n")


def check_claims(plan: Plan) -> None:
    """Raise ConfigError for a claim by a read-out that its suite does not have."""
    for kind, suite in plan.suites.items():
        probed = {f"{what}:{masks}" for what in PROBES for masks in suite.probes}
        known = READ_OUTS[kind].keys() | (probed if kind == "photos" else set())
        for claim in suite.claims:
            if claim.by not in known:
                meant = nearest(claim.by, known)
                raise ConfigError(
                    f"experiments: {kind}: {shown(claim.by)} is no read-out of its claims{meant}"
                )


def named(kind: Kind, by: str) -> str:
    """Return how a read-out is called."""
    what, mark, masks = by.partition(":")
    return f"{PROBES[what]} ({masks} masks)" if mark else READ_OUTS[kind][by]


def _asked(plan: Plan, kind: Kind) -> str:
    """Return a table of a suite's arms: their masks, and what they ask."""
    arms = {trial.name: trial.arm for trial in plan.of(kind)}
    rows = [["arm", "masks", "what it asks"], ["---"] * 3]
    rows += [
        [f"`{name}`", f"`{arm.masks}`" if "masks" in arm.model_fields_set else "-", arm.asks]
        for name, arm in arms.items()
    ]
    return f"The arms on {kind}:\n\n{_lines(rows)}"


def _body(found: Findings, assets: Path) -> list[str]:
    kind, suite = found.kind, found.suite
    parts = ["\n".join(f"- {claim_text(c, found, named(kind, c.by))}" for c in suite.claims)]
    columns = list(READ_OUTS[kind])
    above = (
        f"Points above `{suite.baseline}`, paired by seed; bold where the interval leaves 0 out:"
    )
    parts.append(_table(found, columns, _level))
    if any(_above(found, arm, columns[0]) != "-" for arm in found.results):
        parts += [above, _table(found, columns, _above)]
    for masks in suite.probes:
        columns = [f"{what}:{masks}" for what in PROBES]
        if any(found.values(arm, columns[0]) for arm in found.results):
            parts += [
                f"The same linear head on altered views, by `{masks}` masks (`-`: the arm was "
                "trained with such masks). The outline of what is blanked stays visible:",
                _table(found, columns, _level),
            ]
    pictures = {
        f"Accuracy by arm, {kind}": (f"evidence_{kind}.png", _arms),
        f"k-NN accuracy over training, {kind}": (f"evidence_{kind}_curve.png", _curves),
        "Accuracy by share of wrong mask cells": ("evidence_noise.png", _by_noise),
    }
    for alt, (name, draw) in pictures.items():
        with charts.style():
            content = draw(found)
        if content:
            write_bytes(assets / name, content)
            parts.append(f"![{alt}](assets/{name})")
    return parts


def _level(found: Findings, arm: str, by: str) -> str:
    values = list(found.values(arm, by).values())
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else "-"
    each = over_repeats(values)
    return f"{each.value:.1f} ± {each.high - each.value:.1f}"


def _above(found: Findings, arm: str, by: str) -> str:
    each = found.difference(arm, found.suite.baseline, by)
    if each is None or arm == found.suite.baseline:
        return "-"
    text = f"{each.value:+.1f} ± {each.high - each.value:.1f}"
    return f"**{text}**" if each.clear else text


def _table(
    found: Findings, columns: Sequence[str], cell: Callable[[Findings, str, str], str]
) -> str:
    heads = [PROBES.get(by.partition(":")[0]) or READ_OUTS[found.kind][by] for by in columns]
    rows = [["arm", *heads], ["---"] * (len(heads) + 1)]
    rows += [[f"`{arm}`", *(cell(found, arm, by) for by in columns)] for arm in found.results]
    return _lines(rows)


def _lines(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _basis(known: dict[Kind, Findings]) -> str:
    """Return what the figures stand on, a line for each suite."""
    lines = []
    for kind, found in known.items():
        every = [each for seeds in found.results.values() for each in seeds.values()]
        seeds = {name: len(each) for name, each in found.results.items()}
        trained = [each for each in every if "images_seen" in each]
        counts = every[0]["counts"]
        says = [f"{kind}: {counts['train']:,} training and {counts['val']:,} validation images"]
        says.append(f"{_span(seeds.values())} seeds of {len(seeds)} arms")
        if trained:
            spent = format_seconds(sum(each["seconds"] or 0.0 for each in trained))
            precision = trained[0]["provenance"]["precision"]
            says.append(f"{_span(each['images_seen'] for each in trained)} images in a training")
            says.append(f"{spent} of training in {precision}")
        says.append(" and ".join(sorted({each["machine"] for each in every})))
        dates = _span(each["time"][:10] for each in every)
        says.append(f"{dates}, code {every[-1]['code']}")
        lines.append(f"- {'; '.join(says)}.")
    return "\n".join([*lines, f"\nWritten {utc_time()}."])


def _span(values: Iterable[Any]) -> str:
    """Return the least and the greatest of numbers or of dates, or the only one."""
    ordered = sorted(values)
    ends = (f"{end:,}" if isinstance(end, int) else end for end in (ordered[0], ordered[-1]))
    return " to ".join(dict.fromkeys(ends))


def _arms(found: Findings) -> bytes:
    """Draw each arm's first read-outs: bars for means, points for seeds, lines for intervals."""
    columns = list(READ_OUTS[found.kind])[:4]
    names = list(found.results)
    figure, panels = charts.panels(12, 1.2 + 0.36 * len(names), columns=len(columns))
    for axes, by in zip(panels, columns, strict=True):
        values = [list(found.values(name, by).values()) for name in names]
        means = [statistics.fmean(each) for each in values]
        charts.bars(axes, names, means, colours="#9cc3dc", texts=[""] * len(names))
        for place, each in enumerate(values):
            axes.plot(each, [place] * len(each), ".", color=charts.BLUE)
            if len(each) > 1:
                mean = over_repeats(each)
                axes.plot((mean.low, mean.high), (place, place), color="#222222", linewidth=1)
        if axes is not panels[0]:
            axes.set_yticklabels([])
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
        axes.set_title(READ_OUTS[found.kind][by])
        axes.set_xlabel("%")
    return charts.png(figure)


def _curves(found: Findings) -> bytes:
    """Draw the accuracy that the runs' own probes saw, by arm, as the mean over its seeds."""
    figure, (axes,) = charts.panels(9, 4.2)
    drawn = False
    for name, seeds in found.results.items():
        curves = [dict(each["curve"]) for each in seeds.values() if each.get("curve")]
        steps = sorted(set.intersection(*map(set, curves))) if curves else []
        if len(steps) > 1:
            means = [statistics.fmean(curve[step] for curve in curves) for step in steps]
            axes.plot(steps, means, ".-", label=name)
            drawn = True
    axes.set_xlabel("step")
    axes.set_ylabel("k-NN accuracy of the probe (%)")
    axes.grid(color="#e5e5e5")
    if drawn:
        axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return charts.png(figure) if drawn else b""


def _by_noise(found: Findings) -> bytes:
    """Draw object and scene by the share of wrong cells in the masks."""
    shares = {p: name for name, p in found.suite.by_noise.items() if name in found.results}
    if len(shares) < 2:
        return b""
    figure, (axes,) = charts.panels(7, 4)
    for by, colour in (("object", charts.GREEN), ("unseen", charts.BLUE), ("scene", charts.ORANGE)):
        values = {p: list(found.values(shares[p], by).values()) for p in sorted(shares)}
        means = [statistics.fmean(each) for each in values.values()]
        axes.plot(list(values), means, "-", color=colour, label=READ_OUTS[found.kind][by])
        for p, each in values.items():
            axes.plot([p] * len(each), each, ".", color=colour)
    axes.set_xlabel("share of wrong mask cells (1: inverted)")
    axes.set_ylabel("accuracy (%)")
    axes.grid(color="#e5e5e5")
    axes.legend(frameon=False)
    return charts.png(figure)
