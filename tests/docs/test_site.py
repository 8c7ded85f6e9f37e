"""The documentation site: complete pages, numbers that stand elsewhere, code that runs, and the build."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import backlight
from backlight.errors import BacklightError
from backlight.methods import METHODS, method

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "site"))

import api_pages  # noqa: E402
import error_pages  # noqa: E402
import generated  # noqa: E402
import measured  # noqa: E402
import method_pages  # noqa: E402

HAND = ("quick-start.md", "adding.md", "scaling.md")
NUMBER = re.compile(r"(?<![\w.])[−-]?\d*\.\d+")
WITHOUT_CODE = re.compile(r"^```.*?^```$|^    .*$|`[^`]*`", flags=re.MULTILINE | re.DOTALL)

load = cache(backlight.load)


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_complete_page(name: str) -> None:
    kind, entry, page = method(name), method_pages.entries()[name], method_pages.page(name)
    assert all(entry[key].strip() for key in method_pages.REQUIRED)
    assert entry["family"] in method_pages.FAMILIES
    assert (DOCS / entry["guide"]).exists()
    assert kind.formula in page
    assert kind.source
    assert kind.source in page
    assert all(f"| `{setting}` |" in page for setting in kind.settings())
    for part in ("**Use it.**", "**When it misleads.**", "**Limits.**", "passes a sample", "completeness"):
        assert part in page
    assert len(method_pages.parts(kind)[0]) > 30
    picture = DOCS / "images" / "methods" / f"{name}.webp"
    assert 5_000 < picture.stat().st_size < 60_000


def test_no_page_is_of_a_method_that_is_gone() -> None:
    assert set(method_pages.entries()) == set(METHODS)
    assert {path.stem for path in (DOCS / "images" / "methods").iterdir()} == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_code_of_a_method_s_page_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlight, "load", load, raising=False)  # each network once
    try:
        load("dinov2_small" if name in method_pages.TOKENS else "efficientnet_lite0")
    except BacklightError as error:
        pytest.skip(str(error))
    (code,) = blocks(method_pages.page(name))
    code = re.sub(r"(n_\w+)=\d+", r"\1=5" if name in ("KernelSHAP", "LIME") else r"\1=1", code)
    if name not in method_pages.TOKENS:  # whose network takes one size only
        code = code.replace("- 1)[None]", "- 1)[None, :, 96:160, 96:160]")
    if name in ("ScoreCAM", "AblationCAM"):  # a pass a channel: of a layer that has few
        code = code.replace("(model)", '(model, layer="network.bn1")')
    scope: dict[str, object] = {}
    exec(code, scope)
    assert torch.isfinite(scope["found"].value).all()  # type: ignore[attr-defined]


def test_measured_numbers_are_those_of_the_tables() -> None:
    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("| SRD (input) |"))  # of the first network
    table = {(one.network, one.metric): one for one in measured.measured()}
    pointing = table["efficientnet_lite0", "Pointing"]
    assert pointing.values["SRD (input)"] == line.split("|")[2].strip(" *")
    best = max(
        (float(value), name) for name, value in pointing.values.items() if not name.startswith(measured.NO_METHOD)
    )
    assert pointing.rising
    assert pointing.cell(best[1]).endswith(f"(1 of {best_count(pointing)})")
    assert not table["mobilenet_v2", "Infidelity"].rising
    rows = {name for one in table.values() for name in one.values}
    for entry in method_pages.entries().values():
        assert set(entry.get("rows", ())) <= rows | {"Saliency"}
    assert pointing.cell("SRD (input)") in method_pages.page("SRD")


def best_count(table: measured.Measured) -> int:
    return sum(not name.startswith(measured.NO_METHOD) for name in table.values)


@pytest.mark.parametrize("name", ["which-method.md", "papers.md"])
def test_numbers_of_overviews_stand_on_the_pages_that_measured_them(name: str) -> None:
    measuring = [path for path in DOCS.glob("*.md") if path.name not in ("which-method.md", "papers.md")]
    others = "\n".join(path.read_text(encoding="utf-8") for path in measuring)
    known = {plain(number) for number in NUMBER.findall(others)}
    stated = NUMBER.findall(WITHOUT_CODE.sub("", (DOCS / name).read_text(encoding="utf-8")))
    assert len(stated) > 5
    assert [number for number in stated if plain(number) not in known] == []


def plain(number: str) -> str:
    return number.replace("−", "-").replace("-.", "-0.") if not number.startswith(".") else "0" + number


def test_every_exception_is_explained() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "backlight").rglob("*.py"))
    classes = re.findall(r"^class (\w+)\(([^)]*)\):", code, flags=re.MULTILINE)
    errors = {"BacklightError", "BacklightWarning"}
    for _ in range(3):  # of those below them
        errors |= {name for name, bases in classes if errors & set(re.findall(r"\w+", bases))}
    public = {name for name in errors if not name.startswith("_")}
    assert public == set(error_pages.exceptions()) == set(error_pages.entries())


@pytest.mark.parametrize("name", error_pages.entries())
def test_the_example_of_an_error_raises_it(name: str) -> None:
    entry = error_pages.entries()[name]
    assert entry["cause"]
    assert entry["fix"]
    assert len(error_pages.message(name)) > 5


def test_an_example_that_raises_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(error_pages.entries(), "InputError", {"example": "1 + 1"})
    with pytest.raises(AssertionError, match="InputError"):
        error_pages.message("InputError")


@pytest.mark.parametrize("name", HAND)
def test_code_of_pages_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        backlight.load("efficientnet_lite0")
    except BacklightError as error:
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)  # where pictures are written
    found = blocks((DOCS / name).read_text(encoding="utf-8"))
    assert found
    for block in found:
        exec(block, {})


def test_sums_of_scaling() -> None:
    text = (DOCS / "scaling.md").read_text(encoding="utf-8")
    scope: dict[str, object] = {}
    exec(blocks(text)[0], scope)
    count, GiB = scope["store_bytes"], 2**30
    rows = (("ResNet-50, 16", 15_104, 16), ("ViT-L, 24", 24_576, 24), ("ViT-L, MLPs", 98_304, 24))
    for name, channels, sites in rows:
        line = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
        sizes = [float(value) for value in re.findall(r"([\d.]+) [KG]iB", line)]
        every = [count(pictures, channels, sites=sites) / GiB for pictures in (50_000, 1_281_167)]  # type: ignore[operator]
        lean = count(1_281_167, channels, quantities=1, width=2, sites=sites) / GiB  # type: ignore[operator]
        assert sizes == [6 * channels * 4 / 1024, *(round(value, 1) for value in (*every, lean))]
    assert f"{24 * 197 * 1024 * 4 / 2**20:.1f} MiB a picture and quantity" in text.replace("\n", " ")
    assert f"{24 * 197 * 1024 * 4 * 1_281_167 / 2**40:.1f} TiB" in text
    assert f"the ViT-L's training set is {int(0.85 * 708.8)} GiB" in text
    assert f"| 3.3 s | {50_000 * 3.3 / 3600:.0f} h | {1_281_167 * 3.3 / 3600:,.0f} h |" in text


def test_a_store_has_the_bytes_that_scaling_counts(tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    from backlight.contributions import ActGrad, ContributionCollector
    from backlight.evaluation import TensorSamples
    from backlight.store import extract

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 5))
    pictures = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    collector = ContributionCollector(model.eval(), sites=("1",), algorithm=ActGrad(), target="top1")
    extract(collector, TensorSamples(pictures, targets=[0, 1, 2, 3]), tmp_path / "store", batch_size=2, block=4)
    group = zarr.open_group(tmp_path / "store" / "arrays.zarr", mode="r")
    held = {name: array.nbytes for name, array in group.members(max_depth=None) if hasattr(array, "nbytes")}
    rows = sum(size for name, size in held.items() if name.endswith(("/positive", "/negative")))
    scope: dict[str, object] = {}
    exec(blocks((DOCS / "scaling.md").read_text(encoding="utf-8"))[0], scope)
    assert rows == scope["store_bytes"](4, 8, classes=0)  # type: ignore[operator]
    assert held["samples/logits"] == 4 * 5 * 4


def test_the_api_has_what_backlight_gives() -> None:
    listed = {name for room in api_pages.ROOMS for name in api_pages.names(room)}
    given = {name for name in dir(backlight) if name not in ("errors", "methods")}
    assert given <= listed
    text = api_pages.page("store")
    assert "::: backlight.store.extraction.extract" in text


class Assets(HTMLParser):
    """What a browser fetches for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("src"):
            self.found.append(values["src"] or "")
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(values.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow  # it waits for the build
def test_the_site_is_whole(site: Path) -> None:
    for address in generated.addresses() | {path.name for path in DOCS.glob("*.md")}:
        assert (site / address).with_suffix(".html").exists(), address
    assert not (site / "site").exists()
    assert not list(site.rglob("*.toml"))


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 80
    for page in pages:
        assets = Assets()
        assets.feed(page.read_text(encoding="utf-8"))
        assert [one for one in assets.found if re.match(r"(https?:)?//", one)] == [], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_formulas_keep_their_angles(site: Path) -> None:
    """`<v, z>` is no tag."""
    assert "&lt;v_ij, z_j&gt;" in (site / "methods" / "SRD.html").read_text(encoding="utf-8")
    assert "u_pq &lt;v_q, A_p&gt;" in (site / "icat.html").read_text(encoding="utf-8")
    assert "&lt;x, pullback&gt;" in (site / "api" / "methods.html").read_text(encoding="utf-8")


def test_the_search_knows_methods_and_classes(site: Path) -> None:
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert '"location":"methods/SoftPullback.html"' in index
    assert "ContributionCollector" in index
    assert "UncoveredOperationError" in index


def test_the_extra_names_what_the_site_needs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert any(line.startswith("mkdocs-material") for line in extras["docs"])
