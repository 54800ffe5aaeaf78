"""The report in a browser: it renders at every width, its slider works, and it asks for nothing.

Needs Chromium. Where STEPDISTILL_REQUIRE_CHROMIUM is set, as `.ci/run` does, its absence fails
these tests; elsewhere it skips them. Those of accessibility need axe-core, too, whose file
STEPDISTILL_AXE names. One browser serves the whole file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browser import AXE, REQUIRE, Browser, axe, chromium
from PIL import Image
from test_report import report_of

from stepdistill.evaluation.report.report import ImageGrid, Report, Within, write_report

WIDTHS = (360, 768, 1440)
RIGHT, HOME, END = ("ArrowRight", 39), ("Home", 36), ("End", 35)
COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
LONG = "long/" * 40 + "unbroken" * 20


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(chromium()) as running:
        yield running


def coloured() -> ImageGrid:
    """A slider between pictures of one colour each; it starts with red on blue."""
    rows = [torch.tensor(c).view(3, 1, 1).expand(20, 3, 8, 8) / 127.5 - 1 for c in COLOURS.values()]
    return ImageGrid("Same noise", torch.stack(rows), list(COLOURS), pair=(0, 2))


def full() -> Report:
    """Everything a report may have, with names nobody should choose, and large images, too."""
    report = report_of(LONG)
    large = torch.linspace(-1, 1, 2 * 7 * 120 * 110).view(2, 7, 1, 120, 110)
    grids = [coloured(), *report.grids, ImageGrid("Large", large, ["teacher", LONG])]
    within = [*report.within, Within(f"{LONG} " * 9, {LONG: large[0, :4], "b": large[1, :4]})]
    suite = replace(report.suite, skipped={"fid-tf": LONG})
    return replace(report, suite=suite, grids=grids, within=within, config=f"key: {LONG}\n")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, full())
    return folder / "report.html"


# What can be wrong with a page that is open; each gives one line a fault.
CHECKS = """(async () => {
  const faults = [], wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) faults.push(`scrolls sideways: ${wide} > ${innerWidth}`);
  for (const image of document.images) {
    await image.decode().catch(() => {});
    if (!image.naturalWidth) faults.push(`no picture: ${image.alt}`);
  }
  for (const target of document.querySelectorAll("select, summary, input, button, a")) {
    const box = target.getBoundingClientRect();
    if (Math.min(box.width, box.height) < 40) faults.push(`small to touch: ${target.tagName}`);
  }
  for (const text of document.querySelectorAll("main *")) {
    const size = parseFloat(getComputedStyle(text).fontSize);
    if (text.innerText && size < 12) faults.push(`small to read: ${text.innerText}`);
  }
  return faults;
})()"""


def faults(browser: Browser, page: Path, width: int, dark: bool = False) -> list[str]:
    """Open a page and list all that is wrong with it."""
    browser.open(page, width, dark)
    found = list(browser.value(CHECKS))
    for event in browser.events:
        match event["method"], event["params"]:
            case "Log.entryAdded", {"entry": entry}:
                found.append(f"log: {entry['text']}")
            case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                found.append(f"exception: {details['exception']['description']}")
            case "Runtime.consoleAPICalled", {"args": said}:
                found.append(f"console: {said}")
            case "Network.requestWillBeSent", {"request": {"url": url}}:
                if url != page.as_uri() and not url.startswith("data:"):
                    found.append(f"request: {url}")
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_renders(browser: Browser, page: Path, width: int, dark: bool):
    assert faults(browser, page, width, dark) == []
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 300) == dark
    loaded = browser.value("[...document.images].filter(i => i.currentSrc).length")
    assert loaded == browser.value("document.images.length") > 20


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_nothing_keeps_people_from_reading(browser: Browser, page: Path, width: int, dark: bool):
    browser.open(page, width, dark)
    assert browser.violations(axe()) == []


def test_what_keeps_people_from_reading_is_seen(browser: Browser, page: Path, tmp_path: Path):
    faint = spoil(page, tmp_path, "--soft: #5d6778", "--soft: #c5cad3")
    text = faint.read_text(encoding="utf-8").replace(POLICY, OFF)
    faint.write_text(text.replace("<h1>", '<img src="data:,"><h1>'), encoding="utf-8")
    browser.open(faint, 1440)
    found = {line.partition(":")[0] for line in browser.violations(axe())}
    assert {"color-contrast", "image-alt"} <= found


def test_axe_is_skipped_only_where_nobody_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(AXE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="npm install axe-core"):
        axe()
    monkeypatch.setenv(AXE, "/nowhere/axe.min.js")
    with pytest.raises(FileNotFoundError):
        axe()


def spoil(page: Path, tmp_path: Path, old: str, new: str) -> Path:
    """A copy of the page with something replaced."""
    text = page.read_text(encoding="utf-8")
    assert old in text
    copy = tmp_path / "spoilt.html"
    copy.write_text(text.replace(old, new), encoding="utf-8")
    return copy


POLICY = '<meta http-equiv="Content-Security-Policy"'
OFF = "<meta name='was-policy'"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("<h1>", '<img src="http://example.org/a.png"><h1>', "Content Security Policy"),
        ("<h1>", '<b style="color: red">x</b><h1>', "Content Security Policy"),
        ("<h1>", "<script>1</script><h1>", "Content Security Policy"),
        ("for (const wipe", "nothing(); for (const wipe", "Content Security Policy"),
        ("<h1>", '<img src="data:image/png;base64,AAAA"><h1>', "no picture"),
        ("<h1>", '<svg width="2000"></svg><h1>', "scrolls sideways: 20"),
        ("<h1>", "<button>x</button><h1>", "small to touch: BUTTON"),
    ],
)
def test_a_spoilt_page_is_seen(
    browser: Browser, page: Path, tmp_path: Path, old: str, new: str, fault: str
):
    found = faults(browser, spoil(page, tmp_path, old, new), 360)
    assert any(fault in one for one in found), found


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("nothing()", "exception: ReferenceError"),
        ("console.error('x')", "console: "),
        ("fetch('http://example.org/x').catch(() => 0)", "request: http://example.org/x"),
        ("fetch('other.html').catch(() => 0)", "other.html"),
    ],
)
def test_what_a_script_does_wrong_is_seen(
    browser: Browser, page: Path, tmp_path: Path, script: str, fault: str
):
    open_to_all = spoil(page, tmp_path, POLICY, f"<script>{script}</script>{OFF}")
    found = faults(browser, open_to_all, 1440)
    assert any(fault in one for one in found), found


def shares(browser: Browser) -> dict[str, float]:
    """How much of the first slider's pictures each colour covers, seam and gaps left out."""
    box = browser.value(
        "(r => ({x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height, scale: 1}))"
        "(document.querySelector('.canvas').getBoundingClientRect())"
    )
    picture = Image.open(io.BytesIO(browser.screenshot(box))).convert("RGB")
    pixels = list(picture.get_flattened_data())
    counts = {name: pixels.count(colour) for name, colour in COLOURS.items()}
    assert sum(counts.values()) > 0.5 * len(pixels)
    return {name: count / sum(counts.values()) for name, count in counts.items()}


def near(red: float, lime: float, blue: float) -> object:
    return pytest.approx({"red": red, "lime": lime, "blue": blue}, abs=0.06)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_slider_wipes_by_keyboard(browser: Browser, page: Path, width: int):
    browser.open(page, width)
    assert shares(browser) == near(0.5, 0, 0.5)
    browser.value("document.querySelector('.canvas input').focus()")
    browser.press(*END)
    assert shares(browser) == near(1, 0, 0)
    browser.press(*HOME)
    assert shares(browser) == near(0, 0, 1)
    for _ in range(30):
        browser.press(*RIGHT)
    assert shares(browser) == near(0.3, 0, 0.7)


def test_the_slider_wipes_by_touch(browser: Browser, page: Path):
    browser.open(page, 360)
    browser.value("document.querySelector('.canvas').scrollIntoView({block: 'center'})")
    x, y, width, height = browser.value(
        "(r => [r.x, r.y, r.width, r.height])"
        "(document.querySelector('.canvas').getBoundingClientRect())"
    )
    middle = y + height / 2
    browser.drag((x + width / 2, middle), (x + 0.8 * width, middle))
    assert shares(browser) == near(0.8, 0, 0.2)


def test_either_side_shows_the_sampler_that_is_chosen(browser: Browser, page: Path):
    browser.open(page, 1440)
    choose = (
        "(([side, index]) => { const s = document.querySelectorAll('select')[side];"
        "s.selectedIndex = index; s.dispatchEvent(new Event('input', {bubbles: true})) })"
    )
    sides = "[...document.querySelectorAll('.sides')[0].innerText.matchAll(/left|right/g)].join()"
    assert browser.value(sides) == "left,right"
    browser.value(f"{choose}([1, 1])")
    assert shares(browser) == near(0.5, 0.5, 0)
    browser.value(f"{choose}([0, 2])")
    assert shares(browser) == near(0, 0.5, 0.5)
    browser.value(f"{choose}([1, 2])")  # a sampler against itself is shown whole
    assert shares(browser) == near(0, 0, 1)


def test_without_scripts_the_first_pair_is_shown(browser: Browser, page: Path):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page, 360)
        assert shares(browser) == near(0.5, 0, 0.5)
        hidden = "getComputedStyle(document.querySelector('.canvas input')).display"
        assert browser.value(hidden) == "none"
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def test_a_missing_browser_fails_where_it_is_required(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv(REQUIRE, "1")
    with pytest.raises(pytest.fail.Exception, match="no Chromium"):
        chromium()
    monkeypatch.delenv(REQUIRE)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        chromium()
