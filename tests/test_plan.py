"""`python -m harl_fast.plan`: its laws against published figures and hand counts, and its edges."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harl_fast.config import PRESETS, ModelConfig, RunConfig, ViewConfig, load_config
from harl_fast.data.container.stores import parse_store
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.errors import ConfigError
from harl_fast.model.backbones import build_backbone
from harl_fast.plan import __main__ as program
from harl_fast.plan import loader, measure, memory, network, planning, report, step
from harl_fast.plan.hardware import TABLE, Anchor, Hardware, hardware, parse_bytes, parse_gpus
from harl_fast.plan.planning import CASES, COMPUTE, CORES, NETWORK, STORE, Plan, Request, make_plan
from harl_fast.plan.work import pretraining_work, supervised_work
from harl_fast.section import validated
from harl_fast.textfile import read_yaml
from tests.betons import plain_item, write_beton

ROOT = Path(__file__).parents[1]
TINY = RunConfig.model_validate(
    {
        "epochs": 10,
        "data": {"views": [{"size_px": 32}, {"size_px": 32}]},
        "model": {"arch": "resnet18", "width": 0.125, "projector_hidden": 32, "projector_out": 16},
        "optim": {"warmup_epochs": 1},
    }
)
PAPER = load_config("paper")


def request(**values: Any) -> Request:
    """Return a small request on 8 A100."""
    return Request(
        **{"config": TINY, "megapixels": 0.16, "disk_bytes_s": 3e9, "images": 40960, **values}
    )


def test_the_model_counts_as_its_convolutions_do_by_hand() -> None:
    model = TINY.model.model_copy(update={"projector_hidden": 8})
    backbone, seen = build_backbone(model), []

    def count(module: torch.nn.Conv2d, inputs: Any, output: torch.Tensor) -> None:
        kernel = module.weight[0].numel()
        seen.append((2 * kernel * output.numel(), output.numel()))

    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    backbone(torch.zeros(2, 3, 64, 64))
    forward, outputs = (sum(each) / 2 for each in zip(*seen, strict=True))
    work = supervised_work(model, 64)
    assert work.outputs == outputs
    # Backward takes as much for the inputs and for the weights; the images need no gradient.
    assert work.flops == 3 * forward - seen[0][0] / 2


def test_a_resnet50_has_the_published_work() -> None:
    whole, small = (pretraining_work(PAPER, (px, px), half=True) for px in (224, 160))
    assert supervised_work(PAPER.model, 224).flops == pytest.approx(6 * 4.089e9, rel=0.02)
    assert whole.outputs == pytest.approx(2 * 11.11e6, rel=0.01)
    # Two views: three forwards' worth online, one in the target.
    assert whole.flops == pytest.approx(16 * 4.089e9, rel=0.02)
    assert whole.target_flops == pytest.approx(4 * 4.089e9, rel=0.02)
    ratio = whole.flops / supervised_work(PAPER.model, 224).flops
    assert 2.5 <= ratio <= 2.9
    assert small.flops / whole.flops == pytest.approx(0.51, rel=0.1)
    # Counted apart on fake CUDA tensors: 45.0 GB for 512 images.
    assert 512 * whole.saved_bytes == pytest.approx(45.0e9, rel=0.03)


def multicrop(config: RunConfig, *sizes: int) -> RunConfig:
    """Return a configuration with small views besides."""
    views = [*config.data.views, *(ViewConfig(size_px=px, role="online") for px in sizes)]
    return config.model_copy(
        update={"data": config.data.model_copy(update={"views": tuple(views)})}
    )


def test_a_view_of_role_online_costs_its_own_pass_and_none_of_the_target() -> None:
    two, small = (pretraining_work(TINY, (px, px), half=True) for px in (64, 32))
    four = pretraining_work(multicrop(TINY, 32, 32), (64, 64, 32, 32), half=True)
    assert four.target_flops == two.target_flops and four.target_outputs == two.target_outputs
    added = small.flops - small.target_flops
    assert four.flops - four.target_flops == pytest.approx(two.flops - two.target_flops + added)
    assert four.outputs == two.outputs + small.outputs
    assert two.target_outputs == two.outputs
    # The loss keeps a few vectors of each pair.
    kept = two.saved_bytes + small.saved_bytes
    assert kept < four.saved_bytes < kept * 1.05


def test_a_plan_counts_all_views_in_step_loader_and_memory() -> None:
    two, four = (make_plan(request(config=c, store="raw")) for c in (TINY, multicrop(TINY, 16, 16)))
    (pair,), (crops,) = two.phases["likely"], four.phases["likely"]
    assert crops.sizes == (32, 32, 16, 16)
    assert crops.parts["online network"] > pair.parts["online network"]
    assert crops.parts["target"] == pytest.approx(pair.parts["target"])
    assert crops.parts["colours"] == pytest.approx(1.25 * pair.parts["colours"])
    assert crops.rates[CORES] < pair.rates[CORES]
    assert four.memory_bytes > two.memory_bytes
    assert "10 epochs at 2 x 32 px and 2 x 16 px" in report.text(four)


@pytest.mark.parametrize("name", ["paper-fast", "paper-multicrop"])
def test_the_cost_in_a_presets_header_is_the_planned_one(name: str) -> None:
    facts = hardware().store
    common = {"megapixels": facts["megapixels"].value, "disk_bytes_s": 3e9, "images": 1_281_167}
    paper, own = (
        make_plan(Request(config=load_config(each), **common)).hours() for each in ("paper", name)
    )
    header = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"# Cost: {own:.0f} h on 8 A100-80GB" in header
    assert f"{own / paper:.2f} of `paper`" in header


def rate(anchor: Anchor) -> float:
    """Return the planned images per second and GPU of supervised training."""
    half, gpu = anchor.precision == "bf16", hardware().gpus[anchor.gpu]
    work = supervised_work(ModelConfig(), anchor.px, half=half)
    online, target = step.network_seconds(
        work, gpu, anchor.kernels, half=half, synced=False, case="likely"
    )
    assert target == 0.0
    return 1 / online


@pytest.mark.parametrize("anchor", hardware().anchors, ids=lambda a: f"{a.name} {a.gpus}x{a.gpu}")
def test_published_rates_are_met_or_an_exception_says_why_not(anchor: Anchor) -> None:
    error = rate(anchor) / anchor.rate.value - 1
    assert (abs(error) > 0.15) == bool(anchor.exception), f"{error:+.1%}"


def test_every_number_of_the_table_has_its_source() -> None:
    tree = read_yaml(TABLE)
    tree["gpus"]["A100-80GB"]["memory_gb"] = [80, "hearsay"]
    with pytest.raises(ConfigError, match="hearsay"):
        validated(Hardware, tree, where="table")
    assert sum(not anchor.exception for anchor in hardware().anchors) >= 8


def test_the_published_table_stands_in_the_docs() -> None:
    assert report.published() in (ROOT / "docs/planning.md").read_text(encoding="utf-8")


def test_rings_of_gpus() -> None:
    paper = {"total_bytes": 153e6, "bus_bytes_s": 230e9}
    assert network.allreduce_seconds(gpus=1, nodes=1, network_bytes_s=math.inf, **paper) == 0
    one = network.allreduce_seconds(gpus=8, nodes=1, network_bytes_s=1e6, **paper)
    assert one == pytest.approx(2 * 7 / 8 * 153e6 / 230e9)
    two = network.allreduce_seconds(gpus=8, nodes=2, network_bytes_s=12.5e9, **paper)
    assert two == pytest.approx(0.023, rel=0.01)


def box(scale: float, size_px: int = 64) -> ViewGeometry:
    return ViewGeometry(size_px=size_px, cells=2, scale=(scale, scale), ratio=(1.0, 1.0))


def test_shares_of_boxes_are_those_of_the_loader() -> None:
    one = loader.shares((box(0.25),), height=400, width=400)
    assert one.boxes == pytest.approx((0.25,))
    assert one.union == pytest.approx(216 * 264 / 400**2, rel=0.02)  # and a segment's rim
    two = loader.shares((box(0.25), box(0.25)), height=400, width=400)
    assert one.union < two.union < 1.0
    whole = loader.shares((box(1.0),) * 3, height=300, width=300)
    assert whole.union == 1.0 and whole.boxes == (1.0,) * 3


def test_an_image_costs_the_sum_of_its_parts() -> None:
    costs, views = hardware().loader, [box(0.25), box(1.0, size_px=128)]
    covered = loader.shares(tuple(views), height=300, width=400)
    raw = costs.stores["raw"]
    by_hand = (
        raw["image"].value
        + 0.12 * raw["stored"].value
        + 0.12 * covered.union * raw["decoded"].value
        + 2 * raw["view"].value
        + 0.12 * sum(covered.boxes) * raw["cut"].value
        + (64**2 + 128**2) / 1e6 * raw["written"].value
    ) / costs.scaling.value
    plain = loader.image_us(parse_store("raw"), views, megapixels=0.12, coloured=False)
    assert plain == pytest.approx(by_hand)
    coloured = loader.image_us(parse_store("raw"), views, megapixels=0.12, coloured=True)
    extra = (64**2 + 128**2) / 1e6 * costs.colour_us_per_mpx.value / costs.scaling.value
    assert coloured - plain == pytest.approx(extra)
    jpg = loader.image_us(parse_store("jpg"), views, megapixels=0.12, coloured=False)
    mixed = loader.image_us(parse_store("mix:0.25"), views, megapixels=0.12, coloured=False)
    assert mixed == pytest.approx(0.25 * plain + 0.75 * jpg)


def test_memory_names_the_micro_batch_that_fits() -> None:
    work = pretraining_work(PAPER, (224, 224), half=True)
    pixels = 512 * 2 * 224**2
    peak = memory.device_bytes(work, micro=512, pixels=pixels, on_device=True)
    assert 48e9 <= peak <= 52e9
    large = make_plan(request(config=PAPER))
    small = make_plan(request(config=PAPER, gpu="A100-40GB"))
    assert (large.micro, small.micro) == (512, 256)
    assert large.memory_bytes == pytest.approx(peak)
    assert "gradient_accumulation_steps 2" in report.text(small)


@pytest.mark.parametrize(
    ("values", "binding"),
    [
        ({"store": "raw"}, COMPUTE),
        ({"cores": 9}, CORES),
        ({"store": "raw", "ram_bytes": 1e9, "disk_bytes_s": 1e7}, STORE),
        ({"store": "raw", "nodes": 2, "network_bytes_s": 1e5}, NETWORK),
    ],
)
def test_the_scarcest_resource_decides(values: dict[str, Any], binding: str) -> None:
    plan = make_plan(request(**{"cores": 10_000, **values}))
    (phase,) = plan.phases["likely"]
    assert phase.binding == binding
    assert phase.rate <= min(phase.rates.values())
    if binding in (CORES, STORE):
        assert phase.rate == phase.rates[binding]
    assert plan.hours() == pytest.approx(10 * 40960 / phase.rate / 3600)
    assert plan.hours("fast") <= plan.hours() <= plan.hours("slow")


def test_cores_needed_are_those_at_which_the_loader_keeps_up() -> None:
    (phase,) = make_plan(request(store="raw", cores=10_000)).phases["likely"]
    enough, few = 8 + math.ceil(phase.cores_needed), 8 + int(0.9 * phase.cores_needed)
    bindings = [
        make_plan(request(store="raw", cores=cores)).phases["likely"][0].binding
        for cores in (enough, few)
    ]
    assert bindings == [COMPUTE, CORES]


def test_what_is_planned_is_what_the_configuration_runs() -> None:
    schedule = "data.size_schedule=steps:32,0.5:64"
    other = load_config("cifar10", overrides=["epochs=20", schedule])
    plan = make_plan(request(config=other))
    assert [(phase.sizes, phase.epochs) for phase in plan.phases["likely"]] == [
        ((32, 32), 10),
        ((64, 64), 10),
    ]
    first, second = plan.phases["likely"]
    assert second.parts["online network"] == pytest.approx(4 * first.parts["online network"], 0.2)
    loader_colours = other.model_copy(
        update={"data": other.data.model_copy(update={"colour": "loader"})}
    )
    assert "colours" in first.parts
    by_loader = make_plan(request(config=loader_colours)).phases["likely"][0]
    assert "colours" not in by_loader.parts and by_loader.rates[CORES] < first.rates[CORES]


def test_energy_and_price_count_all_gpus() -> None:
    plan = make_plan(request(price=2.0, nodes=2, network_bytes_s=1e10))
    assert plan.price == pytest.approx(2.0 * 16 * plan.hours())
    assert plan.energy_kwh == pytest.approx(0.812 * 16 * plan.hours())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8xA100", "A100-80GB or A100-40GB"),
        ("8xH10-80GB", "did you mean 'H100-80GB'"),
        ("0xA100-80GB", "give 1 to 9,999 GPUs"),
        ("100000000000xA100-80GB", "give 1 to 9,999 GPUs"),
        ("many", "8xA100-80GB"),
    ],
)
def test_gpus_that_are_not_in_the_table_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_gpus(text)


def test_quantities_have_units() -> None:
    assert parse_gpus("2xa100-40gb") == (2, "A100-40GB") and parse_gpus("V100") == (1, "V100-16GB")
    assert parse_bytes("1000GB") == 1e12 and parse_bytes("1TiB") == 2**40
    assert parse_bytes("100Gb") == parse_bytes("100Gb/s") == 12.5e9
    for text, said in {"1000": "unit", "0GB": "nothing", "-1GB": "unit", "1e9GB": "unit"}.items():
        with pytest.raises(ConfigError, match=said):
            parse_bytes(text)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"batch": 4095}, "use --batch 4096"),
        ({"batch": 8}, "use --batch 16"),
        ({"images": 4000}, "--batch 4000 or less"),
        ({"images": 3}, "take fewer GPUs, or give more --images"),
        ({"nodes": 2}, "--network 100Gb"),
        ({"gpu": "V100-16GB"}, "fp16"),
        ({"store": "mix:2"}, "mix:P"),
        ({"store": "png"}, "passthrough"),
    ],
)
def test_what_cannot_run_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_plan(request(**values))


@pytest.mark.parametrize(
    "words", [["--gpus", "8xT4"], ["--cores", "0"], ["--ram", "64"], ["--batch", "x"]]
)
def test_a_mistake_of_the_command_line_ends_with_code_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        program.main(words)
    assert end.value.code == 2


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY.yaml(), encoding="utf-8")
    return str(path)


def test_alternatives_change_options_and_keys(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "plan.png"
    words = ["--config", config, "--images", "9000", "--price", "2", "--picture", str(picture)]
    words += ["--compare", "gpus=4xH100-80GB", "cores=64", "--compare", "model.compile=true"]
    assert program.main(words) == 0
    printed = capsys.readouterr().out
    assert "timed on a GPU" in printed
    table = printed.partition("\n\n")[2].splitlines()
    assert [line.rpartition("  ")[2].partition(", ")[2] for line in table[1:4]] == [
        "as given",
        "gpus=4xH100-80GB cores=64",
        "model.compile=true",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_is_measured_takes_the_place_of_assumptions(
    config: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_beton(tmp_path / "train.beton", plain_item, count=64)
    monkeypatch.setattr(measure, "LOADER_S", 0.0)
    monkeypatch.setattr(measure, "STEP_S", 0.0)
    plans: list[Plan] = []
    plain: Callable[[Request], Plan] = make_plan
    monkeypatch.setattr(program, "make_plan", lambda each: plans.append(plain(each)) or plans[-1])
    words = ["--config", config, "--measure", str(tmp_path), "--batch", "16"]
    assert program.main(words) == 0
    assert "measured  here" in capsys.readouterr().out
    (phase,) = plans[-1].phases["likely"]
    found = plans[-1].request.measured
    assert found is not None and found.step_s is not None
    networks, cost = 16 * found.step_s[0], 16 * found.loader_us[32, 32][0] / 1e6
    cores = plans[-1].request.cores
    assert phase.parts == pytest.approx(
        {"networks and optimizer": networks, "loader": cost / cores}
    )
    assert plans[-1].hours() == pytest.approx(10 * 4 * sum(phase.parts.values()) / 3600)
    # With GPUs that are not here, the loader alone is measured.
    assert program.main([*words, "--gpus", "2xH100-80GB"]) == 0
    assert "no GPU is here" in capsys.readouterr().out
    assert plans[-1].phases["likely"][0].parts["online network"] > 0
    with pytest.raises(ConfigError, match="a command of its own"):
        program.main([*words, "--compare", "model.compile=true"])


def test_a_measured_step_follows_the_flop_of_other_sizes() -> None:
    flops = pretraining_work(TINY, (64, 64), half=True).flops
    seen = planning.Measured("here", step_s=(1e-3, 2e-3, 5e-4), step_flops=flops, gpu="A100-80GB")
    at = {
        case: make_plan(request(measured=seen)).phases[case][0].parts["networks and optimizer"]
        for case in CASES
    }
    ratio = pretraining_work(TINY, (32, 32), half=True).flops / flops
    assert at["likely"] == pytest.approx(512 * 1e-3 * ratio)
    assert at["slow"] == pytest.approx(2 * at["likely"]) and at["fast"] < at["likely"]
    other = make_plan(request(measured=seen, gpu="H100-80GB")).phases["likely"][0]
    assert "networks and optimizer" not in other.parts
