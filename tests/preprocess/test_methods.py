"""Mask methods by name: texts, facts, and what happens when one fails on an image."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import Field

from harl_fast.data.container.fields import resize_mask, unpack_mask
from harl_fast.data.container.manifest import read_manifest
from harl_fast.data.container.stores import Store
from harl_fast.errors import ConfigError, DataError, HarlError
from harl_fast.pool import ordered_map
from preprocess import beton
from preprocess.convert import ConversionSettings, Sample, Task, convert
from preprocess.images.arrays import Map
from preprocess.masks import find_mask, open_method, parse_spec, runner
from preprocess.masks.heuristic.binary import centre_ellipse
from preprocess.masks.registry import MASK_METHODS, find_method, method_facts, try_method
from preprocess.masks.runner import LazyImage, MaskRequest, MaskResult, find_masks
from preprocess.masks.spec import MethodSpec, parameters_of, parse
from tests.preprocess.support import Pixels, image_folder, photo, save, torch_threads


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("heuristic", "heuristic"),
        (" full", "full"),
        ("center:sigma=0.3", "center"),
        ("center:sigma=.25", "{center: {sigma: 0.25}}"),
        ("noise:p=0.5", "{noise: 0.5}"),
        ("{noise: 0.5}", "{noise: 0.5}"),
        ("{heuristic: {rounds: 4, sigma: 1}}", "{heuristic: {sigma: 1.0}}"),
        ("noise:0.5,grid=7,seed=2", "{noise: {p: 0.5, seed: 2}}"),
        ("png:/a=b/c", "{png: /a=b/c}"),
        ("{png: '1e-3'}", "{png: '1e-3'}"),
        ("{png: 'ä (b/c'}", "{png: ä (b/c}"),
        (
            "{onnx: {file: f, mean: 0.5, scale: 255}}",
            "{onnx: {file: f, mean: [0.5], scale: '255'}}",
        ),
        ("onnx:(a,b.onnx),std=1", "{onnx: {file: 'a,b.onnx', std: [1.0]}}"),
        ("shuffled:seed=1,base=png:x", "{shuffled: {base: {png: x}, seed: 1}}"),
        (
            "noise:0.1,base=(shuffled:base=(onnx:f,size=64,scale=255),seed=3),seed=4",
            "{noise: {p: 0.1, base: {shuffled: {base: {onnx: {file: f, size: 64, scale: '255'}}, "
            "seed: 3}}, seed: 4}}",
        ),
    ],
)
def test_a_text_and_its_method_are_the_same(text: str, canonical: str) -> None:
    spec = parse_spec(text)
    assert str(spec) == canonical and parse_spec(canonical) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec and hash(spec) == hash(parse_spec(canonical))


def test_parameters_are_resolved() -> None:
    spec = parse_spec("noise:0.5,base=onnx:f.onnx")
    assert (spec["p"], spec["seed"], spec["grid"]) == (0.5, 0, 7)
    assert spec["base"]["mean"] == (0.485, 0.456, 0.406) and spec["base"]["file"] == "f.onnx"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hueristic", r"no 'hueristic'; did you mean 'heuristic'\?"),
        ("center:sigm=1", r"unknown key 'sigm'; did you mean 'sigma'\?"),
        ("{center: {sigm: 1}}", r"unknown key 'sigm'; did you mean 'sigma'\?"),
        ("full:1", "full takes no parameters"),
        ("center:sigma=wide", r"sigma: .* a valid number.* \(got 'wide'\)"),
        ("center:sigma=nan", r"sigma: .* a finite number \(got 'nan'\)"),
        ("{center: {sigma: 11}}", r"sigma: .* less than or equal to 10 \(got 11\)"),
        ("noise", r"lacks its p: write \{noise: P\}"),
        ("{noise:{p:1.5}}", "unknown key 'p:1.5'; the keys there are p, base"),
        ("noise:1.5", r"p: .* less than or equal to 1 \(got '1.5'\)"),
        ("onnx:f,size=1.5", "size: .* a valid integer"),
        ("{onnx: {file: f, size: true}}", "size: True is no number"),
        ("onnx:f,scale=2", "scale: .* 'max' or '255'"),
        ("shuffled:base=(full", "parentheses do not match"),
        ("{full: {}, center: {}}", "or the name alone"),
        ("{full: [}", "not valid YAML"),
        ("no.such.method", "cannot be imported"),
        ("shuffled:base=center,base=full", "the key 'base' stands twice"),
        ("noise:0.5,p=0.3", "the key 'p' stands twice"),
        ("shuffled:base=ful", "did you mean 'full'"),
        ("{cache: d}", r"cache is called png now: write \{png: DIR\}"),
        ("{noise: {p: 0.1, base: {cache: d}}}", r"cache is called png now: write \{png: DIR\}"),
    ],
)
def test_a_wrong_text_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_spec(text)


def test_parameters_follow_a_functions_signature() -> None:
    def method(
        rgb: Pixels,
        *,
        sigma: Annotated[float, Field(ge=0)] = 0.5,
        rounds: int = 3,
        sharp: bool = True,
    ) -> None: ...

    table = {"m": parameters_of(method)}.__getitem__
    assert dict(parse("m", table).parameters) == {"sigma": 0.5, "rounds": 3, "sharp": True}
    spec = parse("m:sharp=0,sigma=2,rounds=4", table)
    assert parse("{m: {sharp: false, sigma: 2, rounds: 4}}", table) == spec
    assert dict(spec.parameters) == {"sigma": 2.0, "rounds": 4, "sharp": False}
    with pytest.raises(ConfigError, match=r"rounds: .* integer.*4\.5"):
        parse("m:rounds=4.5", table)
    with pytest.raises(ConfigError, match=r"sigma: .* greater than or equal to 0"):
        parse("m:sigma=-1", table)


@pytest.mark.parametrize("text", ["heuristic", "center", "full"])
def test_methods_make_a_map_an_image_of_any_shape(text: str) -> None:
    spec = parse_spec(text)
    try_method(spec)
    assert open_method(spec) is open_method(parse_spec(text))
    images = [photo(1), photo(2, height=100, width=31), np.full((1, 300, 3), 90, np.uint8)]
    softs = open_method(spec)(images)
    for soft, rgb in zip(softs, images, strict=True):
        assert soft.dtype == np.float32 and soft.shape[0] == soft.shape[1]
        np.testing.assert_array_equal(soft, open_method(spec)([rgb])[0])


def test_methods_that_look_masks_up_make_no_maps() -> None:
    for text in ("shuffled", "noise:0.1", "png:x"):
        with pytest.raises(ConfigError, match="does not make masks from images"):
            open_method(parse_spec(text))


def test_a_missing_network_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*gone.safetensors; .*make masks-train"):
        open_method(parse_spec(f"selftrained:{tmp_path}/gone.safetensors"))
    with pytest.raises(DataError, match=r"no file .*gone.onnx; give an existing file"):
        method_facts(parse_spec(f"onnx:{tmp_path}/gone.onnx"))


def test_facts_hold_all_parameters_and_no_place_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"weights")
    facts = method_facts(parse_spec(f"noise:0.2,base=onnx:{tmp_path}/net.onnx"))
    base = facts["parameters"]["base"]
    assert facts["supervision"] == base["supervision"] == "external"
    assert base["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert base["parameters"]["file"] == "net.onnx" and base["parameters"]["size"] == 320
    assert str(tmp_path) not in str(facts)
    assert facts["version"] != base["version"] and len(base["version"]) == 12
    assert method_facts(parse_spec("heuristic"))["supervision"] == "none"
    assert method_facts(parse_spec("shuffled:base=png:x"))["supervision"] == "unknown"


def left_half(rgb: Pixels) -> Map:
    soft = np.zeros((64, 64), np.float32)
    soft[:, :32] = 1
    return soft


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replace all methods: images of 7 rows fail, those of 9 rows give NaN; record the batches."""
    sizes: list[int] = []

    def maps(images: Sequence[Pixels]) -> list[Map]:
        sizes.append(len(images))
        if any(len(rgb) == 7 for rgb in images):
            raise RuntimeError("seven")
        return [left_half(rgb) + np.float32(np.nan if len(rgb) == 9 else 0) for rgb in images]

    def opened(spec: MethodSpec) -> object:
        return maps if spec.name == "heuristic" else open_method(spec)

    monkeypatch.setattr(runner, "open_method", opened)
    return sizes


def masks_of(heights: list[int], *methods: str) -> list[MaskResult]:
    origins = [
        LazyImage(MaskRequest(f"{height}", photo(height, height=height)), side_px=512)
        for height in heights
    ]
    return find_masks(origins, [parse_spec(text) for text in methods])


def test_a_network_gets_all_images_at_once(calls: list[int]) -> None:
    for found in masks_of([20, 30, 40], "heuristic"):
        np.testing.assert_array_equal(found.mask, left_half(photo(0)) > 0.5)
        assert not found.stand_in and not found.problem
    assert calls == [3]


def test_odd_maps_are_brought_to_the_frame_that_caches_keep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soft = np.zeros((96, 96), np.float32)
    soft[:, :35] = 1
    monkeypatch.setattr(runner, "open_method", lambda spec: lambda images: [soft] * len(images))
    (found,) = masks_of([20], "heuristic")
    np.testing.assert_array_equal(found.mask, resize_mask(soft > 0.5, size=128))


@pytest.mark.parametrize(
    ("height", "reason"),
    [(7, "heuristic: RuntimeError: seven"), (9, "heuristic: ValueError: a map has values outside")],
)
def test_one_image_that_fails_gets_a_fall_back(calls: list[int], height: int, reason: str) -> None:
    good, bad, other = masks_of([20, height, 40], "heuristic", "full")
    assert bad.mask.all()
    assert bad.problem.startswith(reason) and bad.problem.endswith("; full serves")
    for found in (good, other):
        np.testing.assert_array_equal(found.mask, left_half(photo(0)) > 0.5)
        assert not found.problem


def test_where_all_fail_the_centre_ellipse_serves(calls: list[int]) -> None:
    (found,) = masks_of([7], "heuristic")
    np.testing.assert_array_equal(found.mask, centre_ellipse(128))
    assert found.stand_in and found.problem.endswith("the centre ellipse serves")


def test_a_method_that_ends_its_program_does_not_end_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a conversion would stop with the exit code 0 and write nothing."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "leaving.py").write_text("def find(rgb):\n    raise SystemExit(0)\n")
    spec = parse_spec("leaving.find")
    with pytest.raises(DataError, match=r"leaving.find fails on a plain picture .*sys.exit.0"):
        try_method(spec)
    (found,) = find_masks([LazyImage(MaskRequest("x", photo(1)), side_px=64)], [spec])
    assert found.stand_in and found.problem.startswith("leaving.find: RuntimeError: it calls sys.")


def test_a_method_that_fails_on_every_image_is_an_error_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(spec: MethodSpec) -> object:
        return lambda images: [np.zeros((4, 5), np.float32)] * len(images)

    monkeypatch.setattr("preprocess.masks.registry.open_method", broken)
    with pytest.raises(HarlError, match=r"heuristic fails on a plain picture .*not square"):
        try_method(parse_spec("heuristic"))


def stored(task: Task, store: str, *, size: int = 64, side: int = 512) -> npt.NDArray[np.bool_]:
    settings = ConversionSettings(side, 90, size, parse_spec("heuristic"), Store(store))
    (sample,) = convert([task], settings)
    assert isinstance(sample, Sample) and not sample.reencoded
    return unpack_mask(np.frombuffer(sample.mask, np.uint8), size=size)


def test_masks_are_made_from_the_shrunk_image_in_every_store(tmp_path: Path) -> None:
    rough = np.random.default_rng(0).integers(0, 60, (90, 120, 3), dtype=np.uint8)
    path = save(photo(3, height=90, width=120) // 2 + rough, tmp_path / "a.jpg", quality=80)
    task = Task("a.jpg", 0, path)
    expected = find_mask(runner.decode_image(path, side_px=512).rgb, "heuristic")[0]
    for store in ("jpg", "raw", "passthrough"):
        np.testing.assert_array_equal(stored(task, store), resize_mask(expected, size=64))
    pixels = photo(4, height=1200, width=900)
    halved = runner.shrink(runner.shrink(pixels, side_px=700), side_px=runner.INPUT_PX)
    expected = resize_mask(find_mask(halved, "heuristic")[0], size=24)
    np.testing.assert_array_equal(stored(Task("b", 0, pixels), "jpg", size=24, side=700), expected)


def test_workers_have_one_thread() -> None:
    found = ordered_map(torch_threads, [0], workers=1, describe=str)
    assert list(found) == [1]


@pytest.mark.parametrize("name", MASK_METHODS)
def test_every_parameter_of_every_method_is_taken_at_its_documented_default(name: str) -> None:
    needed = {"file": "x", "folder": "x", "run": "x", "p": "0.2"}
    fields = MASK_METHODS[name].parameters.model_fields
    words = {
        key: needed[key] if one.is_required() else written(one.default)
        for key, one in fields.items()
    }
    short = [words[key] for key, one in fields.items() if one.is_required()]
    whole = parse_spec(f"{name}:" + ",".join(f"{key}={word}" for key, word in words.items()))
    assert whole == parse_spec(":".join([name, *short]))


def written(default: object) -> str:
    """Return a parameter's default as the older form has it."""
    return "/".join(map(str, default)) if isinstance(default, tuple) else str(default)


@pytest.mark.parametrize("name", MASK_METHODS)
def test_every_number_of_every_method_has_a_range(name: str) -> None:
    schema = MASK_METHODS[name].parameters.model_json_schema()
    for key, one in schema["properties"].items():
        number = one.get("items", one)
        if number.get("type") in ("integer", "number"):
            assert {"minimum", "maximum"} <= number.keys(), key


def test_a_method_from_outside_the_package_serves_by_its_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_masks.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    image_folder(tmp_path / "set")
    options = ["--mask-method", "{my_masks.bright: {level: 0.4}}", "--workers", "1"]
    assert beton.main(["--data", f"{tmp_path}/set", "--out", f"{tmp_path}/out", *options]) == 0
    facts = read_manifest(tmp_path / "out/train.beton").mask
    assert facts["method"] == "my_masks.bright" and facts["parameters"] == {"level": 0.4}
    assert facts["fallbacks"] == 0 and len(facts["version"]) == 12
    assert facts["supervision"] == "unknown"
    monkeypatch.setitem(MASK_METHODS, "bright", find_method("my_masks.bright"))
    expected = find_mask(photo(1), "{my_masks.bright: 0.5}")[0]
    np.testing.assert_array_equal(find_mask(photo(1), "{bright: 0.5}")[0], expected)
    with pytest.raises(ConfigError, match=r"level: .* less than or equal to 1"):
        parse_spec("{bright: 2}")


OUTSIDE = """
from typing import Annotated
import cv2
import numpy as np
from pydantic import Field

def bright(rgb, *, level: Annotated[float, Field(ge=0, le=1)]):
    grey = cv2.resize(rgb, (64, 64)).mean(axis=2) / 255
    return (grey > level).astype(np.float32)
"""


def test_parameters_of_a_function_from_outside_may_be_called_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as what files and bases of methods in the package are called."""
    text = OUTSIDE.replace(
        "level: Annotated[float, Field(ge=0, le=1)]", "file=None, folder=3, base=0.5"
    )
    (tmp_path / "odd_masks.py").write_text(text.replace("> level", "> base"))
    monkeypatch.syspath_prepend(tmp_path)
    image_folder(tmp_path / "set")
    options = ["--mask-method", "{odd_masks.bright: {base: 0.4}}", "--workers", "1"]
    assert beton.main(["--data", f"{tmp_path}/set", "--out", f"{tmp_path}/out", *options]) == 0
    facts = read_manifest(tmp_path / "out/train.beton").mask
    assert facts["parameters"] == {"file": None, "folder": 3, "base": 0.4}
    assert facts["fallbacks"] == 0 and facts["supervision"] == "unknown"


def test_what_leads_to_no_function_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "half_a_method.py").write_text("def find(rgb):\n    return rgb[\n")
    (tmp_path / "failing_method.py").write_text("1 / 0\n")
    (tmp_path / "ending_method.py").write_text("raise SystemExit(0)\n")
    for name, why in {
        "os.path": "AttributeError",
        "half_a_method.find": "SyntaxError",
        "failing_method.find": "ZeroDivisionError",
        "ending_method.find": "RuntimeError: it calls sys.exit.0",
        "builtins.int": "ValueError",
    }.items():
        with pytest.raises(ConfigError, match=f"'{name}' cannot be imported .{why}"):
            parse_spec(name)
