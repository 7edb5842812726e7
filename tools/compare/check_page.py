"""Opens the page of `navicache compare` in a headless browser and uses it as a reader would.

    pip install playwright
    python tools/compare/check_page.py DIR/index.html [--shots FOLDER]

Asserts that videos play, and in step; that scrubber, wipe, difference, sorting, choices and keys work; that nothing is written to the console
as an error and nothing is asked of the network; that 390 pixels need no scrolling to the side. With --shots, writes screenshots.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
FRAMES = "player.cells.map((cell) => cell.at)"
PIXELS = """() => { const c = document.getElementById('canvas');
    return Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data); }"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--shots", type=Path)
    options = parser.parse_args()
    found = [path for path in map(shutil.which, BROWSERS) if path]
    if not found:
        sys.exit(f"expected one of {', '.join(BROWSERS)} to be installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0])
        for name, setting in {
            "light": {"color_scheme": "light"},
            "dark": {"color_scheme": "dark"},
            "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}},
            "phone-dark": {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}},
        }.items():
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **setting})
            check(context.new_page(), options.page, name, options.shots)
            context.close()
        browser.close()


def until(page, condition: str) -> None:
    """Waits from outside: the page's policy does not let playwright evaluate text inside of it."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never: {condition}; {page.evaluate(FRAMES)}")


def check(page, path: Path, name: str, shots: Path | None) -> None:
    address = path.resolve().as_uri()
    told, asked = [], []
    page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    frames = page.evaluate("data.frames")

    # Videos play by themselves, all of them the same frame, give or take the one that is being drawn.
    until(page, "player.playing && player.cells.every(({ video }) => video.readyState >= 2 && !video.paused)")
    seen, apart = set(), 0
    for _ in range(40):
        at = page.evaluate(FRAMES)
        seen.add(at[0])
        distance = max(at) - min(at)
        apart = max(apart, min(distance, frames - distance))
        page.wait_for_timeout(50)
    assert len(seen) > min(frames, 10) // 2, f"videos stand still: {seen}"
    assert apart <= 2, f"{apart} frames apart"

    # The scrubber sets one frame in all.
    def scrub(frame: int) -> None:
        page.evaluate(f"const s = document.getElementById('scrub'); s.value = {frame}; s.dispatchEvent(new Event('input'))")
        until(page, f"player.cells.every(({{ video, at }}) => at === {frame} && !video.seeking)")

    for frame in [0, frames - 1, frames // 2]:
        scrub(frame)
        exact = page.evaluate("player.cells.map(({ video }) => Math.floor(video.currentTime * data.fps))")
        assert set(exact) == {frame}, f"{exact}, expected {frame}"
    until(page, f"document.getElementById('canvas').dataset.frame === '{frames // 2}'")

    # Keys, where nothing else has the focus.
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("player.frame") == (frames // 2 + 1) % frames
    page.keyboard.press("Space")
    assert page.evaluate("player.playing")
    page.keyboard.press("Space")
    assert not page.evaluate("player.playing")
    scrub(frames // 2)

    # Of files beside the page, the browser shows pixels but does not tell them.
    linked = not page.evaluate("data.embedded")

    def pixels():
        return None if linked else page.evaluate(PIXELS)

    # The wipe: all uncached on one side, all of the method on the other.
    def wipe(to: int):
        page.evaluate(f"const w = document.getElementById('wipe'); w.value = {to}; w.dispatchEvent(new Event('input'))")
        return pixels()

    last = page.evaluate("document.getElementById('against').options.length - 1")
    page.select_option("#against", index=last)
    uncached, cached = wipe(100), wipe(0)
    middle = wipe(50)
    assert linked or middle not in (cached, uncached) or cached == uncached, "the wipe changes nothing"

    # The difference is |a - b|, amplified.
    page.check("input[name=view][value=difference]")
    page.select_option("#gain", "4")
    difference = pixels()
    for a, b, d in zip(uncached or [], cached or [], difference or [], strict=True):
        assert a == b == d == 255 or abs(min(255, 4 * abs(a - b)) - d) <= 4, (a, b, d)
    page.select_option("#gain", "8")
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
        page.locator("[aria-labelledby=h-stage]").screenshot(path=shots / f"{name}-difference.png")

    # Flicker shows one and then the other, each as the wipe does; zoomed, a part of it, which keys move.
    page.check("input[name=view][value=flicker]")
    if not linked:
        seen = []
        for _ in range(40):
            seen.append(pixels())
            page.wait_for_timeout(60)
        assert uncached in seen and (cached in seen), "flicker shows only one of the two"
    page.check("input[name=view][value=wipe]")
    wipe(100)
    page.select_option("#zoom", "4")
    page.wait_for_timeout(100)
    zoomed = pixels()
    assert linked or zoomed != uncached, "the zoom changes nothing"
    page.focus("#frame")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("shown.x") < 0.5 and page.evaluate("player.frame") == frames // 2, "keys move the part that is shown"
    if shots:
        page.locator("[aria-labelledby=h-stage]").screenshot(path=shots / f"{name}-zoom.png")
    page.select_option("#zoom", "1")
    wipe(50)

    # What can be taken away.
    for button in ["table.csv", "table.tex", "frontier.svg", "frontier.png", "strips.svg", "strips.png"]:
        with page.expect_download() as started:
            page.get_by_role("button", name=button, exact=True).click()
        file = Path(started.value.path())
        size = file.stat().st_size
        assert started.value.suggested_filename == button and size > 200, f"{button}: {size} bytes"
        assert not button.endswith("png") or file.read_bytes().startswith(b"\x89PNG"), button
        if shots and name == "light":
            shutil.copy(file, shots / button)
    if not linked:
        with page.expect_download() as started:
            page.get_by_role("button", name="This frame of all methods, PNG").click()
        assert Path(started.value.path()).read_bytes().startswith(b"\x89PNG")
        if shots and name == "light":
            shutil.copy(started.value.path(), shots / "frame.png")

    # Sorting, and the choices that the address keeps.
    page.get_by_role("button", name="PSNR", exact=True).click()
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("PSNR")
    prompts, seeds = page.evaluate("[data.prompts.length, data.seeds.length]")
    page.select_option("#prompt", index=prompts - 1)
    page.select_option("#seed", index=seeds - 1)
    scrub(frames // 2)
    kept = page.evaluate("location.hash")
    page.goto("about:blank")
    page.goto(address + kept)
    assert page.evaluate("[shown.prompt, data.seeds.indexOf(shown.seed), shown.against]") == [prompts - 1, seeds - 1, last + 1]
    until(page, "player.cells.every(({ video }) => video.readyState >= 2)")
    scrub(frames // 2)

    # Nothing sticks out to the side.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than the window"

    # Curves answer to the pointer.
    curve = page.locator("#curves svg").first
    curve.scroll_into_view_if_needed()
    curve.hover(position={"x": 60, "y": 50})
    if shots:
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=shots / f"{name}-top.png")
        # Everything at once, in a window as tall as the page.
        height = page.evaluate("document.documentElement.scrollHeight")
        size = page.viewport_size
        page.set_viewport_size({"width": size["width"], "height": height})
        page.screenshot(path=shots / f"{name}.png")
        page.set_viewport_size(size)
        if name == "light":
            page.pdf(path=shots / "print.pdf", format="A4", print_background=False)

    outside = [url for url in asked if not url.startswith((address, "blob:", "data:", "about:"))]
    if linked:
        outside = [url for url in outside if not url.startswith("file:")]
    assert not outside, f"asked for {outside}"
    assert not told, told
    print(f"{name}: good ({apart} frames apart at most)")


if __name__ == "__main__":
    main()
