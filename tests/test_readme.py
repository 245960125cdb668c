"""The commands of README and docs/, shortened and in folders of the test; and their links."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from harl_fast.tools.export import export_encoder
from tests.engine.saved import checkpoint

ROOT = Path(__file__).parents[1]
LIMIT_S = 1700
"""For one command, which may have to compile beside other programs."""

SHORTER = {
    "make setup": "",
    "make test": "TESTS=tests/test_rng.py JOBS=0",
    "make lint": "",
    "make beton": "",
    "make masks": "",
    "make pretrain": "EPOCHS=3",
    "make lineval": "EPOCHS=5",
    "make export": "",
    "make finetune": "EPOCHS=2",
    "make pictures": "",
    "make plan": "",
    ".venv/bin/python -m": "",
}
"""What is added to each command, by its first two words."""


PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def commands() -> list[str]:
    """Return each command of the pages' shell blocks once, comments dropped, lines joined."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    stripped = (" ".join(re.sub(r"\s+#.*", "", line).split()) for line in lines)
    return list(dict.fromkeys(line for line in stripped if line))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def run(command: str, work: Path) -> subprocess.CompletedProcess[str]:
    command = command.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    # `make test ARGS=...` is not meant for the commands that this test gives to make.
    outer = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "ARGS", "TESTS"}
    env = {name: value for name, value in os.environ.items() if name not in outer}
    env |= {"VENV": sys.prefix, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        command,
        shell=True,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    (work / "last.log").write_text(done.stdout)
    return done


def here(command: str, work: Path) -> str:
    """Put this test's folders in place of the README's."""
    places = {
        "/data/my_photos": work / "demo" / "source",
        "/data/imagenet_masks": work / "demo" / "source" / "masks",
        "/data/imagenet_ffcv": work / "imagenet",
        "/data/imagenet": work / "demo" / "source",
        "data/my_photos_masks": work / "masks",
        "data/my_photos": work / "photos",
        "runs/my_photos/eval/my_photos-cached": work / "run" / "eval" / "photos-cached",
        "runs/my_photos/eval/my_photos-cached-random": work / "run/eval/photos-cached-random",
        "runs/comparison": work / "comparison",
        "runs/my_photos": work / "run",
        "runs/my_photos_10pct": work / "tuned",
        "runs/paper": work / "run",
        "runs/plan.png": work / "plan.png",
        "exports/my_photos": work / "exported",
    }
    words = []
    for word in shlex.split(command):
        name, mark, value = word.rpartition("=")
        words.append(f"{name}{mark}{places.get(value, value)}")
    return " ".join(words)


@pytest.fixture(scope="module")
def demo(work: Path) -> str:
    """Return what `make demo` prints; its generated images serve the other commands too."""
    assert "make demo" in commands()
    places = f"--data {work / 'demo'} --run {work / 'demo_run'}"
    done = run(f"make demo QUICK=1 ARGS='{places}'", work)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_the_demo_prints_its_summary(demo: str) -> None:
    summary = demo.rpartition("\ndemo set: ")[2]
    assert summary.startswith("300 training and 100 validation images of 10 objects")
    for row in ("without masks: 8 steps", "with masks: 8 steps", "took"):
        assert re.search(rf"^{row} ", summary, flags=re.MULTILINE), summary
    for encoder in ("random", "without masks", "with masks"):
        figures = re.search(rf"^{encoder}((?: +[0-9]+[.][0-9]){{6}})$", summary, flags=re.MULTILINE)
        assert figures and all(0 <= float(each) <= 100 for each in figures[1].split()), summary
    for row in ("demo.json", "accuracy.png", "neighbours.png", "contact_sheet.png"):
        place = re.search(rf"^{row}: (.+)$", summary, flags=re.MULTILINE)
        assert place and Path(place[1]).exists(), summary


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_the_other_commands_do_what_they_say(demo: str, work: Path) -> None:
    found = [c for c in commands() if c != "make demo"]
    assert {c.split()[1] for c in found if c.startswith("make")} >= {"beton", "pretrain", "lineval"}
    for command in found:
        if "gpu.json" in command or "a100x8.json" in command or command == "make lint":
            continue  # a GPU's; see the next test; CI's own
        added = SHORTER[" ".join(command.split()[:2])]
        done = run(f"{here(command, work)} {added}", work)
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        assert not re.search(r"^\[20", done.stdout, re.MULTILINE)  # DeepSpeed's own lines
    assert (work / "photos" / "val.beton").exists() and (work / "imagenet" / "val.beton").exists()
    assert (work / "masks" / "masks.json").exists()
    assert (work / "comparison" / "report.html").exists()
    assert (work / "run/eval/photos-cached/pictures/projector/sprite.png").exists()
    assert (work / "run" / "lineval.json").exists()
    assert list((work / "tuned" / "eval").glob("*/result.json"))
    assert (work / "exported" / "model.safetensors").exists()


def test_the_python_of_the_readme_takes_an_exported_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, tensors = checkpoint(tmp_path / "run", arch="resnet18")
    export_encoder(tmp_path / "run", tmp_path / "out")
    export_encoder(tmp_path / "run", tmp_path / "tv", to="torchvision")
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for place, here in {
        "runs/my_photos": tmp_path / "run",
        "exports/my_photos": tmp_path / "out",
        "exports/paper-torchvision": tmp_path / "tv",
        "resnet50": "resnet18",
    }.items():
        block = block.replace(place, str(here))
    own, others = block.split("# For standard networks")
    monkeypatch.chdir(ROOT)
    found: dict[str, Any] = {}
    exec(own, found)
    features = found["model"](torch.zeros(2, 3, 64, 64))
    maps = found["encoder"](torch.zeros(2, 3, 64, 64))
    torch.testing.assert_close(maps.mean((2, 3)), features)
    exec(f"#{others}", found)
    resnet = found["resnet"].eval()
    resnet.fc = torch.nn.Identity()
    torch.testing.assert_close(resnet(torch.zeros(2, 3, 64, 64)), features)
    model = found["model"].eval()
    assert torch.equal(model.state_dict()["conv1.weight"], tensors["conv1.weight"])
    pooled = model.forward_head(model.forward_features(torch.zeros(2, 3, 64, 64)), pre_logits=True)
    torch.testing.assert_close(pooled, features)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_is_left(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"\b(RESULTS(?!=)|DEMO_MINUTES|TODO|TBD|XXX)\b", text)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_into_the_tree_lead_somewhere(name: str) -> None:
    """Those between the pages of docs/ are checked by `make lint`."""
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link]
    assert [link for link in inside if not (ROOT / link).exists()] == []


def test_the_a100_file_says_in_one_line_what_it_needs(work: Path) -> None:
    (command,) = [c for c in commands() if "a100x8.json" in c]
    command = command.replace("runs/paper", str(work / "refused"))
    done = run(command.replace("/data/imagenet_ffcv", str(work / "imagenet")), work)
    lines = [line for line in done.stdout.splitlines() if line.startswith("error:")]
    assert done.returncode != 0 and len(lines) == 1, done.stdout
    assert "[20" not in done.stdout.partition("error:")[0]  # the first line is none of DeepSpeed's
    for word in ("8", "cuda", "ds_configs/cpu.json"):
        assert word in lines[0].lower(), lines[0]
    assert not (work / "refused").exists()
