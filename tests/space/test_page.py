"""The page in a real browser: both journeys, errors, two visitors, keyboard, phone, light and dark."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.io import read

pytestmark = pytest.mark.slow

MD = Path(__file__).parents[1] / "data" / "md"
MOLECULES = Path(__file__).parents[1] / "data" / "molecules"
READY = "#{}-viewer .zoo-viewer[data-state=ready]"
SECONDS = 45_000  # ms; nothing here takes long, but the machine may be busy
GREEN, GREY = (0, 158, 115), (196, 196, 196)


class Visitor:
    """A page that notes everything which should not happen."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 1000}} | options))
        self.page = self.context.new_page()
        self.page.set_default_timeout(SECONDS)
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", self._request)
        self.host = url.split("//")[1].rstrip("/")
        self.page.goto(url)
        self.page.wait_for_selector("#denoise-run")

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _request(self, request: Any) -> None:
        if not re.match(rf"(data:|blob:|https?://{re.escape(self.host)}/)", request.url):
            self.outside.append(request.url)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name, exact=True).click()

    def upload(self, job: str, path: Path) -> None:
        clear = self.page.locator(f"#{job}-upload button[aria-label='Clear']")
        if clear.count():
            clear.click()
        self.page.set_input_files(f"#{job}-upload input[type=file]", str(path))
        self.page.wait_for_selector(f"#{job}-upload .filename:has-text('{path.suffix}')")

    def denoise(self, path: Path) -> None:
        self.upload("denoise", path)
        self.page.click("#denoise-run")

    def done(self, job: str) -> None:
        self.page.wait_for_selector(f"#{job}-status .zs-notice:has-text('Done')")
        self.page.wait_for_selector(READY.format(job))

    def problem(self, job: str) -> str:
        self.page.wait_for_selector(f"#{job}-status .zs-problem")
        return str(self.page.inner_text(f"#{job}-status .zs-problem"))

    def download(self, job: str, ending: str, folder: Path) -> Path:
        with self.page.expect_download() as download:
            self.page.click(f"#{job}-files a[download$='{ending}']")
        target = folder / download.value.suggested_filename
        download.value.save_as(target)
        return target

    def picture(self, selector: str) -> np.ndarray[Any, Any]:
        from PIL import Image

        shot = self.page.locator(selector).screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=float)


@pytest.fixture
def visitor(browser: Any, page_url: str) -> Iterator[Visitor]:
    made = Visitor(browser, page_url)
    yield made
    made.context.close()
    assert not made.errors
    assert not made.outside


def share_of(picture: np.ndarray[Any, Any], color: tuple[int, int, int]) -> float:
    """Of the pixels that have the hue of this colour, whatever their shade."""
    norm = np.linalg.norm(picture, axis=-1) * np.linalg.norm(color)
    alike = (picture @ np.array(color)) / np.maximum(norm, 1e-9) > 0.995
    strong = np.ptp(picture, axis=-1) > 40
    return float((alike & strong).mean())


def test_from_an_upload_to_the_denoised_file(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.page
    assert page.title() == "zoo"
    assert "Nothing here yet" in page.inner_text("#denoise-viewer")
    visitor.denoise(MD / "Al-1.60.extxyz.gz")  # a melt, and then a crystal: results replace each other
    visitor.done("denoise")
    visitor.denoise(MD / "Fe-1.00.extxyz.gz")
    page.wait_for_selector("#denoise-numbers:has-text('bcc')")
    visitor.done("denoise")
    assert "bcc 100.00 %" in page.inner_text("#denoise-bars")
    assert page.locator("#denoise-viewer .zv-canvas canvas").count() == 2
    assert page.get_attribute("#denoise-viewer .zoo-viewer", "data-smooth") == "false"  # there is no GPU
    assert "Å" in page.inner_text("#denoise-facts")
    assert page.locator("#denoise-curve svg").count() == 1
    page.wait_for_selector("#denoise-files a[download$='.png']")
    structure = visitor.download("denoise", ".extxyz", tmp_path)
    atoms = read(structure)
    assert set(atoms.arrays["site_type"]) == {3}
    assert visitor.download("denoise", ".png", tmp_path).read_bytes().startswith(b"\x89PNG")


def test_what_is_drawn_is_the_crystal(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#example-aluminium")
    visitor.done("denoise")
    note = page.inner_text("#denoise-viewer .zv-note")
    assert "1,500 atoms nearest to the middle, of 2,048" in note
    before, after = (f"#denoise-viewer .zv-panel:nth-child({k}) .zv-canvas" for k in (1, 2))
    assert share_of(visitor.picture(after), GREEN) > 0.05
    assert share_of(visitor.picture(before), GREEN) < 0.75 * share_of(visitor.picture(after), GREEN)
    legend = page.inner_text("#denoise-viewer .zv-legend")
    assert "fcc" in legend
    assert "simple cubic" not in legend
    # the slider goes back to what was given
    assert page.get_attribute("#denoise-viewer .zoo-viewer", "data-frame") == "6"
    page.focus("#denoise-viewer .zv-slider")
    page.keyboard.press("Home")
    assert page.get_attribute("#denoise-viewer .zoo-viewer", "data-frame") == "0"
    assert page.inner_text("#denoise-viewer .zv-told") == "as given"
    assert share_of(visitor.picture(after), GREEN) == pytest.approx(
        share_of(visitor.picture(before), GREEN), rel=0.1
    )


def test_cameras_are_linked_and_can_be_turned_from_the_keyboard(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#example-grain-boundary")
    visitor.done("denoise")
    page.focus("#denoise-viewer .zv-slider")
    page.keyboard.press("Home")  # both panels show the same
    panels = [f"#denoise-viewer .zv-panel:nth-child({k}) .zv-canvas" for k in (1, 2)]
    first = [visitor.picture(panel) for panel in panels]
    page.focus(panels[0])
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "+"):
        page.keyboard.press(key)
    turned = [visitor.picture(panel) for panel in panels]
    assert np.abs(turned[0] - first[0]).mean() > 2
    inner = np.s_[8:-8, 8:-8]  # the frame of the one in focus is not the other's
    assert np.abs(turned[0][inner] - turned[1][inner]).mean() < 1.5
    page.keyboard.press("0")
    page.locator("#denoise-viewer .zv-slider").focus()
    again = [visitor.picture(panel) for panel in panels]
    assert np.abs(again[1] - first[1]).mean() < 0.5


def test_everything_can_be_reached_by_the_keyboard_alone(visitor: Visitor) -> None:
    page = visitor.page
    page.focus("#example-ice")
    page.keyboard.press("Enter")
    visitor.done("denoise")
    page.wait_for_selector("#denoise-run:enabled")  # the picture is there, too
    reached = set()
    page.focus("#denoise-run")
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("(document.activeElement.className + ' ' + document.activeElement.id).toString()")
        )
    text = " ".join(reached)
    for part in ("example-aluminium", "zv-canvas", "zv-slider", "zv-button"):
        assert part in text, part


def test_from_a_molecule_to_its_trajectories(visitor: Visitor, tmp_path: Path) -> None:
    import mdtraj

    page = visitor.page
    visitor.tab("Roll out a molecule")
    visitor.upload("rollout", MOLECULES / "in-water.gro")
    page.fill("#rollout-steps input[type=number]", "150")
    page.click("#rollout-run")
    page.wait_for_selector("#rollout-status:has-text('ns/day')")
    visitor.done("rollout")
    assert page.locator("#rollout-maps svg").count() == 1
    assert "never" in page.inner_text("#rollout-maps") or "no checkpoint has seen" in page.inner_text(
        "#rollout-maps"
    )
    assert page.locator("#rollout-series svg").count() == 1
    report = page.inner_text("#rollout-report")
    for part in ("Validity report", "proposals redrawn", "ns/day", "16 walkers × 150 steps"):
        assert part in report
    page.focus("#rollout-viewer .zv-slider")
    page.keyboard.press("Home")
    assert page.inner_text("#rollout-viewer .zv-told") == "0 ps"
    xtc = visitor.download("rollout", "-00.xtc", tmp_path)
    pdb = visitor.download("rollout", ".pdb", tmp_path)
    assert mdtraj.load(str(xtc), top=str(pdb)).n_frames == 151
    everything = visitor.download("rollout", ".zip", tmp_path)
    with zipfile.ZipFile(everything) as archive:
        assert sum(name.endswith(".xtc") for name in archive.namelist()) == 16


def test_a_running_rollout_can_be_stopped(visitor: Visitor) -> None:
    page = visitor.page
    visitor.tab("Roll out a molecule")
    page.fill("#rollout-steps input[type=number]", "200")
    page.click("#start-alanine-c7eq")
    page.wait_for_selector("#rollout-status progress")
    page.click("#rollout-stop")
    page.wait_for_selector("#rollout-status :text('Stopped.')")
    page.wait_for_timeout(3000)
    assert "Stopped." in page.inner_text("#rollout-status")
    page.click("#start-alanine-c7ax")
    visitor.done("rollout")


def test_one_job_at_a_time_and_then_the_next(visitor: Visitor) -> None:
    page = visitor.page
    joined: list[str] = []
    page.on("request", lambda request: joined.append(request.url) if "/queue/join" in request.url else None)
    visitor.tab("Roll out a molecule")
    page.fill("#rollout-steps input[type=number]", "100")
    starters = page.locator("#rollout-run, [id^=start-]")
    assert starters.count() > 2
    page.dblclick("#start-alanine-c7eq")
    page.wait_for_selector("#rollout-status progress")
    assert [starters.nth(k).is_disabled() for k in range(starters.count())] == [True] * starters.count()
    assert page.locator("#rollout-stop").is_enabled()
    visitor.done("rollout")
    assert len(joined) == 1
    page.fill("#rollout-steps input[type=number]", "10")
    page.click("#start-alanine-c7eq")
    page.wait_for_selector("#rollout-report:has-text('16 walkers × 10 steps')")
    page.wait_for_selector("#rollout-stop:disabled")
    assert [starters.nth(k).is_disabled() for k in range(starters.count())] == [False] * starters.count()
    assert len(joined) == 2


def test_mistakes_are_told_in_one_line_and_the_page_goes_on(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.page
    page.click("#denoise-run")
    assert "nothing to work on: upload a structure, or pick one of the examples" in visitor.problem("denoise")
    evil = tmp_path / "<img src=x onerror=alert(1)>.xyz"
    evil.write_text("not a structure\n")
    visitor.denoise(evil)
    page.wait_for_selector("#denoise-status .zs-problem:has-text('.xyz')")
    assert page.locator("#denoise-status img").count() == 0
    huge = tmp_path / "huge.xyz"
    huge.write_text("1000000\n\nCu 0 0 0\n")
    visitor.denoise(huge)
    page.wait_for_selector("#denoise-status .zs-problem:has-text('1,000,000 atoms')")
    page.click("#example-grain-boundary")
    visitor.done("denoise")


def test_two_visitors_do_not_see_each_others_data(browser: Any, page_url: str) -> None:
    one, other = Visitor(browser, page_url), Visitor(browser, page_url)
    one.page.click("#example-ice")
    other.page.click("#example-grain-boundary")
    one.done("denoise")
    other.done("denoise")
    assert "ice.extxyz.gz" in one.page.inner_text("#denoise-facts")
    assert "copper-grain-boundary" in other.page.inner_text("#denoise-facts")
    assert "ice Ih" in one.page.inner_text("#denoise-bars")
    assert "ice Ih" not in other.page.inner_text("#denoise-bars")
    third = Visitor(browser, page_url)
    assert "Nothing here yet" in third.page.inner_text("#denoise-viewer")
    for each in (one, other, third):
        each.context.close()
        assert not each.errors + each.outside


def test_cards_say_what_the_registry_says(visitor: Visitor) -> None:
    from playwright.sync_api import expect

    from zoo.registry import bundled_folder, records

    page = visitor.page
    visitor.tab("Checkpoints")
    for record in records():
        visitor.tab({"denoiser": "Denoisers", "score-dynamics": "Score dynamics"}[record.kind])
        visitor.tab(record.name)
        page.wait_for_selector(f"text={record.sha256}")
        # The editor that shows code fills itself after the text around it is there.
        code = f'from_pretrained("{record.name}")'
        expect(page.locator("[role=tabpanel]:visible >> nth=-1")).to_contain_text(code)
        text = page.inner_text("[role=tabpanel]:visible >> nth=-1")
        assert record.summary in text
        assert f"v{record.version}" in text
        assert "model-index" not in text  # the front matter is for the Hub
        shown = page.locator("[role=tabpanel]:visible >> nth=-1").locator(".prose img")
        pictures = len(list((bundled_folder(record) / "figures").glob("*.png")))
        expect(shown).to_have_count(pictures)
        for k in range(pictures):
            shown.nth(k).scroll_into_view_if_needed()
            picture = shown.nth(k).element_handle()
            page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture)
    visitor.tab("API")
    page.wait_for_selector("text=gradio_client")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(scheme: str, browser: Any, page_url: str) -> None:
    """Contrast of running text with what is behind it, by WCAG 2: at least 4.5."""
    visitor = Visitor(browser, page_url, color_scheme=scheme)
    page = visitor.page
    page.click("#example-grain-boundary")
    visitor.done("denoise")
    page.wait_for_selector("#denoise-run:enabled")  # what cannot be pressed may be pale
    ratios = page.evaluate(
        """() => {
        const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
        const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
          .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const behind = (node) => {
          for (let n = node; n; n = n.parentElement) {
            const c = rgb(getComputedStyle(n).backgroundColor);
            if (c.length === 3 || c[3] > 0.9) return c;
          }
          return [255, 255, 255];
        };
        const wanted = [".zs-head p", ".zs-limits", ".zs-or", ".zs-notice", ".zs-table td", ".zs-table th",
          ".zv-told", ".zv-legend li", ".zv-panel figcaption", ".zv-button", "#denoise-run", "#example-ice"];
        return wanted.map((each) => {
          const node = document.querySelector(each);
          const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))];
          return [each, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
        });
      }"""
    )
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = np.mean([float(x) for x in re.findall(r"[\d.]+", background)[:3]])
    assert (brightness > 128) == (scheme == "light")
    visitor.context.close()
    assert not {what: round(ratio, 2) for what, ratio in ratios if ratio < 4.5}
    assert not visitor.errors + visitor.outside


def test_on_a_phone_nothing_sticks_out(browser: Any, page_url: str) -> None:
    visitor = Visitor(
        browser, page_url, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True
    )
    page = visitor.page
    page.click("#example-grain-boundary")
    visitor.done("denoise")
    page.wait_for_selector("#denoise-files a[download$='.png']")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # and the result has come into view
    page.wait_for_function(
        "document.querySelector('#denoise-status').getBoundingClientRect().top < window.innerHeight"
    )
    small = page.evaluate(
        """() => [...document.querySelectorAll('button, input[type=range]')]
          .filter((b) => b.offsetParent && b.closest('#denoise-viewer, .zs-examples'))
          .map((b) => b.getBoundingClientRect().height).filter((h) => h < 28)"""
    )
    assert not small
    visitor.context.close()
    assert not visitor.errors + visitor.outside


def test_without_webgl_the_page_still_serves(page_url: str, browser: Any) -> None:
    visitor = Visitor(browser, page_url)
    visitor.page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null;")
    visitor.page.reload()
    visitor.page.click("#example-grain-boundary")
    visitor.page.wait_for_selector("#denoise-viewer .zoo-viewer[data-state=no-webgl]")
    assert "WebGL is off" in visitor.page.inner_text("#denoise-viewer")
    assert "fcc" in visitor.page.inner_text("#denoise-bars")
    visitor.context.close()
