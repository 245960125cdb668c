"""What decoding must know of each sample, from the containers' tables, which are checked meanwhile.

About 100 bytes per sample are read once, in pieces, and 37 are kept: 0.4 GB for 10 million samples,
and 1.4 s of CPU time, half of it SHA-256 (`benchmarks/open_set.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, FieldDescType, HeaderType

from harl_fast.data.container.checksum import CHECKED, joint_sum
from harl_fast.data.container.fields import (
    MODE_NAMES,
    NOWHERE,
    PIECE,
    BitMaskField,
    StoredImageField,
)
from harl_fast.data.container.integrity import (
    IMAGE,
    MASK,
    METADATA_START,
    METADATA_TYPE,
    MOST_PIXELS,
    impossible,
    too_short,
)
from harl_fast.data.container.manifest import (
    FIELDS,
    REMEDY,
    Manifest,
    merge_manifests,
    read_manifest,
    read_shard,
    read_sums,
)
from harl_fast.errors import DataError
from harl_fast.files import open_regular
from harl_fast.host import usable_cores
from harl_fast.jit import njit

ROW = np.dtype(
    [
        ("image", "<u8"),  # the byte where it begins in its file, as the next
        ("mask", "<u8"),
        ("size", "<u4"),  # bytes of the stored image; 0: there are none
        ("height", "<u2"),
        ("width", "<u2"),
        ("file", "<u2"),
        ("mode", "u1"),  # of `fields`
    ]
)
"""A sample's place and kind."""
MOST_THREADS = 8

_METADATA = np.dtype(
    {
        "names": ["mode", "width", "height", "image", "mask", "label"],
        "formats": ["u1", "<u2", "<u2", "<u8", "<u8", "<i8"],
        "offsets": [0, 1, 3, 5, 17, 32],
        "itemsize": METADATA_TYPE.itemsize,
    }
)
"""`METADATA_TYPE` without FFCV's numbered columns."""

Rows = npt.NDArray[np.void]
Labels = npt.NDArray[np.int16 | np.int32]


@dataclass(frozen=True)
class File:
    """One container: alone, or of a set."""

    path: Path
    manifest: Manifest
    table_at: int
    """Byte where its allocation table begins."""
    mask_size: int


@dataclass
class Index:
    """All samples of a container or of a set."""

    manifest: Manifest
    """Of what is open: a set's without the shards that were left out."""
    files: list[File]
    firsts: npt.NDArray[np.int64]
    """(F + 1,) ids of the files' first samples, and at the end the number of samples."""
    rows: Rows
    """(N,) of `ROW`."""
    labels: Labels
    """(N,)."""
    sums: npt.NDArray[np.uint64]
    """(N,) `joint_sum` of each sample, 0 where none is known; (0,) if they were not asked for."""
    unchecked: list[tuple[Path, str]]
    """Files without sums that can be compared, and which they have instead."""
    left_out: list[str]
    """Why each broken shard was left out."""


def manifest_of(path: Path, *, skip_broken: bool) -> Manifest:
    """Return the manifest of what opens at a path, see `read_index`. Raises DataError."""
    manifest = read_manifest(path)
    return read_index(path, manifest, skip_broken=True).manifest if skip_broken else manifest


def check_container(path: Path, manifest: Manifest) -> None:
    """Raise `DataError` unless a container or a set is what its manifest describes, at little cost.

    Compares size, header, fields, metadata and allocation table of each file, and their checksum if
    it is known; `preprocess.verify` reads all the bytes. FFCV itself accepts or hangs on most
    damaged files, so this must come before its reader.
    """
    read_index(path, manifest)


def read_index(
    path: Path, manifest: Manifest, *, sums: bool = False, skip_broken: bool = False
) -> Index:
    """Return where the samples of a container or a set are; checks all but their own bytes.

    sums: read their checksums, too. skip_broken: leave a set's broken shards out, so that the ids
    run through the others. Raises DataError naming the first file that is broken.
    """
    if not manifest.shards:
        index, broken = _filled(manifest, [_opened(path, manifest)], sums=sums)
        if broken:
            raise broken[0]
        return index
    files, wrong = list[File](), dict[str, DataError]()
    for shard in manifest.shards:
        try:
            files.append(_opened(path / shard.file, read_shard(path, shard)))
        except DataError as error:
            wrong[shard.file] = error
    while True:
        if wrong and not (skip_broken and files):
            raise _first_of(path, manifest, wrong)
        kept = manifest
        if wrong:
            kept = merge_manifests([(f.path.name, f.manifest) for f in files], manifest.history)
        index, broken = _filled(kept, files, sums=sums)
        if not broken:
            index.left_out = [str(error) for error in wrong.values()]
            return index
        wrong |= {files[number].path.name: error for number, error in broken.items()}
        files = [file for file in files if file.path.name not in wrong]


def _first_of(path: Path, manifest: Manifest, wrong: dict[str, DataError]) -> DataError:
    first = next(wrong[shard.file] for shard in manifest.shards if shard.file in wrong)
    several = f"{len(wrong)} of {len(manifest.shards)} shards"
    return DataError(
        f"{path}: {several} cannot be used (training leaves them out with data.skip_broken=true, "
        f"all else needs the whole set). {first}"
    )


def _opened(path: Path, manifest: Manifest) -> File:
    """Return one container whose size, header and fields are those of its manifest."""
    try:
        size = path.stat().st_size
        with open_regular(path) as stream:
            head = stream.read(METADATA_START)
    except FileNotFoundError:
        raise DataError(f"{path} is missing. {REMEDY}") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if size != manifest.beton_bytes:
        raise DataError(
            f"{path} has {size:,} bytes, its manifest says {manifest.beton_bytes:,}: the file is "
            f"cut short, changed, or another run's. Copy it again, or: {REMEDY}"
        )
    if len(head) < METADATA_START:
        raise DataError(f"{path} has no FFCV header ({size} bytes). {REMEDY}")
    fields = np.frombuffer(head, FieldDescType, count=len(FIELDS), offset=HeaderType.itemsize)
    header = np.frombuffer(head, HeaderType, count=1)[0]
    if found := _wrong_head(header, fields, manifest):
        raise DataError(f"{path} has {found}. {REMEDY}")
    try:
        StoredImageField.from_binary(fields[0]["arguments"])
        mask_size = BitMaskField.from_binary(fields[1]["arguments"]).size
    except DataError as error:
        raise DataError(f"{path} has fields that cannot be read: {error}. {REMEDY}") from error
    return File(path, manifest, int(header["alloc_table_ptr"]), mask_size)


def _wrong_head(header: np.void, fields: npt.NDArray[np.void], manifest: Manifest) -> str:
    """Return what is wrong with a container's header and fields, or ""."""
    size, count = manifest.beton_bytes, manifest.count
    table = int(header["alloc_table_ptr"])
    names = _field_names(fields) if int(header["num_fields"]) == len(FIELDS) else ()
    wrong = [
        (int(header["version"]) != CURRENT_VERSION, f"FFCV format {int(header['version'])}"),
        (int(header["num_samples"]) != count, f"{int(header['num_samples'])} samples"),
        (names != FIELDS, f"{int(header['num_fields'])} fields {', '.join(names)}"),
        (not METADATA_START < table <= size, f"an allocation table at byte {table:,} of {size:,}"),
        ((size - table) % ALLOC_TABLE_TYPE.itemsize != 0, "a broken allocation table"),
    ]
    for bad, found in wrong:
        if bad:
            return (
                f"{found}; its manifest describes {count} samples in FFCV format "
                f"{CURRENT_VERSION} with fields {', '.join(FIELDS)}"
            )
    entries = (size - table) // ALLOC_TABLE_TYPE.itemsize
    if METADATA_START + count * METADATA_TYPE.itemsize > table:
        return f"no room for the metadata of {count:,} samples before byte {table:,}"
    if entries != 2 * count:
        return f"{entries:,} stored images and masks for {count:,} samples"
    if not len(set(manifest.classes)) == len(manifest.classes) == len(manifest.class_counts):
        return "class names in its manifest that stand twice or do not fit their counts"
    return ""


def _unreadable(path: Path, error: OSError) -> DataError:
    remedy = ". Check its rights" if error.errno else ""
    return DataError(f"{path} cannot be read ({error.strerror or error}){remedy}")


def _field_names(fields: npt.NDArray[np.void]) -> tuple[str, ...]:
    return tuple(
        row.tobytes().split(b"\0")[0].decode("ascii", "backslashreplace") for row in fields["name"]
    )


def _filled(
    manifest: Manifest, files: list[File], *, sums: bool
) -> tuple[Index, dict[int, DataError]]:
    """Return the index of sound files, or what is wrong with some, by their number."""
    firsts = np.cumsum([0, *(file.manifest.count for file in files)])
    count = int(firsts[-1])
    kind = np.int16 if len(manifest.classes) < 1 << 15 else np.int32
    labels: Labels = np.empty(count, kind)
    rows, joint = np.empty(count, ROW), np.zeros(count if sums else 0, np.uint64)
    index = Index(manifest, files, firsts, rows, labels, joint, unchecked=[], left_out=[])

    def fill(number: int) -> DataError | None:
        file, part = files[number], slice(*firsts[number : number + 2].tolist())
        try:
            if file.mask_size != files[0].mask_size:
                raise DataError(
                    f"{file.path} has masks of {file.mask_size} px, {files[0].path.name} of "
                    f"{files[0].mask_size} px: the masks of a set have one size. {REMEDY}"
                )
            _fill_rows(file, rows[part], labels[part])
            rows["file"][part] = number
            if sums and (instead := _fill_sums(file, joint[part])):
                index.unchecked.append((file.path, instead))
        except DataError as error:
            return error
        except OSError as error:
            return _unreadable(file.path, error)
        return None

    # Hashing, reading and the compiled loops let other threads run meanwhile.
    with ThreadPoolExecutor(min(MOST_THREADS, usable_cores(), len(files))) as pool:
        found = dict(enumerate(pool.map(fill, range(len(files)))))
    return index, {number: error for number, error in found.items() if error is not None}


def _fill_rows(file: File, rows: Rows, labels: Labels) -> None:
    """Fill one container's rows but for ``file``, and its labels; DataError if it is not sound.

    The tables of our writer are in the samples' order; others are looked at as a whole.
    """
    path, manifest, counts = file.path, file.manifest, file.manifest.class_counts
    digest, plain, mask_bytes = hashlib.sha256(), True, file.mask_size**2 // 8
    seen = np.zeros(len(counts), np.int64)
    with open_regular(path) as stream:
        digest.update(stream.read(METADATA_START))
        for at, piece in _pieces(stream, _METADATA, len(rows), digest):
            plain &= _take_samples(piece, rows[at], labels[at], seen, len(MODE_NAMES), MOST_PIXELS)
        stream.seek(file.table_at)
        end = METADATA_START + len(rows) * METADATA_TYPE.itemsize
        for at, piece in _pieces(stream, ALLOC_TABLE_TYPE, len(rows), digest, each=2):
            end, in_order = _take_places(piece, rows[at], end, file.table_at, mask_bytes, NOWHERE)
            plain &= in_order and not too_short(rows[at], rows["size"][at]).any()
    if manifest.tables_sha256 and digest.hexdigest() != manifest.tables_sha256:
        raise DataError(
            f"{path}: its header, metadata or allocation table do not have the manifest's "
            f"checksum: some of their bytes have changed. Copy it again, or: {REMEDY}"
        )
    if plain and seen.tolist() == list(counts):
        return
    if found := impossible(path, count=len(rows), counts=counts, table_at=file.table_at):
        raise DataError(f"{path} has {found}. {REMEDY}")
    table = np.fromfile(path, ALLOC_TABLE_TYPE, offset=file.table_at)
    metadata = np.fromfile(path, METADATA_TYPE, count=len(rows), offset=METADATA_START)
    places = [metadata[field]["data_ptr"] for field in (IMAGE, MASK)]
    rows["size"], sizes = sizes_at(table, places)
    rows["mask"] = np.where(sizes == mask_bytes, places[1], NOWHERE)


def sizes_at(
    table: npt.NDArray[np.void], places: Sequence[npt.NDArray[np.uint64]]
) -> list[npt.NDArray[np.uint64]]:
    """Return how many bytes an allocation table, in any order, gives to what begins at places.

    Each place must be in the table.
    """
    # Columns of their own: sorting whole records by one field takes ten times as long.
    order = np.argsort(starts := np.ascontiguousarray(table["ptr"]))
    starts, sizes = starts[order], table["size"][order]
    return [sizes[np.searchsorted(starts, np.ascontiguousarray(place))] for place in places]


def _pieces(
    stream: BinaryIO, kind: np.dtype[Any], count: int, digest: hashlib._Hash, *, each: int = 1
) -> Iterator[tuple[slice, npt.NDArray[np.void]]]:
    """Yield a file's records of ``count`` samples in pieces, and add them to a digest.

    each: records of one sample. Yields the place of the samples, too. All pieces come in the same
    memory: new memory for each would cost as much as the reading.
    """
    buffer = np.empty(min(PIECE, count) * each, kind)
    for start in range(0, count, PIECE):
        stop = min(start + PIECE, count)
        piece = buffer[: (stop - start) * each]
        data = piece.view(np.uint8).data
        if stream.readinto(data) < len(data):  # type: ignore[attr-defined]
            raise DataError(f"{stream.name} is being cut short. Copy it again, or: {REMEDY}")
        digest.update(data)
        yield slice(start, stop), piece


@njit(cache=True, nogil=True)
def _take_samples(metadata, rows, labels, seen, modes, most_pixels):
    """Take what metadata (n,) say into rows (n,) and labels (n,); return whether all of it can be.

    seen: (C,) int64, counts the labels. As `integrity.picture_faults`, which names what is wrong.
    """
    possible = True
    for place in range(rows.shape[0]):
        sample, row = metadata[place], rows[place]
        row.image, row.mask = sample.image, sample.mask
        row.height, row.width, row.mode = sample.height, sample.width, sample.mode
        labels[place] = sample.label
        pixels = np.int64(sample.height) * np.int64(sample.width)
        possible &= 0 < pixels <= most_pixels and sample.mode < modes
        if 0 <= sample.label < seen.shape[0]:
            seen[sample.label] += 1
        else:
            possible &= seen.shape[0] == 0 and sample.label == -1
    return possible


@njit(cache=True, nogil=True)
def _take_places(table, rows, start, stop, mask_bytes, nowhere):
    """Take image sizes from a table (2n,); return where the last ends and if all are in order.

    They are if they belong to the rows (n,) one by one and lie one after another between the bytes
    ``start`` and ``stop``. Masks of another size than ``mask_bytes`` get the place ``nowhere``.
    """
    end, last, in_order = np.uint64(start), np.uint64(stop), True
    for place in range(rows.shape[0]):
        row, image, mask = rows[place], table[2 * place], table[2 * place + 1]
        in_order &= image.ptr == row.image and mask.ptr == row.mask
        in_order &= np.uint64(0) < image.size < np.uint64(1 << 32)
        for entry in (image, mask):
            in_order &= end <= entry.ptr <= last and np.uint64(0) < entry.size <= last - entry.ptr
            end = entry.ptr + entry.size
        row.size = image.size
        if mask.size != np.uint64(mask_bytes):
            row.mask = nowhere
    return end, in_order


def _fill_sums(file: File, joint: npt.NDArray[np.uint64]) -> str:
    """Fill one container's joint sums; or return which sums it has instead."""
    sums = read_sums(file.path, file.manifest)
    if sums is None or sums.dtype != CHECKED:
        return "no" if sums is None else "only older, slower"
    joint[:] = joint_sum(sums[:, 0], sums[:, 1])
    return ""
