"""The page in a real browser."""

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from indexer.cli import main
from indexer.records import VideoRef
from indexer.table import catalog
from indexer.table.paths import IndexPaths
from tests.gallery.hostile import DEED, NAMES, visible
from tests.table.make import FINGERPRINT, TAG, Run, unit
from tests.video.synth import Synth

ON, OFF = 9.0, -9.0
PHONE = {"viewport": {"width": 360, "height": 700}, "is_mobile": True, "has_touch": True}
LONGEST_FILE_NAME = 200
LOCAL = Path(__file__).with_name("local.toml")


def file_name(name):
    """A name as a file may have it."""
    text = name.replace("/", "|").replace("\x00", "0").encode()[:LONGEST_FILE_NAME]
    return text.decode(errors="ignore") + ".mp4"


def ref_of(uri):
    size_bytes, content_key = 9, "9-a"
    if uri.startswith("/") and Path(uri).exists():
        status = Path(uri).stat()
        size_bytes, content_key = status.st_size, f"{status.st_size}-{status.st_mtime_ns}"
    return VideoRef("", uri, size_bytes, content_key)


def run_gallery(capsys, *args):
    with pytest.raises(SystemExit) as end:
        main(["gallery", *map(str, args), "--config", str(LOCAL)])
    captured = capsys.readouterr()
    assert end.value.code == 0, captured.err
    return captured


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A hundred hostile labels; of each the name is a file, and once more a video's whole uri."""
    folder = tmp_path_factory.mktemp("hostile")
    films = folder / "films"
    films.mkdir()
    data = Synth(frames=12).encode()
    paths = IndexPaths(str(folder / "index"))
    catalog.create_index(paths)
    catalog.register_model(paths, TAG, FINGERPRINT, NAMES)
    units = []
    for number, name in enumerate(NAMES):
        logits = np.full((1, len(NAMES)), OFF, np.float32)
        logits[0, number] = ON
        (films / file_name(name)).write_bytes(data)
        for uri in (str(films / file_name(name)), name):
            made = unit(f"{number}-{uri}", (0,), logits_NK=logits)
            ref = replace(ref_of(uri), video_id=made.ref.video_id)
            units.append(replace(made, ref=ref))
    Run(paths).add(*units, labels=NAMES)
    return paths.root_uri


@pytest.fixture(scope="module")
def hostile_page(index, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "gallery.html"
    with pytest.raises(SystemExit) as end:
        main(["gallery", index, "-o", str(out), "--top", "500", "--config", str(LOCAL)])
    assert end.value.code == 0
    return out


@pytest.fixture
def hostile(show, hostile_page):
    return show(hostile_page)


def test_hostile_names_are_text_and_nothing_else(hostile, hostile_page):
    page = hostile.page
    page.keyboard.press("Tab")
    assert page.evaluate("window.pwned") is None
    assert hostile.requests[0] == hostile_page.as_uri()
    assert [url for url in hostile.requests[1:] if not url.startswith("data:image/webp")] == []
    assert (hostile.dialogs, hostile.complaints, hostile.violations()) == ([], [], [])
    labels = hostile.texts(".card .label")
    assert len(labels) == 2 * len(NAMES)
    assert set(labels) == {visible(name) for name in NAMES}
    assert sum(name in labels for name in NAMES) > 80  # nothing in them needs to be written out
    uris = hostile.texts(".bar h3 bdi")
    assert len(uris) == 2 * len(NAMES)
    local = {visible(file_name(name)) for name in NAMES}
    assert {uri.rpartition("/")[2] for uri in uris} >= local
    shown = page.eval_on_selector_all(
        "script, style, iframe, object, embed, base, form", "e => e.length"
    )
    assert shown == 2


def test_links_lead_to_files_and_to_no_script(hostile):
    links = hostile.page.eval_on_selector_all("a[href]", "all => all.map(a => a.href)")
    outward = [urlsplit(link) for link in links if "#t=" in link]
    assert {link.scheme for link in outward} == {"file", "https"}
    opened = {Path(unquote(link.path)).name for link in outward if link.scheme == "file"}
    assert opened >= {file_name(name) for name in NAMES}
    assert not any("secret" in link.geturl() for link in outward if link.scheme == "https")
    assert {link.netloc for link in outward} == {"", "evil.invalid"}


@pytest.fixture
def elsewhere():
    """A server that no page should ask, and the paths that it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("has_policy", [True, False])
def test_the_policy_holds_even_if_escaping_did_not(
    show, hostile_page, tmp_path, elsewhere, has_policy
):
    server, asked = elsewhere
    broken = tmp_path / "broken.html"
    attack = f"""
        <script>{DEED}</script><img src=x onerror="{DEED}"><style>h1{{color:red}}</style>
        <img src="{server}/a.png"><iframe src="{server}/frame"></iframe>
        <link rel=stylesheet href="{server}/a.css"><script src="{server}/a.js"></script>
        <base href="{server}"><a id=j href="javascript:{DEED}">x</a></main>
    """
    text = hostile_page.read_text().replace("</main>", attack)
    if not has_policy:
        text = text.replace('http-equiv="Content-Security-Policy"', "data-without")
    broken.write_text(text)
    watched = show(broken)
    watched.page.evaluate("document.getElementById('j').click()")
    watched.page.wait_for_timeout(500)
    if has_policy:
        assert watched.page.evaluate("window.pwned") is None
        assert (watched.dialogs, asked) == ([], [])
        refused = {violation.split()[0] for violation in watched.violations()}
        assert refused >= {"script-src-elem", "script-src-attr", "img-src", "frame-src"}
        assert refused >= {"style-src-elem", "base-uri"}
    else:  # what this test looks at would show it
        assert watched.page.evaluate("window.pwned") == 1
        assert "1" in watched.dialogs
        assert set(asked) >= {"/a.png", "/frame", "/a.css", "/a.js"}


def test_typing_filters_clips_and_timelines(hostile):
    page = hostile.page
    page.keyboard.press("/")
    page.keyboard.type("ПЕСНЯ")
    assert page.is_visible("#nothing")
    assert page.locator(".card:visible").count() == 0
    page.fill("#find", "{{7*7}} films")
    assert [visible("{{7*7}}")] == page.locator(".card:visible .label").all_text_contents()
    assert page.locator(".bar:visible").count() == 1
    assert page.text_content("#count") == f"1 of {2 * len(NAMES)}"
    page.fill("#find", "<SCRIPT SRC")
    both = [name for name in NAMES if "<script" in name.lower() and "src" in name.lower()]
    assert page.locator(".card:visible").count() == 2 * len(both) > 0
    page.fill("#find", "")
    assert page.locator(".card:visible").count() == 2 * len(NAMES)


def test_the_keyboard_reaches_the_links(hostile):
    page = hostile.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "clips"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "open"
    assert page.evaluate("document.activeElement === document.querySelector('a.open')")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement === document.querySelectorAll('a.open')[1]")


def test_a_phone_shows_all_of_it_without_scrolling_sideways(show, hostile_page):
    watched = show(hostile_page, **PHONE)
    page = watched.page
    page.eval_on_selector_all(
        ".card, .bar", "all => all.forEach(e => { e.style.contentVisibility = 'visible' })"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    rights = page.eval_on_selector_all(
        ".card, .bar, .label, .name, .spans", "all => all.map(e => e.getBoundingClientRect().right)"
    )
    assert max(rights) <= 360
    page.evaluate("scrollTo(500, 0)")
    assert page.evaluate("scrollX") == 0


def test_dark_where_the_reader_likes_it_dark(show, hostile_page):
    colour = "getComputedStyle(document.body).backgroundColor"
    light = show(hostile_page, color_scheme="light").page.evaluate(colour)
    dark = show(hostile_page, color_scheme="dark").page.evaluate(colour)
    assert (light, dark) == ("rgb(245, 245, 243)", "rgb(19, 20, 22)")


def test_pictures_are_there(hostile):
    page = hostile.page
    page.wait_for_function("[...document.images].every(i => i.complete)")
    sizes = page.eval_on_selector_all(
        "img", "all => all.map(i => [i.naturalWidth, i.naturalHeight])"
    )
    assert sizes == [[288, 216]] * len(NAMES)
    reasons = set(hostile.texts(".none"))
    assert "No picture: missing" in reasons
    assert "No picture: not allowed" in reasons


def test_a_link_opens_the_video_at_its_time(browser, tmp_path, capsys):
    """Of a clip that begins later, in a file whose name is hard to write as an address."""
    film = tmp_path / "50% #1? &amp; ü.mp4"
    film.write_bytes(Synth(frames=600, options={"g": "600"}).encode())
    paths = IndexPaths(str(tmp_path / "index"))
    catalog.create_index(paths)
    catalog.register_model(paths, TAG, FINGERPRINT, NAMES)
    made = unit("x", (1,), logits_NK=np.zeros((1, len(NAMES)), np.float32))
    ref = replace(ref_of(str(film)), video_id=made.ref.video_id)
    Run(paths).add(replace(made, ref=ref), labels=NAMES)
    run_gallery(capsys, paths.root_uri, "-o", tmp_path / "out.html")
    page = browser.new_page()
    try:
        page.goto((tmp_path / "out.html").as_uri())
        page.click("a.open")
        page.wait_for_function("document.querySelector('video')?.readyState >= 1")
        assert page.evaluate("document.querySelector('video').currentTime") >= 8.5
    finally:
        page.close()


def test_an_answer_without_clips_is_a_page_that_says_so(index, show, tmp_path, capsys):
    out = tmp_path / "empty.html"
    err = run_gallery(capsys, index, "{{7*7}}", "--video", "nothing", "-o", out).err
    assert "no clip of the index answers this" in err
    watched = show(out)
    assert "No clip of the index answers this" in watched.page.text_content("main")
    assert watched.texts("h1") == ["{{7*7}}"]
    assert (watched.complaints, watched.violations()) == ([], [])
