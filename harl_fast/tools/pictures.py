"""Draw a result and its features: `python -m harl_fast.tools.pictures --help`."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.errors import HarlError, one_line
from harl_fast.eval.options import METRICS
from harl_fast.files import check_output, to_stderr, write_bytes
from harl_fast.lock import FOLDER_LOCK, locked
from harl_fast.options import SEED_MAX, Parser, whole_number
from harl_fast.tools import charts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from harl_fast.eval.results import Result
    from harl_fast.tools.embeddings import Embeddings

PICTURES = "pictures"
"""Of a result, the folder in its own that they go to."""
WHOLE = 50
"""Most classes of a confusion matrix that is drawn whole."""
PAIRS = 30
"""Confused pairs that are drawn of more classes."""
BARS = 50
"""Bars in a column of classes."""
MAPPED = 3000
"""Points on a map; t-SNE of so many takes half a minute on a core."""
NAMED = 60
"""Most class names on a map."""
LEAST_MAPPED = 10
"""Fewest images of a map."""
_REDUCED = 50
"""Dimensions that t-SNE starts from (van der Maaten and Hinton, JMLR 2008, use 30)."""


def confusion(result: Result) -> bytes:
    """Return a PNG file of which classes are taken for which.

    Up to `WHOLE` classes: each row shows how the images of a true class were classified, in
    percent. Of more, the `PAIRS` of classes that most images were confused in.
    """
    classes, labels, predicted = _plain(result)
    said = predicted >= 0
    table = np.bincount(
        labels[said] * len(classes) + predicted[said], minlength=len(classes) ** 2
    ).reshape(len(classes), -1)
    counts = np.bincount(labels, minlength=len(classes))
    with charts.style():
        if len(classes) <= WHOLE:
            return _matrix(table, counts, classes, title=_title(result))
        return _pairs(table, counts, classes, title=_title(result))


def _matrix(
    table: npt.NDArray[Any], counts: npt.NDArray[Any], classes: Sequence[str], *, title: str
) -> bytes:
    side = 3.5 + 0.23 * max(len(classes), 12)
    figure, (axes,) = charts.panels(side + 0.8, side)
    shares = 100.0 * table / np.maximum(counts, 1)[:, None]
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    places, size = range(len(classes)), 9 if len(classes) <= 25 else 8
    names = [charts.label(name, 24) for name in classes]
    axes.set_xticks(places, names, rotation=90, fontsize=size)
    rows = [f"{name} ({count})" for name, count in zip(names, counts, strict=True)]
    axes.set_yticks(places, rows, fontsize=size)
    if len(classes) <= 15:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                ink = "white" if share > 50 else "#222222"
                axes.text(column, row, f"{share:.0f}", ha="center", va="center", color=ink)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (images)")
    axes.set_title(f"Confusion: {title}")
    figure.colorbar(shown, ax=axes, shrink=0.7, label="% of the true class's images")
    return charts.png(figure)


def _pairs(
    table: npt.NDArray[Any], counts: npt.NDArray[Any], classes: Sequence[str], *, title: str
) -> bytes:
    wrong = table * (1 - np.eye(len(classes), dtype=table.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    worst = [divmod(int(index), len(classes)) for index in order if wrong.flat[index]]
    figure, (axes,) = charts.panels(10, 1.4 + 0.25 * max(len(worst), 1))
    names = [f"{charts.label(classes[t], 24)} → {charts.label(classes[p], 24)}" for t, p in worst]
    values = [int(wrong[pair]) for pair in worst]
    texts = [f"{wrong[t, p]} of {counts[t]}" for t, p in worst]
    charts.bars(axes, names, values, colours=charts.ORANGE, texts=texts, longest=52)
    axes.margins(x=0.12)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("images; of how many of the true class stands behind each bar")
    axes.set_title(f"Most confused: true class → predicted class\n{title}")
    return charts.png(figure)


def per_class(result: Result) -> bytes:
    """Return a PNG file of the classes' accuracies, lowest first; of many, both ends."""
    classes, labels, predicted = _plain(result)
    counts = np.bincount(labels, minlength=len(classes))
    hits = np.bincount(labels[predicted == labels], minlength=len(classes))
    present = np.flatnonzero(counts)
    shares = 100.0 * hits[present] / counts[present]
    order = np.argsort(shares, kind="stable")
    if len(order) > 2 * BARS:
        parts = {f"the {BARS} lowest": order[:BARS], f"the {BARS} highest": order[-BARS:]}
    elif len(order) > BARS:
        half = (len(order) + 1) // 2
        parts = {"lower half": order[:half], "upper half": order[half:]}
    else:
        parts = {"": order}
    with charts.style():
        height = 1.5 + 0.21 * max(map(len, parts.values()))
        figure, panels = charts.panels(6.6 * len(parts), height, columns=len(parts))
        for axes, (head, chosen) in zip(panels, parts.items(), strict=True):
            names = [f"{charts.label(classes[present[i]])} ({counts[present[i]]})" for i in chosen]
            values = shares[chosen].tolist()
            texts = [f"{value:.0f}" for value in values]
            charts.bars(axes, names, values, colours=charts.BLUE, texts=texts, longest=40)
            mean = float(shares.mean())
            axes.axvline(mean, color=charts.ORANGE, linewidth=1.2, zorder=0)
            axes.set_xlim(0, 107)
            axes.set_xlabel(f"% right; line: mean over all classes, {mean:.1f}")
            axes.set_title(head)
        figure.suptitle(f"Accuracy by class (validation images)\n{_title(result)}", fontsize=12)
        return charts.png(figure)


def feature_map(embeddings: Embeddings, *, title: str, seed: int = 0) -> bytes:
    """Return a PNG file of the features in two dimensions, coloured by their true class."""
    shown = embeddings.stratified(MAPPED, seed=seed)
    check_map(shown.features)
    places, how = _plane(shown.features, seed=seed)
    present = np.unique(shown.labels)
    from matplotlib import colormaps

    few = len(present) <= 20
    palette = colormaps["tab20" if few else "hsv"]
    size = min(30.0, max(8.0, 24_000 / len(places)))
    with charts.style():
        figure, (axes,) = charts.panels(11, 9)
        for number, label in enumerate(present):
            of_class = places[shown.labels == label]
            colour = palette(number / 20 + 0.001 if few else number / len(present))
            name = charts.label(shown.classes[label])
            axes.scatter(
                of_class[:, 0], of_class[:, 1], s=size, color=colour, linewidths=0, label=name
            )
        if few:
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2)
        _name_classes(axes, shown, places, present)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_title(
            f"{how} of the features of {len(places):,} validation images, by true class\n{title}"
        )
        axes.set_xlabel("distances between far groups mean nothing")
        return charts.png(figure)


def _name_classes(
    axes: Axes, shown: Embeddings, places: npt.NDArray[Any], present: npt.NDArray[Any]
) -> None:
    """Write class names at the middles of the most compact classes, most compact first."""
    import matplotlib.patheffects as effects

    middles = np.array([np.median(places[shown.labels == label], axis=0) for label in present])
    spread = [
        np.linalg.norm(places[shown.labels == label] - middle, axis=1).mean()
        for label, middle in zip(present, middles, strict=True)
    ]
    span = np.ptp(places, axis=0)
    written: list[npt.NDArray[Any]] = []
    for index in np.argsort(spread, kind="stable")[:NAMED]:
        middle = middles[index]
        # Names over each other are read by nobody.
        if any(np.all(np.abs(middle - other) < span * (0.07, 0.018)) for other in written):
            continue
        written.append(middle)
        axes.annotate(
            charts.label(shown.classes[present[index]], 20),
            middle,
            (0, 9),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=9,
            path_effects=[effects.withStroke(linewidth=2.5, foreground="white")],
        )


def check_map(features: npt.NDArray[np.float32]) -> None:
    """Raise HarlError for features of which no map can be drawn; of equal ones t-SNE would die."""
    remedy = "leave --data out, and the pictures without it are drawn"
    if len(features) < LEAST_MAPPED:
        raise HarlError(
            f"a map of {len(features)} validation images shows nothing, {LEAST_MAPPED} are the "
            f"least: {remedy}"
        )
    spread = np.ptp(features.astype(np.float64), axis=0).max()
    if not spread > 1e-6 * np.abs(features).max():
        raise HarlError(
            f"the features of all {len(features)} validation images are equal, as of an encoder "
            f"that has collapsed, and make no map: {remedy}"
        )


def _plane(features: npt.NDArray[np.float32], *, seed: int) -> tuple[npt.NDArray[Any], str]:
    """Return (N, 2) places, and the name of what found them."""
    from sklearn.decomposition import PCA

    few = min(_REDUCED, *features.shape)
    to_stderr(f"map: placing {len(features):,} images in two dimensions; thousands take minutes")
    # Squares of very large or small numbers leave float32, and t-SNE dies of what they become.
    centred = features - features.mean(0, dtype=np.float64)
    scaled = (centred / np.abs(centred).max()).astype(np.float32)
    reduced = PCA(few, random_state=seed).fit_transform(scaled)
    try:
        umap = importlib.import_module("umap")  # nothing else needs it: not in the extra
    except ModuleNotFoundError:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(features) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
        return tsne.fit_transform(reduced), f"t-SNE (of {few} principal components)"
    found = umap.UMAP(random_state=seed).fit_transform(reduced)
    return found, f"UMAP (of {few} principal components)"


def _plain(result: Result) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    found = result.predictions
    return result.data["classes"], found.labels.numpy(), found.predicted.numpy()


def _title(result: Result) -> str:
    run = Path(str(result.checkpoint.get("run") or result.checkpoint.get("path"))).name
    score = result.metrics[result.headline]
    name = METRICS[result.headline]
    return one_line(f"{run} on {result.data['name']}, {result.protocol}: {name} {score} %")


def draw(folder: Path, out: Path, *, data: Path | None, seed: int = 0) -> list[Path]:
    """Write the pictures of the result in ``folder`` into ``out``; return the files' paths.

    data: folder with the containers that the result is of; without it the map, the projector and
    the embeddings, which need features and images, are left out, and removed where an earlier
    drawing left them: they may be of another result. Raises HarlError, OSError.
    """
    from harl_fast.eval.results import read_result
    from harl_fast.tools import embeddings, features

    result = read_result(folder)
    if data is not None:
        features.check_containers(data, result.data)
        found = embeddings.of_result(result, features.validation_features(result, data, folder))
        check_map(found.features)
    written = [out / "confusion.png", out / "per_class.png"]
    of_features = [out / "embeddings.npz", out / "map.png", out / "projector"]
    with locked(out / FOLDER_LOCK, output=out):
        write_bytes(written[0], confusion(result))
        write_bytes(written[1], per_class(result))
        if data is None:
            _remove((*of_features[:2], of_features[2] / embeddings.PROJECTOR_CONFIG))
            return written
        embeddings.write_npz(of_features[0], found)
        write_bytes(of_features[1], feature_map(found, title=_title(result), seed=seed))
        embeddings.write_projector(of_features[2], found, data=data)
    return written + of_features


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        if file.is_file():
            to_stderr(f"removed, as it may be of another result: {file}")
            file.unlink()


def draw_and_tell(folder: Path, out: Path, *, data: Path | None, seed: int = 0) -> None:
    """Write the pictures of a result, see `draw`, and print their names."""
    for path in draw(folder, out, data=data, seed=seed):
        print(one_line(str(path)))


def beside(data: Path) -> Callable[[Path], None]:
    """Return what draws a result on ``data`` into its folder. Raises ConfigError without the extra.

    For programs to call before the result is there.
    """
    charts.check_extra()
    return lambda folder: draw_and_tell(folder, folder / PICTURES, data=data)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = Parser(
        prog="python -m harl_fast.tools.pictures",
        description="Draw what an evaluation found: confusion.png, per_class.png; with --data also "
        "map.png (t-SNE, or UMAP if it is installed), projector/ for `tensorboard --logdir`, and "
        "embeddings.npz with the images' names.",
    )
    parser.add_argument(
        "result", type=Path, metavar="RESULT", help="folder RUN/eval/<data>-<protocol>"
    )
    parser.add_argument("--data", type=Path, help="folder of the containers that it is of")
    parser.add_argument("--out", type=Path, help="folder (default: RESULT/pictures)")
    seed = whole_number(0, SEED_MAX)
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the map (0)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Draw; return the exit code."""
    args = parse(argv)
    charts.check_extra()
    folder = args.result.parent if args.result.is_file() else args.result
    out = args.out or folder / PICTURES
    check_output(out, option="--out", folder=True)
    draw_and_tell(folder, out, data=args.data, seed=args.seed)
    if args.data is None:
        to_stderr("left out: map, projector and embeddings; they need --data <containers>")
    return 0


if __name__ == "__main__":
    harl_fast.program.run_main(main)
