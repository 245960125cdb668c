"""A fine-tuning repeated with several seeds: that they are trained alike, and what they gave."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path

from harl_fast.engine.config import EngineConfig
from harl_fast.engine.finetune_start import as_before, check_origin
from harl_fast.engine.resume import refuse_changes, settings
from harl_fast.files import to_stderr
from harl_fast.finetuning import FinetuneConfig
from harl_fast.provenance import read_provenance
from harl_fast.results import write_result
from harl_fast.runfiles import RunFolder

_OF_A_SEED = ("configurations", "checkpoints")
"""Which of `Training.facts` differ from seed to seed."""


def check_seed(
    begun: tuple[FinetuneConfig, EngineConfig],
    own: tuple[FinetuneConfig, EngineConfig],
    *,
    run: Path,
    ckpt: Path | None,
    batch_may_fall: bool,
) -> None:
    """Raise ConfigError unless another seed is trained like one that has begun.

    begun: that one's configurations, as it goes on in the folder ``run``. own: the other's. ckpt:
    what the other begins with; None if it has begun, too. batch_may_fall: see
    `finetune_start.Asked`.
    """
    config, engine_config = as_before(own, begun[0], batch_may_fall=batch_may_fall)
    refuse_changes(
        settings(*begun),
        settings(config, engine_config),
        allowed=(),
        where=f"--seeds: {run} has begun",
        free=("seed",),
        remedy="Give all options of the first start again: other seeds are to have them, too",
    )
    origin = read_provenance(RunFolder(run).provenance).data.get("pretrained")
    if ckpt is not None and not config.random and isinstance(origin, dict):
        check_origin(ckpt, origin, run)


def write_seeds(
    path: Path,
    results: Mapping[int, Mapping[str, float]],
    *,
    facts: Mapping[str, str],
    config: FinetuneConfig,
) -> None:
    """Write and print metrics by seed with mean and deviation.

    results: of each seed its metrics in percent. facts, config: of one of the trainings. What other
    seeds or settings gave is kept beside it.
    """
    names = list(next(iter(results.values())))
    table = {name: [result[name] for result in results.values()] for name in names}
    summary = {
        name: {"mean": statistics.mean(values), "deviation": statistics.stdev(values)}
        for name, values in table.items()
    }
    shared = {key: fact for key, fact in facts.items() if key not in _OF_A_SEED}
    own = {key: value for key, value in settings(config).items() if key != "seed"}
    provenance = {**shared, "seeds": list(results), "settings": own}
    found = {"seeds": list(results), "metrics": table, "summary": summary}
    name = f"seeds {' '.join(map(str, results))}"
    write_result(path, found, provenance=provenance, name=name)
    text = ", ".join(
        f"{name} {each['mean']:.2f} +- {each['deviation']:.2f}" for name, each in summary.items()
    )
    to_stderr(f"{len(results)} seeds: {text}; all of them: {path}")
