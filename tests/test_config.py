"""The method's configuration: presets load, mistakes are named, the resolved copy reads back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from harl_fast.config import (
    DataConfig,
    LossConfig,
    OptimConfig,
    RunConfig,
    Section,
    load_config,
    presets,
)
from harl_fast.data.order import Kind
from harl_fast.engine.config import EngineFile
from harl_fast.engine.resume import changed
from harl_fast.engine.views import view_geometry
from harl_fast.errors import ConfigError
from harl_fast.finetuning import load_finetuning
from harl_fast.model.pooling import MASK_MODES
from harl_fast.optim.formula import FORMULAS
from harl_fast.options import crop_rule
from harl_fast.schedules import size_schedule, weight_schedule


def test_an_error_names_the_override_that_is_wrong() -> None:
    fine = ["data.workers=1", "log.probe_epochs=0", "log.sheet_epochs=0"]
    with pytest.raises(ConfigError) as caught:
        load_config("demo", overrides=[*fine, "seed=-1"])
    assert str(caught.value).startswith("--set 'seed=-1': seed: ")


@pytest.mark.parametrize("name", presets())
def test_presets_load_and_their_resolved_copy_reads_back(name: str, tmp_path: Path) -> None:
    assert name in presets()
    config = load_config(name)
    copy = tmp_path / "copy.yaml"
    copy.write_text(config.yaml())
    assert load_config(str(copy)) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=3", ["optim.lrr", "did you mean 'lr'"]),
        ("data.views.1.siz_px=3", ["data.views.1.siz_px", "did you mean 'size_px'"]),
        ("loss.type=foo", ["loss.type", "'byol+f_loss'", "got 'foo'"]),
        ("loss.type=byol+f", ["loss.type", "'byol+f_loss'", "got 'byol+f'"]),
        ("loss.extra.ring=-1", ["loss.extra.ring", "greater than or equal to 0"]),
        ("optim.name=lasr", ["optim.name", "'lars'", "got 'lasr'"]),
        ("model.stem=smal", ["model.stem", "'small'", "got 'smal'"]),
        ("model.last_stride=3", ["model.last_stride", "1 or 2"]),
        ("model.arch=''", ["model.arch"]),
        ("data.views.0.flip_p=1.5", ["data.views.0.flip_p", "less than or equal to 1", "1.5"]),
        ("data.views.0.scale=[0.9, 0.1]", ["data.views.0", "0.9", "above the second"]),
        ("data.views.0.crop=foreground>=2", ["data.views.0", "'foreground>=2'", "foreground>=T"]),
        ("data.views=[]", ["data.views: 0 of roles none; give 2 to 16 views"]),
        ("data.views=[{}]", ["data.views: 1 of roles both;", "two or more of role both"]),
        (f"data.views=[{'{}, ' * 17}]", ["data.views: 17 of roles", "2 to 16"]),
        ("data.views=[{role: online}, {role: online}]", ["roles online, online; give"]),
        ("data.views=[{}, {role: online}]", ["roles both, online; give"]),
        ("data.views=[{role: online}, {}, {}]", ["roles online, both, both; give", "first"]),
        ("data.views.1.role=target", ["data.views.1.role", "'online'", "got 'target'"]),
        ("data.order=quazi", ["data.order", "'quasi'", "got 'quazi'"]),
        ("data.colour=gpu", ["data.colour", "'device'", "got 'gpu'"]),
        ("data.damaged=skip", ["data.damaged", "'replace'", "got 'skip'"]),
        ("optim.warmup_epochs=5000", ["warmup_epochs", "epochs"]),
        ("nonsense", ["section.key=value"]),
        (".epochs=3", ["'.epochs' has an empty part", "section.key=value"]),
        ("data..workers=3", ["'data..workers' has an empty part"]),
        ("=3", ["'' has an empty part"]),
        ("optim.lr.deep=1", ["optim.lr.deep"]),
        ("data.views.7.crop=random", ["data.views.7.crop", "without such an item"]),
        ("optim" + ".a" * 5000 + "=1", ["section.key=value"]),
        ("data.mean=[123.675, 116.28, 103.53]", ["data.mean", "divide by 255"]),
        ("data.std=[58.4, 57.1, 57.4]", ["data.std", "divide by 255"]),
        ("data.std=[0, 0, 0]", ["data.std.0", "greater than or equal to 0.01", "got 0"]),
        ("data.std=[0.2, 0.2, .nan]", ["data.std", "nan is not finite"]),
        ("optim.lr=.inf", ["optim.lr", "inf is not finite"]),
        ("optim.lr=1e400", ["optim.lr", "inf is not finite"]),
        ("optim.lr='inf'", ["optim.lr", "finite"]),
        ("optim.lr=true", ["optim.lr", "True is no number"]),
        ("epochs=true", ["epochs", "True is no number"]),
        ("epochs=1_0", ["epochs", "got '1_0'"]),
        ("epochs=' 1 '", ["epochs", "without quotes", "got ' 1 '"]),
        ("data.mean=[0.5, '0.5', 0.5]", ["data.mean", "without quotes"]),
        ("data.views.-1.flip_p=0", ["data.views.-1", "without such an item"]),
        ("data.views.0_1.flip_p=0", ["data.views.0_1", "without such an item"]),
        ("data.views.0.crop=foreground>=0_1", ["none of random"]),
        ("data.size_schedule=steps:1_60", ["1_60", "no whole number"]),
        ("model.compile=yes", ["model.compile", "'yes' is neither true nor false"]),
        ("model.compile='1'", ["model.compile", "'1' is neither true nor false"]),
        ("model.compile=1.0", ["model.compile", "1.0 is neither true nor false"]),
        ("optim.nesterov=0", ["optim.nesterov", "0 is neither true nor false"]),
        ("data.views.0.scale=[true, 1]", ["scale", "is no number"]),
        ("model.last_stride=true", ["model.last_stride"]),
        ("seed=" + "9" * 5000, ["seed", "5,000 digits"]),
        ("seed=12:30", ["seed", "got '12:30'"]),
        ("model.width=1000", ["model.width", "less than or equal to 16"]),
        ("data.size_schedule='" + "9" * 5000 + "'", ["999 px is outside 8 to 1024"]),
        ("loss.type=" + "x" * 60_000, ["loss.type"]),
        ("loss=3", ["loss", "got 3"]),
        ("loss=", ["loss", "got None"]),
        ("'a\x1b'=3", ["unknown key", r"\x1b"]),
        ("optim.learning_rate=1", ["--set 'optim.learning_rate=1'", "write optim.lr"]),
        ("batch_size=64", ["write train_batch_size in the engine file"]),
        ("model.qqq=1", ["the keys there are arch, in_channels, width"]),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_mistake_names_the_key_the_value_and_the_remedy(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        view_geometry(load_config("paper", overrides=[override]))
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 600
    # The preset is sound: what is said of the command line names no file.
    assert "paper.yaml" not in str(caught.value)


def test_a_mistake_in_the_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: {width: 1000}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: .*model\.width"):
        load_config(str(path), overrides=["optim.lr=0.1"])
    assert load_config(str(path), overrides=["model.width=1"]).model.width == 1


def test_two_to_sixteen_views_of_both_roles_are_taken() -> None:
    for both, online in ((2, 0), (3, 0), (2, 1), (2, 14)):
        roles = ["both"] * both + ["online"] * online
        views = f"data.views=[{', '.join(f'{{role: {role}}}' for role in roles)}]"
        assert [v.role for v in load_config("paper", overrides=[views]).data.views] == roles


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("paper-fast", {"data.size_schedule", "model.compile"}),
        ("paper-multicrop", {"data.views", "model.predictor_per"}),
    ],
)
def test_presets_of_the_paper_differ_from_it_by_what_their_names_say(
    name: str, keys: set[str]
) -> None:
    trees = (load_config(each).model_dump() for each in ("paper", name))
    assert changed(*trees).keys() == keys


def test_an_override_of_one_view_key_keeps_the_other_defaults() -> None:
    views = load_config("paper", overrides=["data.views.0.size_px=96"]).data.views
    assert (views[0].size_px, views[0].blur_p) == (96, 1.0)
    assert (views[1].size_px, views[1].blur_p, views[1].solarize_p) == (224, 0.1, 0.2)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("random", ("random", 0.0)),
        ("center-on-foreground", ("center-on-foreground", 0.0)),
        ("foreground>=0.2", ("foreground", 0.2)),
        ("foreground >= 1", ("foreground", 1.0)),
    ],
)
def test_crops_are_read(text: str, rule: tuple[str, float]) -> None:
    assert crop_rule(text) == rule


@pytest.mark.parametrize("key", ["alpha", "beta"])
@pytest.mark.parametrize(
    ("written", "start", "end"),
    [
        ("0.5", 0.5, 0.5),
        ("1", 1.0, 1.0),
        ("0", 0.0, 0.0),
        ("1e-3", 1e-3, 1e-3),
        ("'0.5'", 0.5, 0.5),
        ("cosine:0.6:1.0", 0.6, 1.0),
        ("cosine:1:0", 1.0, 0.0),
        ("steps:0.6,0.5:1.0", 0.6, 1.0),
        ("steps:0.25", 0.25, 0.25),
    ],
)
def test_weights_take_every_documented_form(
    key: str, written: str, start: float, end: float, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"loss:\n  {key}: {written}\n")
    config = load_config(str(path))
    schedule = weight_schedule(getattr(config.loss, key))
    assert (schedule(0.0), schedule(1.0)) == (start, end)
    path.write_text(config.yaml())
    assert load_config(str(path)) == config


@pytest.mark.parametrize(
    ("written", "first", "last"),
    [("32", 32, 32), ("'32'", 32, 32), ("steps:160,0.7:192,0.85:224", 160, 224)],
)
def test_view_sizes_take_every_documented_form(
    written: str, first: int, last: int, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"data:\n  size_schedule: {written}\n")
    schedule = size_schedule(load_config(str(path)).data.size_schedule)
    assert (schedule(0.0), schedule(0.99)) == (first, last)


CHOICES = [
    (f"{name}.{key}", choice)
    for name, section in RunConfig.model_fields.items()
    if hasattr(section.annotation, "model_fields")
    for key, field in section.annotation.model_fields.items()
    if get_origin(field.annotation) is Literal
    for choice in get_args(field.annotation)
]


@pytest.mark.parametrize(("key", "choice"), CHOICES)
def test_every_choice_of_every_key_is_taken(key: str, choice: object) -> None:
    load_config("paper", overrides=[f"{key}={choice}"])


@pytest.mark.parametrize("word", ["true", "True", "TRUE"])
def test_switches_take_the_words_of_yaml_1_2_alone(word: str) -> None:
    assert load_config("paper", overrides=[f"model.compile={word}"]).model.compile
    for other in ("on", "'true'"):
        with pytest.raises(ConfigError, match="neither true nor false"):
            load_config("paper", overrides=[f"model.compile={other}"])


def numbers(model: type[Section], key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the field of every number of a section and of those within."""
    for name, field in model.model_fields.items():
        inner = (field.annotation, *get_args(field.annotation))
        sections = [one for one in inner if isinstance(one, type) and issubclass(one, Section)]
        if sections:
            yield from numbers(sections[0], f"{key}{name}.")
        elif {int, float} & {*inner, *(part for one in inner for part in get_args(one))}:
            yield f"{key}{name}", field


@pytest.mark.parametrize("model", [RunConfig, EngineFile])
def test_every_number_has_a_range(model: type[Section]) -> None:
    found = dict(numbers(model))
    assert len(found) > 10
    for key, field in found.items():
        text = f"{field.metadata} {field.annotation}"
        assert "ge=" in text or "gt=" in text, key
        assert "le=" in text or "lt=" in text, key


def test_a_key_written_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("optim:\n  lr: 0.2\n  lr: 0.3\n")
    with pytest.raises(ConfigError, match="'lr' stands twice, in lines 2 and 3"):
        load_config(str(path))


@pytest.mark.parametrize("text", ["", "null", "[1]", "3", "data:\n", "1: 2\n", "{[a]: b}", "\x00"])
def test_a_file_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(str(path))


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\x1b"], ids=["long", "NUL", "escape"])
def test_a_name_that_cannot_be_a_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="neither a file nor a preset"):
        load_config(name)


def test_a_tilde_is_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave it as it is in ``--config=~/config.yaml``."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.yaml").write_text("seed: 7\n")
    assert load_config("~/config.yaml").seed == load_finetuning("~/config.yaml").seed == 7


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("".join(f"key{number}: 1\n" for number in range(5000)))
    with pytest.raises(ConfigError, match="and 4,990 more mistakes"):
        load_config(str(path))


def test_an_unknown_name_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'paper'\?"):
        load_config("papr")


def test_seed_readme_differs_from_paper_as_its_header_says() -> None:
    """sqrt rule: 0.075 x sqrt(4096) = 4.8; linear: 0.2 x 4096 / 256 = 3.2."""
    paper, readme = load_config("paper").optim, load_config("seed-readme").optim
    assert paper.lr * 4096 / 256 == pytest.approx(3.2)
    assert readme.lr * 4096**0.5 == pytest.approx(4.8)


@pytest.mark.parametrize(
    ("section", "key", "names"),
    [
        (LossConfig, "mask", MASK_MODES),
        (DataConfig, "order", get_args(Kind)),
        (OptimConfig, "formula", FORMULAS),
    ],
)
def test_choices_are_those_of_the_modules_that_implement_them(section, key, names) -> None:
    assert set(get_args(section.model_fields[key].annotation)) == set(names)
