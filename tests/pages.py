"""Open every page of the built book in headless Chromium and name what a reader would stumble over: `make pages`.

python tests/pages.py _build/html    # prints faults; writes _build/pages/index.html, a contact sheet

Each page is opened at 1280 and 390 pixels, light and dark, and as it is printed; `pages.js` looks at it there.
"""

import base64
import html
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
LOOK = (HERE / "pages.js").read_text(encoding="utf-8")
TITLES = HERE / "page_titles.txt"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe")
STATES = {
    "wide light": (1280, "light", "screen"),
    "wide dark": (1280, "dark", "screen"),
    "print": (720, "light", "print"),
    "phone light": (390, "light", "screen"),
    "phone dark": (390, "dark", "screen"),
}
"""State -> width in pixels, colour scheme, medium."""

SOURCE_STATES = ("wide light", "phone dark")

TALLEST_API = 15_000
"""Pixels of an API page at 1280."""

PATIENCE = 120
"""Seconds to wait for the browser's next word."""

READY = """Promise.resolve(window.MathJax?.startup?.promise)
  .then(() => Promise.all([...document.images].map((one) => ((one.loading = "eager"), one.decode().catch(() => 0)))))"""
STILL = """document.head.appendChild(document.createElement("style")).textContent =
  "* { animation: none !important; transition: none !important; }" """
"""A sidebar that is still sliding in would shift the picture, a button that fades would have no colour yet."""
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
"""By then the page's own script has heard of another colour scheme."""
STOPPED = """new Promise((done) => {
  let y, frames = 0;
  const ask = () => {
    frames = y === scrollY ? frames + 1 : 0;
    y = scrollY;
    frames > 9 ? done() : requestAnimationFrame(ask);
  };
  ask();
})"""
"""By then the page scrolls no more, as it does for a while after a finger is lifted."""

SLIDER = """((one) => {
  one.scrollIntoView({ block: "center" });
  const { left, right, top, bottom } = one.getBoundingClientRect(), half = 8;  // of the thumb
  return [left + half, right - half, (top + bottom) / 2, (one.value - (one.min || 0)) / ((one.max || 100) - (one.min || 0))];
})(%s)"""

PREVIEWS = {
    "theorem": ":is([href*='#thm-'], [href*='#prop-'], [href*='#lem-'], [href*='#ass-'])",
    "equation": "[href*='#equation-']",
    "figure": "[href*='#fig-']",
    "reference": "[href*='references.html#']",
    "function": "[href*='#normcore.']",
}
"""Kind -> how its links are recognised."""

LINK = """((found) => {
  window.link = found;
  found?.scrollIntoView({ block: "center" });
  const box = found?.getClientRects()[0];
  return box ? [box.left + box.width / 2, box.top + box.height / 2] : null;
})([...document.querySelectorAll(%s)].find((one) => one.checkVisibility({ visibilityProperty: true })))"""

SHOWN = """new Promise((done) => {
  const start = Date.now(), ask = () => {
    const box = document.querySelector(".preview"), seen = box && !box.hidden && box.innerText.trim().length > 3;
    seen || Date.now() > start + 5000 ? done(Boolean(seen)) : setTimeout(ask, 20);
  };
  ask();
})"""
"""Whether a preview with words appears within five seconds."""

LOCAL = ("file:", "data:", "blob:", "about:")


class Browser:
    """Headless Chromium with one tab, spoken to through a pipe."""

    def __init__(self):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self.asks = os.pipe()
        self.answers, theirs_out = os.pipe()

        def hand_over():
            """Chromium reads from 3 and writes to 4."""
            for ours, theirs in ((theirs_in, 3), (theirs_out, 4)):
                os.dup2(ours, theirs)
                os.set_inheritable(theirs, True)

        command = [BROWSER, *OPTIONS, f"--user-data-dir={self.profile.name}"]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, preexec_fn=hand_over, close_fds=False, stderr=quiet)
        os.close(theirs_in)
        os.close(theirs_out)
        self.kept, self.count, self.session, self.events = b"", 0, {}, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": found["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.close()

    def close(self):
        """End it."""
        self.process.kill()
        self.process.wait(30)
        os.close(self.asks)
        os.close(self.answers)
        self.profile.cleanup()

    def message(self):
        """The next message; events are kept."""
        while b"\0" not in self.kept:
            heard = select.select([self.answers], [], [], PATIENCE)[0]
            more = os.read(self.answers, 1 << 20) if heard else b""
            if not more:
                raise RuntimeError("the browser has ended" if heard else "the browser is silent")
            self.kept += more
        text, self.kept = self.kept.split(b"\0", 1)
        found = json.loads(text)
        if "method" in found:
            self.events.append(found)
        return found

    def call(self, method, **params):
        """A command of the DevTools protocol, and its result."""
        self.count += 1
        command = {"id": self.count, "method": method, "params": params, **self.session}
        os.write(self.asks, json.dumps(command).encode() + b"\0")
        while (answer := self.message()).get("id") != self.count:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def value(self, script):
        """What a script on the page gives, or what its promise does."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script[:80]}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def dress(self, width, scheme, medium):
        """Set width, colour scheme and medium."""
        size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", media=medium, features=[feature])
        self.value(DRAWN)

    def open(self, path):
        """Load a page to its end, formulas and pictures included."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not any(one["method"] == "Page.loadEventFired" for one in self.events):
            self.message()
        self.value(STILL)
        self.value(READY)

    def press(self, key, code):
        """A key, pressed and let go."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def drag(self, points):
        """A finger put down at the first point, drawn through the others and lifted."""
        for i, (x, y) in enumerate(points):
            kind = "touchMove" if i else "touchStart"
            self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
            self.value(DRAWN)
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.value(STOPPED)

    def picture(self, path):
        """Keep the whole page at half its size; a browser asked for half the size lays the page out for half the width."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 60_000), "scale": 1}
        options = dict(captureBeyondViewport=True, format="jpeg", quality=90)
        found = self.call("Page.captureScreenshot", clip=clip, **options)["data"]
        Image.open(io.BytesIO(base64.b64decode(found))).reduce(2).save(path, quality=60)


def complaints(events):
    """What the browser itself says of a page: errors of scripts, requests that leave, files that are missing."""
    asked = {}
    for event in events:
        said = event["params"]
        match event["method"]:
            case "Runtime.exceptionThrown":
                details = said["exceptionDetails"]
                yield f"script: {details.get('exception', {}).get('description', details['text'])}"
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "warning", "assert"):
                yield f"console: {' '.join(str(one.get('value')) for one in said['args'])}"
            case "Network.requestWillBeSent":
                asked[said["requestId"]] = address = said["request"]["url"]
                if not address.startswith(LOCAL):
                    yield f"request: {address}"
            case "Network.loadingFailed" if asked[said["requestId"]].startswith(LOCAL):
                yield f"missing: {asked[said['requestId']]}"


def unmoved(browser):
    """The interactive figures that do not answer an arrow key."""
    names = "[...document.querySelectorAll('[data-figure]')].map((one) => one.dataset.figure)"
    for name in browser.value(names):
        host = f"document.querySelector('[data-figure={name}]')"
        browser.value(f"{host}.querySelector('input[type=range]')?.focus()")
        before = browser.value(f"{host}.innerText")
        browser.press("ArrowRight", 39)
        if browser.value(f"{host}.innerText") == before:
            yield f"figure: {name} does not move"


def unswayed(browser):
    """The sliders of interactive figures that a finger does not move, or that tell nothing else when moved."""
    for i in range(browser.value("document.querySelectorAll('[data-figure] input[type=range]').length")):
        slider = f"document.querySelectorAll('[data-figure] input[type=range]')[{i}]"
        state = f"((one) => [one.value, one.closest('[data-figure]').innerText])({slider})"
        before = browser.value(state)
        left, right, y, share = browser.value(SLIDER % slider)
        thumb, end = (left + part * (right - left) for part in (share, 0.75 if share < 0.5 else 0.25))
        browser.drag([(thumb + step / 8 * (end - thumb), y) for step in range(9)])
        value, told = browser.value(state)
        if value == before[0] or told == before[1]:
            yield f"finger: {browser.value(f'{slider}.ariaLabel')} does not move"
        browser.drag([(thumb, y + 20 * step) for step in range(9)])  # the page's way, not the slider's
        if browser.value(state) != [value, told]:
            yield f"swipe: {browser.value(f'{slider}.ariaLabel')} moves where the page is scrolled"


def unshown(browser):
    """The kinds of links whose first on the page shows no preview: under the mouse, or with the keyboard."""
    for kind, selector in PREVIEWS.items():
        spot = browser.value(LINK % json.dumps(f"article a.internal{selector}:not(.headerlink)"))
        if spot is None:
            continue
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=spot[0], y=spot[1])
        if not browser.value(SHOWN):
            yield f"preview: none of a {kind} under the mouse"
        browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
        browser.press("Escape", 27)
        if not browser.value(
            f"document.querySelector('.preview')?.hidden !== false && (window.link.focus(), {SHOWN})"
        ):
            yield f"preview: none of a {kind} with the keyboard"
        browser.press("Escape", 27)


def inspect(browser, path, pictures=None, states=tuple(STATES)):
    """State -> faults of a page; what it calls itself; its height by state. Pictures go to paths that begin so."""
    faults, tall, width_before, seen = {}, {}, None, {}
    for state in states:
        width, scheme, medium = STATES[state]
        browser.dress(width, scheme, medium)
        opened = width != width_before and medium == "screen"
        if opened:
            browser.open(path)
        width_before = width
        if pictures and medium == "screen":
            browser.picture(f"{pictures}.{state.replace(' ', '-')}.jpg")
        seen = browser.value(f"(() => {{ {LOOK}\nreturn look({width}, {json.dumps(medium)}); }})()")
        faults[state], tall[state] = seen["faults"], seen["tall"]
        if state == "wide light":
            faults[state] += [*unmoved(browser), *unshown(browser)]
        if state == "phone light":
            faults[state] += unswayed(browser)
        if opened:
            faults[state] += complaints(browser.events)
            browser.value("document.activeElement.blur(), scrollTo({ top: 0, behavior: 'instant' })")
    return faults, seen["title"], tall


def sheet(root, names):
    """A page with every page in every state, each a link to its picture."""
    states = [state.replace(" ", "-") for state, (_, _, medium) in STATES.items() if medium == "screen"]
    rows = "".join(
        f"<h2>{html.escape(name)}</h2>"
        + "".join(
            f'<a href="{name}.{s}.jpg"><img loading="lazy" src="{name}.{s}.jpg" alt="{s}"></a>'
            for s in states
        )
        for name in names
    )
    style = (
        "img{height:420px;width:300px;object-fit:cover;object-position:top;margin:4px;border:1px solid #888}"
    )
    (root / "index.html").write_text(
        f'<!doctype html><meta charset="utf-8"><title>Contact sheet</title><style>{style}</style>{rows}',
        encoding="utf-8",
    )


def visit(root, names, pictures):
    """Each page as (name, faults, title, height); a browser that falls silent is replaced once a page."""
    browser = None
    for name in names:
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        source = name.startswith("_modules")  # a page of code is like another, and needs no picture
        options = dict(states=SOURCE_STATES) if source else dict(pictures=pictures / name)
        for attempt in (1, 2):
            try:
                browser = browser or Browser()
                yield name, *inspect(browser, root / f"{name}.html", **options)
                break
            except (RuntimeError, BrokenPipeError):
                browser = browser.close()
                if attempt == 2:
                    raise
    if browser:
        browser.close()


def main(root, only=()):
    """Look at the pages below a folder, or at those whose names have one of these words; 1 where a fault was found."""
    if BROWSER is None:
        print("make pages: skipped, it needs chromium or google-chrome")
        return 0
    titles = dict(line.split(": ", 1) for line in TITLES.read_text(encoding="utf-8").splitlines())
    names = {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.html")}
    names = sorted(
        name for name in names if name != "index" and "_static" not in name
    )  # index leads to the first
    chosen = [name for name in names if not only or any(word in name for word in only)]
    pictures, count = root.parent / "pages", 0
    for name, faults, title, tall in visit(root, chosen, pictures):
        if not name.startswith("_modules") and title != titles.get(name):
            faults["title"] = [f"{title!r} is not that of {TITLES.name}, {titles.get(name)!r}"]
        if name.startswith("book/api/") and tall["wide light"] > TALLEST_API:
            faults["height"] = [f"{tall['wide light']} pixels"]
        told = dict.fromkeys(fault for one in faults.values() for fault in one)
        found = {fault: [state for state in faults if fault in faults[state]] for fault in told}
        print(f"{name}: {'ok' if not found else ''}", flush=True)
        print(
            *(f"  {fault}  [{', '.join(states)}]\n" for fault, states in found.items()),
            sep="",
            end="",
            flush=True,
        )
        count += len(found)
    sheet(pictures, [name for name in chosen if not name.startswith("_modules")])
    gone = [] if only else sorted(titles.keys() - set(names))
    print(*(f"no page {name}" for name in gone), sep="\n")
    print(f"{len(chosen)} pages, {count + len(gone)} faults; contact sheet: {pictures / 'index.html'}")
    return 1 if count or gone else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
