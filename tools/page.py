"""Drives the page of `keel serve` in headless Chromium: drops an image, asks, reads the answer, looks at a word of it, and
draws the page at desktop and phone width.

    python3 tools/page.py RUN [--image FILE] [--question TEXT] [--keel PROGRAM] [--out FOLDER]

Needs chromium and its chromedriver (Debian: apt-get install chromium chromium-driver) and nothing of pip. It ends with exit code 0 when
the page did all of it, and 77 where there is no Chromium, after saying so.
"""

import argparse
import base64
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WITHOUT_BROWSER = 77
PATIENCE_S = 90
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

# Drops a file onto the page as a file manager would.
DROP = """
const [name, kind, data] = arguments, bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
const files = new DataTransfer();
files.items.add(new File([bytes], name, { type: kind }));
document.getElementById('drop').dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true }));
"""


class Browser:
    """A session of chromedriver, spoken to over its HTTP."""

    def __init__(self, width: int, height: int, is_phone: bool):
        self.folder = tempfile.TemporaryDirectory()
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = ""
        while "started successfully on port" not in line:
            line = self.driver.stdout.readline()
            if not line:
                raise SystemExit("chromedriver did not start")
        self.url = f"http://127.0.0.1:{line.split('port')[-1].strip(' .' + chr(10))}"
        arguments = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-gpu"]
        arguments += [f"--window-size={width},{height}", f"--user-data-dir={self.folder.name}"]
        options = {"args": arguments, "binary": shutil.which("chromium")}
        if is_phone:
            metrics = {"width": width, "height": height, "pixelRatio": 2, "touch": True}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.session = self.call("POST", "/session", wanted)["sessionId"]

    def call(self, method: str, path: str, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:
                return json.load(reply)["value"]
        except urllib.error.HTTPError as problem:
            raise SystemExit(f"chromedriver: {problem.read().decode()[:500]}") from problem

    def at(self, method: str, path: str, body=None):
        return self.call(method, f"/session/{self.session}{path}", body)

    def run(self, script: str, *arguments):
        return self.at("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def keys(self, selector: str, text: str):
        found = self.at("POST", "/element", {"using": "css selector", "value": selector})
        self.at("POST", f"/element/{found[ELEMENT]}/value", {"text": text})

    def wait(self, what: str, script: str):
        until = time.monotonic() + PATIENCE_S
        while not (found := self.run(f"return {script}")):
            if time.monotonic() > until:
                raise SystemExit(f"the page: {what} did not come; it says: {self.run('return document.body.innerText')}")
            time.sleep(0.1)
        return found

    def screenshot(self, path: Path):
        """The whole page, however long."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return innerWidth")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 0, "mobile": False}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self.at("POST", "/goog/cdp/execute", command)
        path.write_bytes(base64.b64decode(self.at("GET", "/screenshot")))

    def close(self):
        self.call("DELETE", f"/session/{self.session}")
        self.driver.terminate()
        self.driver.wait()
        self.folder.cleanup()


def drive(browser: Browser, address: str, image: Path, question: str, out: Path) -> str:
    """Everything a visitor does; the answer."""
    browser.at("POST", "/url", {"url": address})
    browser.wait("what is served", "document.getElementById('about').textContent.includes('after stage')")
    data = base64.b64encode(image.read_bytes()).decode()
    browser.run(DROP, image.name, f"image/{image.suffix[1:]}", data)
    browser.wait("the image", "document.getElementById('drop').classList.contains('full')")
    # By the keyboard alone: a question, and Enter.
    browser.keys("#question", question + "\ue007")
    browser.wait("the answer", "document.querySelector('.answer:not(.waiting)')?.textContent")
    words = browser.wait("its words", "document.querySelectorAll('.word').length")
    answer = browser.run("return document.querySelector('.answer').textContent")
    browser.run("document.querySelector('.word').focus()")
    if words > 1:
        browser.keys(".word", "\ue014")
        chosen = browser.run("return [...document.querySelectorAll('.word')].findIndex(w => w.ariaPressed === 'true')")
        if chosen != 1:
            raise SystemExit(f"the page: an arrow key went to word {chosen}")
    attention = browser.run("return document.getElementById('about-view').textContent")
    if "of its attention" not in attention:
        raise SystemExit(f"the page says of a word: {attention}")
    if browser.run("return !document.getElementById('stages').hidden"):
        browser.run("document.getElementById('ask-stages').click()")
        browser.wait("the stages", "[...document.querySelectorAll('#stages dd')].every(d => d.textContent !== '…')")
    overflow = browser.run("return document.documentElement.scrollWidth - innerWidth")
    if overflow > 0:
        raise SystemExit(f"the page is {overflow} pixels wider than the screen")
    problems = browser.run("return [...document.querySelectorAll('.problem')].map(p => p.textContent)")
    if problems:
        raise SystemExit(f"the page says: {problems}")
    browser.run("scrollTo(0, 0)")
    browser.screenshot(out)
    # The visual tokens, by the arrow keys.
    browser.keys("#view", "\ue014\ue015")
    nearest = browser.run("return document.getElementById('about-view').textContent")
    if "Nearest text tokens" not in nearest:
        raise SystemExit(f"the page says of a visual token: {nearest}")
    return answer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--image", type=Path, default=ROOT / "verify/goldens/chat/fox.png")
    parser.add_argument("--question", default="what is this?")
    parser.add_argument("--keel", default="keel")
    parser.add_argument("--out", type=Path, default=Path("."))
    arguments = parser.parse_args()
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        print("left out: there is no chromium with its chromedriver here (apt-get install chromium chromium-driver)")
        sys.exit(WITHOUT_BROWSER)
    server = subprocess.Popen(
        [arguments.keel, "serve", str(arguments.run), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        line = ""
        while "a page at " not in line:
            line = server.stdout.readline()
            if not line:
                raise SystemExit("keel serve did not start")
        address = line.split("a page at ")[1].strip()
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, width, height in [("page.png", 1180, 800), ("page-phone.png", 390, 800)]:
            browser = Browser(width, height, name != "page.png")
            out = arguments.out / name
            try:
                answer = drive(browser, address, arguments.image, arguments.question, out)
            finally:
                browser.close()
            print(f"{out}: {answer!r}")
    finally:
        server.terminate()
    if server.wait() != 0:
        raise SystemExit(f"keel serve ended with {server.returncode}")


if __name__ == "__main__":
    main()
