"""What `make evidence` reads out of an encoder: `python -m harl_fast.tools.evidence_scores --help`.

A program of its own: the loader's threads in a process that starts others would be in their way.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import harl_fast.program  # first: from here on an interrupt is one line
from harl_fast.files import check_output, write_json
from harl_fast.options import SEED_MAX, Parser, whole_number
from harl_fast.runfiles import check_apart
from harl_fast.tools.evidence_arms import KINDS, Kind


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = Parser(
        prog="python -m harl_fast.tools.evidence_scores",
        description="Judge a frozen encoder as `make evidence` does; write accuracies in percent.",
    )
    add = parser.add_argument
    add("kind", choices=KINDS, help="of the images")
    add("--data", type=Path, required=True, help="folder of containers")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--ckpt", type=Path, metavar="RUN", help="trained encoder")
    which.add_argument("--config", metavar="NAME|YAML", help="random weights of a configuration")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override in it")
    about = "of photos: containers by whose masks they are altered (repeatable)"
    add("--probe", nargs=2, action="append", default=[], metavar=("NAME", "DIR"), help=about)
    add("--seed", type=whole_number(0, SEED_MAX), default=0, help="of all that is drawn (0)")
    add("--out", type=Path, required=True, metavar="JSON", help="file to write")
    return parser.parse_args(argv)


with harl_fast.program.head(__name__, parse):
    import torch

    from harl_fast.config import load_config
    from harl_fast.engine.lineval import half, preprocessing
    from harl_fast.engine.networks import Pretrained, load_pretrained, untrained
    from harl_fast.eval.features import FeatureSet
    from harl_fast.eval.knn import knn_accuracy
    from harl_fast.eval.logistic import logistic_probe
    from harl_fast.eval.protocol import Evaluator
    from harl_fast.eval.subsets import choose
    from harl_fast.tools import demo_scores, evidence_probes

LABELS = 5
"""Of each class, in the read-out of few labels."""
_NAMES = {demo_scores.OBJECT: "object", demo_scores.SCENE: "scene", demo_scores.UNSEEN: "unseen"}
READ_OUTS: dict[Kind, dict[str, str]] = {
    "photos": {
        "linear": "linear",
        "per_class": "linear, per class",
        "five_labels": f"{LABELS} labels per class",
        "knn": "k-NN",
        "knn_centred": "k-NN, centred",
    },
    "composites": {
        **{name: f"{said}, linear" for said, name in _NAMES.items()},
        **{f"{name}_knn": f"{said}, k-NN" for said, name in _NAMES.items()},
    },
}
"""Names of the read-outs, and how they are printed; those of probes are <probe>:<masks>."""
PROBES = {
    evidence_probes.FOREGROUND: "object alone",
    evidence_probes.BACKGROUND: "object blanked",
    evidence_probes.SAME: "on its class's background",
    evidence_probes.OTHER: "on another class's background",
    evidence_probes.GAP: "difference of the last two",
}


def judge_composites(encoder: Pretrained, data: Path, *, seed: int) -> dict[str, float]:
    """Return object, scene and object in unseen scenes by linear heads and k-NN.

    data: containers of the demo set. seed: see `demo_scores.judge`.
    """
    found = demo_scores.judge(*demo_scores.extract_splits(encoder, data, label="frozen"), seed=seed)
    linear = {_NAMES[what]: each.linear.value for what, each in found.items()}
    return linear | {f"{_NAMES[what]}_knn": each.knn.value for what, each in found.items()}


def frozen_features(encoder: Pretrained, data: Path) -> tuple[Evaluator, FeatureSet, FeatureSet]:
    """Return whole images' features of both splits, and what extracted them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seen = preprocessing(encoder, crop=None)
    inputs = {name: seen[name] for name in ("size_px", "mean", "std", "crop")}
    evaluator = Evaluator(data, **inputs, device=device)
    backbone = encoder.backbone.to(device)
    train, val = (
        evaluator.features(backbone, split, autocast=half(), label="frozen", weights=None)
        for split in ("train", "val")
    )
    return evaluator, train, val


def judge_photos(
    encoder: Pretrained, data: Path, probes: Mapping[str, Path], *, seed: int
) -> dict[str, float]:
    """Return what `READ_OUTS` and `PROBES` name.

    data: containers. probes: containers of the same images, by the name of the masks under which
    they are altered. seed: of the images with labels, and of the held-out ones that choose C.
    """
    evaluator, train, val = frozen_features(encoder, data)
    classes, device = evaluator.classes, train.features.device
    ids = choose(
        evaluator.names("train"),
        train.labels,
        evaluator.data_record()["classes"],
        subset=f"{LABELS}-per-class",
        seed=seed,
    )
    few = FeatureSet(train.features[ids], train.labels[ids])
    whole, little = (
        logistic_probe(each, val, classes=classes, seed=seed, device=device)
        for each in (train, few)
    )
    mean = train.features.mean(0)
    moved = [FeatureSet(each.features - mean, each.labels) for each in (train, val)]
    found = {
        "linear": whole.metrics.top1,
        "per_class": whole.metrics.mean_per_class,
        "five_labels": little.metrics.top1,
        "knn": knn_accuracy(train, val, classes=classes, device=device).top1,
        "knn_centred": knn_accuracy(*moved, classes=classes, device=device).top1,
    }
    assert whole.head is not None
    for name, folder in probes.items():
        altered = evidence_probes.probe(encoder, whole.head, folder, classes=classes)
        found |= {f"{what}:{name}": value for what, value in altered.items()}
    return found


def main(argv: list[str] | None = None) -> int:
    """Judge; return the exit code."""
    args = parse(argv)
    check_output(args.out, option="--out", suffix=".json")
    check_apart(args.out, option="--out")
    if args.ckpt:
        encoder = load_pretrained(args.ckpt)
    else:
        encoder = untrained(load_config(args.config, overrides=args.set), seed=args.seed)
    if args.kind == "composites":
        accuracy = judge_composites(encoder, args.data, seed=args.seed)
    else:
        probes = {name: Path(folder) for name, folder in args.probe}
        accuracy = judge_photos(encoder, args.data, probes, seed=args.seed)
    write_json(args.out, {"accuracy": accuracy, "weights_sha256": encoder.weights_sha256})
    return 0


if __name__ == "__main__":
    harl_fast.program.run_main(main)
