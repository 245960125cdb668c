"""Features with the names of their images: for TensorBoard's projector, FiftyOne and maps."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from harl_fast.data.container.manifest import find_container
from harl_fast.data.reader import OpenContainer
from harl_fast.errors import DataError, one_line
from harl_fast.eval.results import Result
from harl_fast.files import Progress, naming, replacing, write_bytes, write_text

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
PROJECTOR_CONFIG = "projector_config.pbtxt"
PROJECTED = 10_000
"""Points that TensorBoard's projector shows without thinning them out itself."""
SPRITE_PX = 8192
"""Longest side of the picture of all thumbnails; browsers refuse larger textures."""
THUMBNAIL_PX = 64


@dataclass(frozen=True)
class Embeddings:
    """The validation samples of a result with their features."""

    ids: Ints
    """(N,): sample ids in the container."""
    names: Sequence[str]
    """N source-relative paths."""
    features: Floats
    """(N, D)."""
    labels: Ints
    predicted: Ints
    """(N,): indices into ``classes``; predicted may be -1 (none)."""
    classes: Sequence[str]

    def stratified(self, count: int, *, seed: int = 0) -> Embeddings:
        """Return at most ``count`` samples, of each class its share and at least one if they fit.

        They stay in their order.
        """
        chosen = stratified(self.labels, count, seed=seed)
        return replace(
            self,
            ids=self.ids[chosen],
            names=[self.names[index] for index in chosen],
            features=self.features[chosen],
            labels=self.labels[chosen],
            predicted=self.predicted[chosen],
        )


def of_result(result: Result, features: Floats) -> Embeddings:
    """Return the embeddings of a result's validation samples; features: (N, D), by sample id."""
    if len(features) != len(result.ids):
        raise DataError(f"{len(features)} features of {len(result.ids)} validation samples")
    found = result.predictions
    return Embeddings(
        ids=result.ids.numpy(),
        names=result.names,
        features=features[result.ids.numpy()],
        labels=found.labels.numpy(),
        predicted=found.predicted.numpy(),
        classes=result.data["classes"],
    )


def stratified(labels: Ints, count: int, *, seed: int) -> Ints:
    """Return the sorted indices of at most ``count`` of (N,) labels, by class shares."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    place = np.arange(len(labels)) - (np.cumsum(sizes) - sizes)[labels[order]]
    # The first of each class, then all classes at the same pace.
    pace = np.where(place == 0, -1.0, (place + 0.5) / sizes[labels[order]])
    return np.sort(order[np.argsort(pace, kind="stable")[:count]])


def write_npz(path: Path, embeddings: Embeddings) -> None:
    """Write all of it as plain arrays: np.load(path) needs no pickle. Raises OSError."""
    arrays: dict[str, Any] = {
        "ids": embeddings.ids,
        "names": np.array(embeddings.names, dtype=str),
        "features": embeddings.features,
        "labels": embeddings.labels,
        "predicted": embeddings.predicted,
        "classes": np.array(embeddings.classes, dtype=str),
    }
    with replacing(path) as temporary, naming(path), open(temporary, "wb") as stream:
        np.savez(stream, **arrays)


def write_projector(folder: Path, embeddings: Embeddings, *, data: Path) -> Embeddings:
    """Write what `tensorboard --logdir FOLDER` shows under "Projector"; return what it shows.

    data: folder with the containers, for the thumbnails. At most `PROJECTED` points, stratified.
    Raises DataError, OSError.
    """
    shown = embeddings.stratified(PROJECTED)
    text = io.StringIO()
    np.savetxt(text, shown.features, fmt="%.5g", delimiter="\t")
    write_text(folder / "tensors.tsv", text.getvalue())
    classes = [one_line(name) for name in shown.classes]
    rows = ["name\tclass\tpredicted\tright"]
    for name, label, guess in zip(shown.names, shown.labels, shown.predicted, strict=True):
        said = classes[guess] if guess >= 0 else "none"
        rows.append(
            f"{one_line(name)}\t{classes[label]}\t{said}\t{'yes' if label == guess else 'no'}"
        )
    write_text(folder / "metadata.tsv", "\n".join(rows) + "\n")
    sheet, side = sprite(find_container(data, "val"), shown.ids)
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "PNG", compress_level=6)
    write_bytes(folder / "sprite.png", stream.getvalue())
    # Last: TensorBoard finds the rest by it.
    write_text(folder / PROJECTOR_CONFIG, _CONFIG.replace("SIDE", str(side)))
    return shown


_CONFIG = """embeddings {
  tensor_name: "features"
  tensor_path: "tensors.tsv"
  metadata_path: "metadata.tsv"
  sprite {
    image_path: "sprite.png"
    single_image_dim: SIDE
    single_image_dim: SIDE
  }
}
"""


def sprite(container: Path, ids: Ints) -> tuple[npt.NDArray[np.uint8], int]:
    """Return the samples' central squares side by side, in rows, and the side of each in pixels.

    The picture is square in thumbnails and within `SPRITE_PX`; what is left of it is white.
    Raises DataError for a sample that does not decode.
    """
    per_row = math.ceil(math.sqrt(len(ids)))
    side = min(THUMBNAIL_PX, SPRITE_PX // per_row)
    sheet = np.full((per_row * side, per_row * side, 3), 255, np.uint8)
    opened = OpenContainer(container)
    with Progress(len(ids), label="thumbnails", least_s=2.0) as progress:
        for place, index in enumerate(ids.tolist()):
            image = opened.sample(index).image
            top, left = (place // per_row) * side, (place % per_row) * side
            sheet[top : top + side, left : left + side] = _thumbnail(image, side)
            progress.advance()
    return sheet, side


def _thumbnail(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    height, width = image.shape[:2]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    square = np.ascontiguousarray(image[top : top + least, left : left + least])
    how = cv2.INTER_AREA if least > side else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(square, (side, side), interpolation=how), np.uint8)
