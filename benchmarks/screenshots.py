"""Pictures of the dashboard for the documentation, and what its page costs.

    python -m benchmarks.screenshots                                  # the demo: pictures and figures
    python -m benchmarks.screenshots --index INDEX --test test.txt    # figures of an index of your own

Trains the demo's model, indexes it on three nights, serves it, and looks at it in Chromium. Figures are those of the
prediction that the demo explains, or medians of the first test triples, each loaded with an empty cache.
"""

import argparse
import json
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from urllib.parse import urlencode

import httpx
from playwright.sync_api import Browser, Page, sync_playwright
from tests.dashboard.chromium import launched
from tests.dashboard.newcomer import STEPS

from kgtrace_indexer import BuildConfig, build, read_model, read_training_folder
from kgtrace_server.cli.demo import TRIPLE, train_umls
from kgtrace_server.http import serving
from kgtrace_server.http.app import create_app
from kgtrace_server.settings import Settings

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PREDICTION = "?head={}&relation={}&tail={}".format(*TRIPLE)
FALLING = "?head=tissue&relation=produces&tail=organophosphorus_compound"
"""A prediction that two facts of its head carry."""
LINES = """alga\tinteracts_with\thuman
tissue\tproduces\torganophosphorus_compound
algae\tinteracts_with\tplant
virus causes 'neoplastic_process'
virus causes"""
SHOTS = (
    ("light", PREDICTION, "light", 1200, 820),
    ("dark", PREDICTION, "dark", 1200, 820),
    ("phone", PREDICTION, "light", 360, 1280),
    ("graph", PREDICTION, "light", 1280, 900),
    ("sets", FALLING, "light", 1200, 3000),
    ("suspicious", "?view=self-influence", "light", 1280, 620),
    ("entity", f"?view=entity&entity={TRIPLE[0]}", "light", 1280, 620),
    ("index", "?view=index", "light", 1280, 900),
    ("several", "?" + urlencode({"view": "several", "lines": LINES}), "light", 1200, 820),
    ("changes", "?view=changes&" + PREDICTION[1:], "light", 1200, 1200),
)
RUNS = 5
TEST_TRIPLES = 20
QUIET = """() => document.querySelector('main .panel') && !document.querySelector('[aria-busy]')
    && !document.querySelector('.drawn:empty')"""

_MEASURE = """() => {
    const loaded = [performance.getEntriesByType('navigation')[0], ...performance.getEntriesByType('resource')];
    const files = loaded.filter(({name}) => !name.includes('/v1/'));
    const kilobytes = (entries, size) => entries.reduce((sum, entry) => sum + entry[size], 0) / 1000;
    return {
        requests: files.length,
        calls: loaded.length - files.length,
        transferred: kilobytes(files, 'transferSize'),
        unpacked: kilobytes(files, 'decodedBodySize'),
        answers: kilobytes(loaded.filter((entry) => !files.includes(entry)), 'transferSize'),
        paint: performance.getEntriesByName('first-contentful-paint')[0].startTime,
        interactive: loaded[0].domContentLoadedEventEnd,
        complete: performance.now(),
    };
}"""
"""Modules run before DOMContentLoaded: from its end on, fields and buttons answer."""


def main() -> None:
    """Write the pictures and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, metavar="ROOT")
    parser.add_argument("--test", type=Path, metavar="FILE", help="lines of head⇥relation⇥tail")
    args = parser.parse_args()
    with sync_playwright() as playwright, launched(playwright) as browser:
        if args.index is None:
            with tempfile.TemporaryDirectory() as folder, _served(_index(Path(folder))) as address:
                _look(browser, address)
                _measure(browser, address, [PREDICTION] * RUNS)
        else:
            lines = args.test.read_text().splitlines()[:TEST_TRIPLES]
            triples = (zip(("head", "relation", "tail"), line.split("\t"), strict=True) for line in lines)
            searches = [f"?{urlencode(list(triple))}" for triple in triples]
            with _served(args.index) as address:
                _open(browser, address + searches[0])  # what is opened when it is first needed
                _measure(browser, address, searches)


@contextmanager
def _served(root: Path) -> Iterator[str]:
    """Serve an index for as long as the block runs, and yield the address once it answers."""
    settings = Settings(index=root, port=0, log_level="error")
    server = serving.server(create_app(serving.loader(settings), settings), settings)
    with serving.listen(settings) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            address = serving.address(listening)
            while not httpx.get(f"{address}/readyz", timeout=60).is_success:
                pass
            yield address
        finally:
            server.should_exit = True
            thread.join()


def _index(folder: Path) -> Path:
    """Build what three nights would leave: the same model, another training, and the first again."""
    for night, (seed, epochs) in enumerate([(0, 200), (1, 200), (0, 200)]):
        model = folder / f"model-{seed}"
        if not model.exists():
            train_umls(model, seed=seed, epochs=epochs)
        vocabulary, triples = read_training_folder(model / "training_triples")
        build(folder / "index", read_model(model), vocabulary, triples, BuildConfig(seed=night))
    return folder / "index"


def _look(browser: Browser, address: str) -> None:
    for name, search, theme, width, height in SHOTS:
        page = _open(browser, address + search, color_scheme=theme, viewport={"width": width, "height": height})
        target = IMAGES / f"dashboard-{name}.png"
        if name == "graph":
            page.locator("section", has=page.locator(".drawn")).screenshot(path=target)
        elif name == "sets":
            _leave_out(page)
            page.locator(".stack .stack:has(caption)").screenshot(path=target)
        else:
            page.screenshot(path=target)
        print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB")
    page = _open(browser, f"{address}/", viewport={"width": 1200, "height": 900})
    for number, (name, click) in enumerate(STEPS, 1):
        click(page)
        page.wait_for_function(QUIET)
        if name == "doubt":
            page.locator(".tick:checked").evaluate("(box) => box.scrollIntoView({ block: 'center' })")
        page.screenshot(path=IMAGES / f"newcomer-{number}-{name}.png")


def _measure(browser: Browser, address: str, searches: Sequence[str]) -> None:
    """Print the medians of what views cost."""
    measured = []
    for search in searches:
        page = _open(browser, address + search)
        measured.append(page.evaluate(_MEASURE))
        page.context.close()
    print(json.dumps({name: round(median(run[name] for run in measured), 1) for name in measured[0]}, indent=1))


def _leave_out(page: Page) -> None:
    """Tick the necessary facts, and ask what the model says without them."""
    for box in page.locator("details .tick").all():
        box.check()
    page.get_by_role("button", name="Without the ticked", exact=True).click()
    page.wait_for_function(QUIET)


def _open(browser: Browser, url: str, **options: object) -> Page:
    """Load a view, with nothing cached, until all it asked for is shown."""
    page = browser.new_context(**options).new_page()  # type: ignore[arg-type]
    page.goto(url)
    page.wait_for_function(QUIET)
    return page


if __name__ == "__main__":
    main()
