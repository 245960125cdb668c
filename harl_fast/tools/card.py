"""The model card of an exported folder: what the encoder is, how to load it, what it reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from harl_fast.engine.checkpoint.format import Record
from harl_fast.engine.networks import Pretrained
from harl_fast.errors import one_line
from harl_fast.eval.options import METRICS
from harl_fast.eval.results import Result, results_in
from harl_fast.model.classifier import LINEAR
from harl_fast.provenance import Provenance, read_provenance
from harl_fast.runfiles import RunFolder


def model_card(pretrained: Pretrained, *, classes: Sequence[str], timm: bool) -> str:
    """Return README.md in Markdown with the header that Hugging Face's hub reads.

    classes: of the classifier in the file, none without one. timm: whether timm has the network.
    """
    model, source, training = pretrained.model, origin(pretrained), _training(pretrained)
    head = [
        "---",
        f"library_name: {'timm' if timm else 'pytorch'}",
        f"tags: [{', '.join(('image-feature-extraction', *training.tags))}]",
        "---",
        f"# {', '.join(filter(None, (model.arch, training.title)))}",
        "",
        f"From {source} ({pretrained.receipt.total} tensors, SHA-256 of the weights "
        f"{pretrained.weights_sha256[:16]}). Width {model.width:g}, stem {model.stem}, last stride "
        f"{model.last_stride}, {model.in_channels} channels.",
        "",
        *((training.told, "") if training.told else ()),
        f"Inputs: values in [0, 1], normalised by mean {[*pretrained.mean]} and std "
        f"{[*pretrained.std]}. For evaluation the central square of {pretrained.crop} of the "
        f"shorter side, resized bilinearly with antialiasing to {pretrained.size_px} px.",
        "",
    ]
    if classes:
        head += [f"With a linear classifier of {len(classes)} classes, judged on such inputs.", ""]
    return "\n".join([*head, *_loading(model.arch, timm=timm), *_results(pretrained)]) + "\n"


class _Training(NamedTuple):
    """What a run did with an encoder."""

    title: str = ""
    told: str = ""
    tags: tuple[str, ...] = ()


def _training(pretrained: Pretrained) -> _Training:
    """Return what a checkpoint's record, and the run beside it, say; nothing of other files."""
    record = pretrained.record
    if record is None:
        return _Training()
    tuned = record.finetune
    if tuned is None:
        title, source = "pretrained by HARL without labels", _begun_with(pretrained.source, record)
        if source is None:
            return _Training(title, "", ("self-supervised", "harl"))
        # Which may have been trained with labels.
        return _Training(title, f"It began with the weights of {_name(source)}.", ("harl",))
    begun = "at random" if tuned.random else f"with the weights of {_pretraining(record)}"
    if tuned.fine_tune_after_block == LINEAR:
        return _Training("", f"It began {begun}, and only a classifier was trained.")
    images = f"{record.data['train_count']:,} of {record.data['count']:,} images"
    classes = len(record.data["classes"])
    told = f"It began {begun}, and was trained with the labels of {images} in {classes} classes."
    if tuned.random:
        return _Training("trained with labels", told, ("supervised",))
    return _Training("fine-tuned with labels", told, ("fine-tuned",))


def _begun_with(file: Path, record: Record) -> Path | None:
    """Return the weights that a pretraining began with, None for random ones or if not known."""
    run = run_of(file)
    known = Provenance() if run is None else read_provenance(RunFolder(run).provenance)
    # Earlier ones may be of a run that was taken away.
    first = [start for start in known.starts if start.step == 0][-1:]
    if known.run_id != record.run_id or not first or first[0].init_from is None:
        return None
    return Path(first[0].init_from)


def _pretraining(record: Record) -> str:
    """Return the name of what a fine-tuning began with."""
    before = record.data["pretrained"]
    if before["step"] is None:
        return _name(Path(before["path"]))
    return f"{_name(Path(before['run']))} step {before['step']}"


def _name(path: Path) -> str:
    """Return a name of weights for readers elsewhere: no path of this machine."""
    return one_line((run_of(path) or path).name)


def _loading(arch: str, *, timm: bool) -> Iterator[str]:
    yield from ("## Load it", "", "```python")
    if timm:
        yield "import timm"
        yield 'model = timm.create_model("local-dir:FOLDER", pretrained=True)'
        yield ""
    yield "import torch"
    entry = f"harl_{arch}" if arch.startswith("resnet") else "harl_encoder"
    yield f'model = torch.hub.load("HARL_FAST", "{entry}", source="local", weights="FOLDER")'
    yield from ("```", "")
    if timm:
        yield (
            "**timm gives random weights, without a word, unless `pretrained=True` is passed.** "
            "For a hub repository write `hf-hub:NAME` in place of `local-dir:FOLDER`."
        )
    else:
        yield "timm and torchvision have no such network; torch.hub loads it from this folder."
    yield ""


def _results(pretrained: Pretrained) -> Iterator[str]:
    found = [*results_of(pretrained)]
    yield from ("## What it reached", "")
    if not found:
        yield "Not measured."
        return
    yield "| data | protocol | labels | inputs | metric | percent | 95 % interval | images |"
    yield "|---|---|---|---|---|---|---|---|"
    for result in found:
        data, score = result.data, result.metrics[result.headline]
        seen = result.preprocessing
        note = "" if data["split"] == "official" else f" ({data['split']})"
        yield (
            f"| {_cell(data['name'])}{note} | {_cell(result.protocol)} | "
            f"{data['train_count']:,}{' (a subset)' * bool(data.get('subset_sha256'))} | "
            f"{seen['size_px']} px of the central {100 * seen['crop']:.4g} % | "
            f"{METRICS[result.headline]} | {score.value:.1f} | {score.low:.1f} to "
            f"{score.high:.1f} | {data['val_count']:,} |"
        )


def results_of(pretrained: Pretrained) -> Iterator[Result]:
    """Yield the results beside a run's checkpoint that are of these very weights."""
    run = run_of(pretrained.source)
    for _, result in results_in(run, left_out="the model card") if run else ():
        if result.checkpoint.get("weights_sha256") == pretrained.weights_sha256:
            yield result


def run_of(file: Path) -> Path | None:
    """Return the run folder of a step file, or None for other files."""
    return file.parent.parent if file.parent.name == "checkpoints" else None


def origin(pretrained: Pretrained) -> str:
    """Return where weights are from for readers elsewhere: names, no paths of this machine.

    In one line of UTF-8, as the metadata of safetensors need it.
    """
    place = run_of(pretrained.source) or pretrained.source
    return one_line(f"{place.resolve().name}{pretrained.receipt.source.removeprefix(str(place))}")


def _cell(text: str) -> str:
    return one_line(str(text)).replace("|", "\\|")
