"""Opens the page of `navicache serve` in a headless browser and uses it as people would: by pointer, by keyboard, on a phone, in the dark.

    pip install playwright axe-playwright-python
    cargo build -p navicache && python3 tools/serve/check_page.py target/debug/navicache [--shots FOLDER]

A video is made end to end with its estimate before it; a reload in the middle finds it; one is stopped; two are compared, with their PSNR; a
wrong key; the server goes and comes back; a full gallery. No error on the console, no request to another host, nothing to scroll
to the side, and axe-core finds nothing. Skips what axe would say where it is not installed.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib

from playwright.sync_api import sync_playwright

from server import Server

BROWSERS = ["chromium", "chromium-browser", "google-chrome"]
LOOKS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 390, "height": 844}, "has_touch": True},
    "phone-dark": {"color_scheme": "dark", "viewport": {"width": 390, "height": 844}, "has_touch": True},
}
PROMPT = "a red circle bouncing on a navy background"


def axe_source():
    try:
        import axe_playwright_python
    except ImportError:
        return None
    return next(pathlib.Path(axe_playwright_python.__file__).parent.rglob("axe.min.js")).read_text()


class Page:
    """A page that is watched."""

    def __init__(self, browser, server, look, shots=None, axe=None):
        self.context = browser.new_context(**LOOKS[look])
        self.page, self.server, self.look, self.shots, self.axe = self.context.new_page(), server, look, shots, axe
        self.told, self.elsewhere, self.violations = [], [], 0
        self.page.on("console", lambda message: self.told.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("request", lambda request: None if request.url.startswith((server.url, "blob:", "data:")) else self.elsewhere.append(request.url))
        self.page.goto(server.url)

    def until(self, condition, patience=60):
        """From outside: the page's policy lets nothing be evaluated inside of it."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        if self.shots:
            self.page.screenshot(path=f"{self.shots}/{self.look}-failed.png", full_page=True)
        raise AssertionError(f"{self.look}: never: {condition}; {self.told}")

    def look_at(self, name):
        """A screenshot, axe, and the width."""
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{self.look}, {name}: it scrolls to the side"
        if self.shots:
            self.page.screenshot(path=f"{self.shots}/{self.look}-{name}.png", full_page=True)
        if self.axe:
            self.page.evaluate(self.axe)
            found = self.page.evaluate("axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) => violations.map(({ id, help, nodes }) => [id, help, nodes.map(({ html, failureSummary }) => html.slice(0, 200) + failureSummary)]))")
            assert not found, f"{self.look}, {name}: {json.dumps(found, indent=1)}"

    def end(self, allowed=()):
        told = [text for text in self.told if not any(word in text for word in allowed)]
        assert not told, f"{self.look}: {told}"
        assert not self.elsewhere, f"{self.look}: asked elsewhere: {self.elsewhere}"
        self.context.close()


def fill(page, **values):
    page.evaluate("document.querySelector('#make details').open = true")
    for field, value in values.items():
        page.fill(f"#{field}", str(value))


def noise(width, height):
    """A PNG that cannot be made smaller."""
    part = lambda name, data: len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    rows = b"".join(b"\0" + os.urandom(3 * width) for _ in range(height))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


CARDS = "document.querySelectorAll('#gallery > li').length"
NOW = "document.querySelectorAll('#now > li').length"


def use(watched):
    """From an empty page to two videos beside each other."""
    page, until = watched.page, watched.until
    until("document.querySelectorAll('#model option').length > 0")
    watched.look_at("empty")

    # Before it is sent, its estimate; what cannot be made is said there too.
    fill(page, prompt=PROMPT, size="64x64", seconds="2", seed="7", steps="20")
    until("/64x64, \\d+ frames, 20 steps: /.test($('estimate').textContent)")
    page.fill("#size", "33x64")
    until("/multiple/.test($('estimate').textContent)")
    page.fill("#size", "64x64")

    # Of a picture an estimate has to know its size alone.
    page.evaluate("""() => {
        const own = window.fetch;
        window.sent = 0;
        window.fetch = (url, options) => { window.sent = options?.body?.get?.("input_reference")?.size ?? window.sent; return own(url, options); };
    }""")
    page.set_input_files("#picture", {"name": "noise.png", "mimeType": "image/png", "buffer": noise(640, 480)})
    until("window.sent > 0")
    sent = page.evaluate("window.sent")
    assert sent < 20_000, f"{sent} bytes of a picture were sent for an estimate"
    page.click("#picture-off")

    # Made end to end, by the keyboard; a reload in the middle finds it.
    before = page.evaluate(CARDS)
    fill(page, size="160x160", seconds="4", steps="100", cache="none")  # long enough to be stopped
    page.focus("#prompt")
    page.keyboard.press("Control+Enter")
    until(f"{NOW} === 1 && /step [1-9]/.test($('now').textContent)")
    watched.look_at("under-way")
    page.reload()
    until(f"{NOW} === 1 && /step [1-9]/.test($('now').textContent)")
    # Stopped, by the keyboard.
    page.focus("#now button")
    page.keyboard.press("Enter")
    until(f"{NOW} === 0 && {CARDS} === {before + 1}")
    assert "stopped" in page.inner_text("#gallery > li:first-child")
    assert page.evaluate("document.activeElement.id") == "h-now", "the keyboard stays where it was"

    # Two at once, with the same seed.
    until("document.querySelectorAll('#model option').length > 0")
    fill(page, prompt=PROMPT, size="64x64", seconds="2", steps="20", cache="stride:faster", against="none")
    page.click("#send")
    until(f"{NOW} === 0 && {CARDS} === {before + 3}", patience=240)
    until("/ to make/.test($('estimate').textContent)")
    watched.look_at("gallery")
    first, second = page.locator("#gallery > li").nth(0), page.locator("#gallery > li").nth(1)
    first.get_by_text("Details").click()
    assert "speed-up" in first.inner_text()
    first.locator(".show").focus()
    page.keyboard.press("Enter")
    until("document.querySelector('#gallery video')?.readyState >= 2")
    first.get_by_role("button", name="Compare").click()
    second.get_by_role("button", name="Compare").click()
    until("!$('beside').hidden && /PSNR [\\d.]+.dB/.test($('closeness').textContent)")
    page.check("input[value=difference]")
    watched.look_at("difference")
    page.check("input[value=wipe]")
    page.focus("#wipe")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("pair.wipe") < 50
    said = page.inner_text("#closeness")
    page.click("#play")
    watched.look_at("beside")
    page.click("#beside-off")

    # Deleted, and the keyboard is at the next one.
    first.get_by_role("button", name="Delete").focus()
    page.keyboard.press("Enter")
    until(f"{CARDS} === {before + 2}")
    assert page.evaluate("document.activeElement !== document.body && $('gallery').contains(document.activeElement)")
    return said


def walk_by_tab(watched):
    """Every control is reached by Tab, and is seen to have the focus."""
    page = watched.page
    page.reload()  # Tab begins at the top
    watched.until("document.querySelectorAll('#model option').length > 0")
    seen = []
    for _ in range(200):
        page.keyboard.press("Tab")
        at = page.evaluate("""() => { const e = document.activeElement; if (e === document.body) return null;
            const target = e.matches('.unseen') ? e.closest('label') : e; const style = getComputedStyle(target);
            return [e.id || e.textContent.trim().slice(0, 20), style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2]; }""")
        if at is None:
            break
        seen.append(at)
    unseen = [name for name, visible in seen if not visible]
    assert not unseen, f"{watched.look}: no focus to be seen on {unseen}"
    names = [name for name, _ in seen]
    for wanted in ["prompt", "picture", "model", "size", "seconds", "seed", "die", "speed", "send"]:
        assert wanted in names, f"{wanted} is not reached by Tab: {names}"
    return len(seen)


def wrong_key(browser, program, shots, axe):
    with tempfile.TemporaryDirectory() as data:
        command = [program, "serve", "key", "new", "ann", "--keys", f"{data}/keys"]
        key = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        with Server(program, f"{data}/d", "--keys", f"{data}/keys") as server:
            watched = Page(browser, server, "light", shots, axe)
            watched.until("$('key-dialog').open")
            watched.look_at("key")
            watched.page.fill("#key", "nvk_ann_wrong")
            watched.page.keyboard.press("Enter")
            watched.until("$('key-dialog').open")
            watched.page.fill("#key", key)
            watched.page.keyboard.press("Enter")
            watched.until("document.querySelectorAll('#model option').length > 0 && !$('key-dialog').open")
            assert watched.page.evaluate("localStorage.length === 0 && sessionStorage.key !== null")
            watched.end(allowed=["401"])


def gone_and_back(browser, program, shots, axe):
    with tempfile.TemporaryDirectory() as data:
        server = Server(program, data).start()
        watched = Page(browser, server, "light", shots, axe)
        watched.until("document.querySelectorAll('#model option').length > 0")
        fill(watched.page, prompt=PROMPT, size="32x32", seconds="1", steps="100", cache="none")
        watched.page.click("#send")
        watched.until(f"{NOW} === 1 && /step/.test($('now').textContent)")
        server.kill()
        watched.until("!$('banner').hidden", patience=15)
        watched.look_at("gone")
        server.start()
        began = time.monotonic()
        watched.until("$('banner').hidden", patience=10)
        back = time.monotonic() - began
        watched.until(f"{NOW} === 0 && {CARDS} === 1", patience=120)
        watched.end(allowed=["ERR_CONNECTION", "ERR_EMPTY_RESPONSE", "ERR_INCOMPLETE", "net::"])
        server.stop()
        return back


def many(browser, program, shots, axe):
    """A thousand jobs that were cancelled."""
    with tempfile.TemporaryDirectory() as data, Server(program, data) as server:
        for index in range(1000):
            body = json.dumps({"prompt": f"{PROMPT} {index}", "steps": 100}).encode()
            request = urllib.request.Request(server.url + "/v1/videos", body, {"Content-Type": "application/json"})
            id = json.loads(urllib.request.urlopen(request).read())["id"]
            urllib.request.urlopen(urllib.request.Request(f"{server.url}/v1/videos/{id}/cancel", b"", method="POST")).read()
        began = time.monotonic()
        watched = Page(browser, server, "light", shots, axe)
        watched.until(f"{CARDS} > 0")
        seconds = time.monotonic() - began
        cards = watched.page.evaluate(CARDS)
        assert cards <= 60, cards
        watched.page.click("#older")
        watched.until("!$('newer').hidden")
        watched.end()
        return seconds, cards


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--shots")
    parser.add_argument("--looks", nargs="*", default=list(LOOKS))
    options = parser.parse_args()
    found = [path for path in map(shutil.which, BROWSERS) if path]
    if not found:
        sys.exit(f"expected one of {', '.join(BROWSERS)} to be installed")
    if options.shots:
        pathlib.Path(options.shots).mkdir(parents=True, exist_ok=True)
    axe = axe_source()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=["--no-sandbox"])
        for look in options.looks:
            with tempfile.TemporaryDirectory() as data, Server(options.program, data) as server:
                watched = Page(browser, server, look, options.shots, axe)
                said, stops = use(watched), walk_by_tab(watched)
                watched.end(allowed=["400"])  # what cannot be made is refused
                server.stop()
            print(f"{look}: made, found again, stopped, compared ({said}), deleted; {stops} stops of Tab, each to be seen; axe: {'0 violations' if axe else 'not installed'}", flush=True)
        wrong_key(browser, options.program, options.shots, axe)
        back = gone_and_back(browser, options.program, options.shots, axe)
        seconds, cards = many(browser, options.program, options.shots, axe)
        print(f"a wrong key and a right one; the server back after {back:.1f} s; 1,000 jobs: {cards} cards, the first after {seconds:.2f} s")
        browser.close()


if __name__ == "__main__":
    main()
