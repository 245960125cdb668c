"""A comparison as a page of HTML that needs no other file, and as Markdown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harl_fast.errors import one_line
from harl_fast.eval.metrics import Score
from harl_fast.eval.options import METRICS
from harl_fast.files import write_text
from harl_fast.tools import charts
from harl_fast.tools.comparison import Change, Comparison, Entry
from harl_fast.tools.curves import Curve
from harl_fast.tools.paired import Difference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Head and rows."""
HEADLINE_K = "20"
"""The number of neighbours whose k-NN accuracy is shown."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
  color: #202020; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
td, th {{ padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left;
  font-variant-numeric: tabular-nums; }}
th {{ border-bottom: 2px solid #888; }}
img {{ max-width: 100%; }}
.warning {{ background: #fff3cd; border-left: 4px solid #d55e00; padding: .5rem 1rem; }}
</style></head><body>
{body}
</body></html>
"""


def markdown(comparison: Comparison, curves: Sequence[Curve] = ()) -> str:
    """Return the report as Markdown: all tables, no pictures."""
    parts = [f"# {_md(_title(comparison))}", _md(_about(comparison))]
    if comparison.warnings:
        parts.append("**Not comparable**, marked by `--force`:")
        parts.append("\n".join(f"- {_md(warning)}" for warning in comparison.warnings))
    for head, text, table in _sections(comparison, curves):
        parts += [f"## {_md(head)}"] * bool(head) + [text] * bool(text) + [_md_table(table)]
    return "\n\n".join(parts) + "\n"


def page(comparison: Comparison, curves: Sequence[Curve] = ()) -> str:
    """Return the report as an HTML page, its pictures inside."""
    title = _title(comparison)
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(_about(comparison))}</p>"]
    if comparison.warnings:
        rows = "".join(f"<li>{html.escape(one_line(each))}</li>" for each in comparison.warnings)
        parts.append(f'<div class="warning"><b>Not comparable</b>, marked by --force:<ul>{rows}')
        parts.append("</ul></div>")
    pictures = _pictures(comparison, curves)
    for head, text, table in _sections(comparison, curves):
        parts += [f"<h2>{html.escape(one_line(head))}</h2>"] * bool(head)
        parts += [f"<p>{html.escape(text)}</p>"] * bool(text)
        if head in pictures:
            alt = html.escape(one_line(head), quote=True)
            data = base64.b64encode(pictures[head]).decode("ascii")
            parts.append(f'<img alt="{alt}" src="data:image/png;base64,{data}">')
        parts.append(_html_table(table))
    return _PAGE.format(title=html.escape(title), body="\n".join(parts))


def _title(comparison: Comparison) -> str:
    first = comparison.entries[0].result
    return one_line(f"{len(comparison.entries)} checkpoints on {first.data['name']}")


def _about(comparison: Comparison) -> str:
    first = comparison.entries[0].result
    data = first.data
    how = (
        "95 % bootstrap intervals; differences are to the first row, in points, over the same "
        "images (paired bootstrap). The intervals are of the choice of validation images alone: "
        "another seed of pretraining can move the figures more."
    )
    if comparison.by_seed:
        how = (
            f"95 % intervals of Student's t over the runs of {len(comparison.by_seed)} seeds "
            f"({', '.join(map(str, comparison.by_seed))}), of which each row is the mean; "
            f"differences are to the first row, in points, paired by seed. The intervals are of "
            f"the seed alone: other training or validation images can move the figures more."
        )
    return one_line(
        f"Protocol {first.protocol}: {data['train_count']:,} training and {data['val_count']:,} "
        f"validation images of {len(data['classes']):,} classes ({data['split']}) at "
        f"{first.preprocessing['size_px']} px. Headline: {METRICS[first.headline]}. Accuracies are "
        f"in percent with {how}"
    )


def _sections(comparison: Comparison, curves: Sequence[Curve]) -> list[tuple[str, str, Table]]:
    """Return heads, texts and tables, in order."""
    found = [("Accuracy", "", _accuracies(comparison))]
    if comparison.by_seed:
        text = "Each with the bootstrap intervals of the choice of validation images."
        found.append(("Each seed", text, _seeds(comparison)))
    for entry in comparison.entries[1:]:
        for changes, verb in ((entry.won, "won"), (entry.lost, "lost")):
            head = f"Classes {verb} by {entry.name}"
            if changes:
                found.append((head, "", _classes(changes)))
    if curves:
        text = "A probe judges on a part of the data only; see what each curve counts."
        found.append((CURVES, text, _curve_table(curves)))
    found.append(("What was compared", "", _sources(comparison)))
    return found


CURVES = "Learning curves"


def _accuracies(comparison: Comparison) -> Table:
    entries, headline = comparison.entries, comparison.entries[0].result.headline
    order = [headline, *(metric for metric in METRICS if metric != headline)]
    order = [metric for metric in order if all(metric in e.result.metrics for e in entries)]
    knn = all(headline in _knn(entry) for entry in entries)
    head = ["checkpoint", *(METRICS[metric] for metric in order)]
    head += [f"k-NN (k = {HEADLINE_K}) {METRICS[headline]}"] * knn
    head.append(f"difference in {METRICS[headline]}")
    rows = []
    for entry in entries:
        row = [entry.name, *(str(entry.result.metrics[metric]) for metric in order)]
        row += [str(_knn(entry)[headline])] if knn else []
        rows.append([*row, _difference(entry, headline, first=entry is entries[0])])
    return head, rows


def _seeds(comparison: Comparison) -> Table:
    headline = comparison.entries[0].result.headline
    head = ("seed", "checkpoint", METRICS[headline], f"difference in {METRICS[headline]}")
    return head, [
        (
            str(seed),
            entry.name,
            str(each.result.metrics[headline]),
            _difference(each, headline, first=each is one.entries[0]),
        )
        for seed, one in comparison.by_seed.items()
        for entry, each in zip(comparison.entries, one.entries, strict=True)
    ]


def _knn(entry: Entry) -> Mapping[str, Score]:
    return entry.result.knn.get(HEADLINE_K, {})


def _difference(entry: Entry, metric: str, *, first: bool) -> str:
    if first:
        return "(the others are compared with this)"
    if metric not in entry.differences:
        return "not paired: other samples"
    found = entry.differences[metric]
    verdict = "" if found.clear else ", may be none"
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]{verdict}"


def _classes(changes: Sequence[Change]) -> Table:
    head = ("class", "images", "before", "after", "points")
    return head, [
        (c.name, str(c.count), f"{c.before:.1f}", f"{c.after:.1f}", f"{c.points:+.1f}")
        for c in changes
    ]


def _curve_table(curves: Sequence[Curve]) -> Table:
    rows = [
        (curve.name, curve.what, str(step), f"{value:.2f}")
        for curve in curves
        for step, value in curve.points
    ]
    return ("run", "what", "step", "percent"), rows


def _sources(comparison: Comparison) -> Table:
    head = ("checkpoint", "result", "weights", "receipt", "setting", "made")
    return head, [
        (
            entry.name,
            str(entry.folder),
            str(entry.result.checkpoint.get("weights_sha256"))[:12],
            str(entry.result.checkpoint.get("receipt")),
            ", ".join(
                f"{key} {value}"
                for key, value in entry.result.choice.items()
                if isinstance(value, int | float | str)
            )
            or "-",
            entry.result.created,
        )
        for each in (*comparison.by_seed.values(),) or (comparison,)
        for entry in each.entries
    ]


def _pictures(comparison: Comparison, curves: Sequence[Curve]) -> dict[str, bytes]:
    """Return PNG files by the head of the section that they stand in."""
    with charts.style():
        found = {"Accuracy": _intervals(comparison)}
        for entry in comparison.entries[1:]:
            if changes := entry.won + entry.lost[::-1]:
                verb = "won" if entry.won else "lost"
                found[f"Classes {verb} by {entry.name}"] = _change_bars(changes, entry, comparison)
        if curves:
            found[CURVES] = _curve_chart(curves)
    return found


def _intervals(comparison: Comparison) -> bytes:
    """Draw the headline of each result, and its difference to the first, with intervals."""
    entries, metric = comparison.entries, comparison.entries[0].result.headline
    figure, (left, right) = charts.panels(11, 1.6 + 0.42 * len(entries), columns=2)
    for place, entry in enumerate(entries):
        _whisker(left, place, entry.result.metrics[metric], charts.BLUE)
        if metric in entry.differences:
            found = entry.differences[metric]
            colour = charts.GREY
            if found.clear:
                colour = charts.GREEN if found.value > 0 else charts.ORANGE
            _whisker(right, place, found, colour)
    left.set_yticks(range(len(entries)), [charts.label(e.name, 36) for e in entries])
    left.set_xlabel(f"{METRICS[metric]} (%)")
    left.set_title("accuracy")
    right.set_yticks(range(len(entries)), [""] * len(entries))
    right.axvline(0, color="#444444", linewidth=1)
    right.set_xlabel("points")
    right.set_title("paired difference to the first")
    for axes in (left, right):
        axes.set_ylim(len(entries) - 0.5, -0.5)
        axes.grid(axis="x", color="#e5e5e5")
        axes.set_axisbelow(True)
    return charts.png(figure)


def _whisker(axes: Axes, place: int, found: Score | Difference, colour: str) -> None:
    axes.plot((found.low, found.high), (place, place), color=colour, linewidth=2.5)
    axes.plot(found.value, place, "o", color=colour)


def _change_bars(changes: Sequence[Change], entry: Entry, comparison: Comparison) -> bytes:
    figure, (axes,) = charts.panels(9, 1.3 + 0.24 * len(changes))
    colours = [charts.GREEN if change.points > 0 else charts.ORANGE for change in changes]
    texts = [f"{change.points:+.1f}" for change in changes]
    names = [f"{charts.label(change.name)} ({change.count})" for change in changes]
    values = [change.points for change in changes]
    charts.bars(axes, names, values, colours=colours, texts=texts, longest=40)
    axes.axvline(0, color="#444444", linewidth=1)
    axes.margins(x=0.12)
    axes.set_xlabel("points of accuracy; in brackets: validation images of the class")
    first = charts.label(comparison.entries[0].name, 36)
    axes.set_title(f"{charts.label(entry.name, 36)} against {first}")
    return charts.png(figure)


def _curve_chart(curves: Sequence[Curve]) -> bytes:
    """Draw each run in a colour of its own, and each kind of measurement as its own line."""
    runs = list(dict.fromkeys(curve.name for curve in curves))
    kinds = list(dict.fromkeys(curve.what for curve in curves))
    figure, (axes,) = charts.panels(11, 4.5)
    for curve in curves:
        steps, values = zip(*curve.points, strict=True)
        line = ("-", "--", ":", "-.")[kinds.index(curve.what) % 4]
        text = f"{charts.label(curve.name, 36)}: {curve.what}"
        colour = f"C{runs.index(curve.name) % 10}"
        axes.plot(steps, values, marker="o", ls=line, color=colour, label=text, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("accuracy (%)")
    axes.grid(color="#e5e5e5")
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title("Accuracy over the run")
    return charts.png(figure)


def accuracy_table(comparison: Comparison) -> str:
    """Return the table of accuracies as aligned text."""
    head, rows = _accuracies(comparison)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *rows)
    ]
    return "\n".join(map(one_line, lines))


def _md(text: str) -> str:
    return re.sub(r"([\\|`*_<>\[\]#])", r"\\\1", one_line(text))


def _md_table(table: Table) -> str:
    head, rows = table
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell if cell == "---" else _md(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _html_table(table: Table) -> str:
    head, rows = table
    lines = ["".join(f"<th>{html.escape(one_line(cell))}</th>" for cell in head)]
    lines += ["".join(f"<td>{html.escape(one_line(cell))}</td>" for cell in row) for row in rows]
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def write_report(out: Path, comparison: Comparison, curves: Sequence[Curve] = ()) -> None:
    """Write ``report.html`` and ``report.md`` into a folder. Raises OSError."""
    write_text(out / "report.md", markdown(comparison, curves))
    write_text(out / "report.html", page(comparison, curves))
