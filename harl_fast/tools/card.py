"""The model card of an exported folder: what the encoder is, how to load it, what it reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from harl_fast.engine.networks import Pretrained
from harl_fast.errors import one_line
from harl_fast.eval.options import METRICS
from harl_fast.eval.results import Result, results_in


def model_card(pretrained: Pretrained, *, classes: Sequence[str], crop: float, timm: bool) -> str:
    """Return README.md in Markdown with the header that Hugging Face's hub reads.

    classes: of the classifier in the file, none without one. crop: share of the shorter side that
    is seen. timm: whether timm has the network.
    """
    model, source = pretrained.model, origin(pretrained)
    ours = run_of(pretrained.source) is not None
    head = [
        "---",
        f"library_name: {'timm' if timm else 'pytorch'}",
        f"tags: [image-feature-extraction{', self-supervised, harl' * ours}]",
        "---",
        f"# {model.arch}{', pretrained by HARL without labels' * ours}",
        "",
        f"From {source} ({pretrained.receipt.total} tensors, SHA-256 of the weights "
        f"{pretrained.weights_sha256[:16]}). Width {model.width:g}, stem {model.stem}, last stride "
        f"{model.last_stride}, {model.in_channels} channels.",
        "",
        f"Inputs: values in [0, 1], normalised by mean {[*pretrained.mean]} and std "
        f"{[*pretrained.std]}. For evaluation the central square of {crop} of the shorter side, "
        f"resized bilinearly with antialiasing to {pretrained.size_px} px.",
        "",
    ]
    if classes:
        head += [f"With a linear classifier of {len(classes)} classes, judged on such inputs.", ""]
    return "\n".join([*head, *_loading(model.arch, timm=timm), *_results(pretrained)]) + "\n"


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
    yield "| data | protocol | inputs | metric | percent | 95 % interval | images |"
    yield "|---|---|---|---|---|---|---|"
    for result in found:
        data, score = result.data, result.metrics[result.headline]
        seen = result.preprocessing
        note = "" if data["split"] == "official" else f" ({data['split']})"
        yield (
            f"| {_cell(data['name'])}{note} | {_cell(result.protocol)} | "
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
