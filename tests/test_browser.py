"""The report page in a real browser: Debian's Chromium, driven by Playwright."""

import base64
import http.server
import os
import shutil
import threading
from functools import partial
from pathlib import Path

import made_up_page
import numpy as np
import pytest

from wsal_jax import metrics, page
from wsal_jax.formats import subtitles
from wsal_jax.formats.labelled import Labelled, Segment
from wsal_jax.types import Annotation, Detections

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).parent.parent / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --mute-audio"
).split()
SECONDS = 8.0


@pytest.fixture(scope="module")
def browser(request):
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    if not CHROMIUM:
        pytest.skip("no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of 8 s that Chromium plays."""
    av = pytest.importorskip("av", reason="no PyAV: pip install 'wsal_jax[video]'")
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv420p"
        for i in range(int(25 * SECONDS)):
            picture = np.full((36, 64, 3), 30 + i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode(None))
    return path


def short(runs: int = 1) -> dict:
    """A page whose first video lasts 8 s and has two detections of 1 s, the other of class HOSTILE."""
    made = made_up_page.page_of(videos=4, runs=runs)
    one = made["videos"][0]
    one.update(id="clip", duration=SECONDS, length=12, truth=[[1.0, 2.0, 0], [6.0, 7.0, 1]])
    for run in one["runs"]:
        run.update(found=[[1.1, 2.0, 0, 0.9], [4.5, 5.0, 3, 0.6]])
        for model in run["scores"]["models"]:
            model.update(
                cas=page._bytes(np.linspace(0, 1, 12 * len(made["classes"]))), attention=page._bytes(np.ones(12))
            )
    return made


class Log(list):
    """What a page did that it must not."""


@pytest.fixture
def show(browser, tmp_path):
    """`show(data, **context)`: the page, opened from a file; it must ask for nothing beside, and not complain."""
    contexts, faults = [], Log()

    def show(data, where="", width=1280, color="light", server=""):
        kind = "images" if "images" in data else "videos"
        (tmp_path / "index.html").write_text(page.render(data, kind=kind), encoding="utf-8")
        viewport = {"width": width, "height": 900}
        context = browser.new_context(viewport=viewport, color_scheme=color, reduced_motion="reduce")
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(5000)
        base = server or tmp_path.as_uri()
        allowed = (base, "data:")
        tab.on("request", lambda one: one.url.startswith(allowed) or faults.append(f"request {one.url}"))
        tab.on("console", lambda one: one.type in ("error", "warning") and faults.append(f"console {one.text}"))
        tab.on("pageerror", lambda one: faults.append(f"error {one}"))
        tab.on("dialog", lambda one: (faults.append(f"dialog {one.message}"), one.dismiss()))
        tab.goto(f"{base}/index.html{where}")
        return tab

    yield show
    for context in contexts:
        context.close()
    assert not faults


def bars(tab) -> int:
    return tab.locator(".bar:not(.true, .missed)").count()


def now(tab) -> float:
    return float(tab.locator(".seek").input_value())


def press(tab, *keys):
    for key in keys:
        tab.keyboard.press(key)


def test_a_click_seeks_in_the_video_and_a_bar_plays_to_its_end(show, clip, tmp_path):
    shutil.copy(clip, tmp_path / "a #1 ä.mp4")
    data = short()
    data["videos"][0]["file"] = "a%20%231%20%C3%A4.mp4"
    tab = show(data)
    time = "() => document.querySelector('video').currentTime"
    tab.wait_for_function("() => document.querySelector('video').readyState >= 2")
    axis = tab.locator(".axis").bounding_box()
    for share in (0.25, 0.8, 0.1):
        tab.mouse.click(axis["x"] + share * axis["width"], axis["y"] + 4)
        tab.wait_for_function(f"() => Math.abs(document.querySelector('video').currentTime - {share * SECONDS}) < 0.04")
        assert abs(now(tab) - share * SECONDS) < 0.04
    tab.get_by_role("button", name="4.5 to 5.0 s", exact=False).first.click()
    tab.wait_for_function("() => !document.querySelector('video').paused")
    tab.wait_for_function("() => document.querySelector('video').paused")
    assert abs(tab.evaluate(time) - 5.0) < 0.04
    assert tab.locator("#now").text_content() == "0:05.0"
    press(tab, "Shift+ArrowLeft")
    assert abs(tab.evaluate(time) - 4.96) < 1e-3


def test_where_the_video_does_not_play_the_film_strip_stands_in(show, tmp_path):
    (tmp_path / "broken.avi").write_bytes(b"no video")
    data = short()
    data["videos"][0].update(file="broken.avi", strip=made_up_page.strip())
    tab = show(data)
    tab.locator(".film").wait_for()
    assert "cannot play" in tab.locator(".note").text_content()
    axis = tab.locator(".axis").bounding_box()
    tab.mouse.click(axis["x"] + 0.5 * axis["width"], axis["y"] + 4)
    assert abs(now(tab) - 4) < 0.02
    assert tab.locator(".film").get_attribute("aria-label") == "Picture at 0:04.0"


def test_says_so_where_a_server_does_not_let_it_seek(show, clip, tmp_path):
    shutil.copy(clip, tmp_path / "clip.mp4")
    data = short()
    data["videos"][0]["file"] = "clip.mp4"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab = show(data, server=f"http://127.0.0.1:{server.server_port}")
        tab.wait_for_function("() => document.querySelector('.note').textContent.includes('cannot seek')")
        tab.context.close()
        server.shutdown()


def test_without_a_video_a_clock_runs_and_keys_do_what_they_say(show):
    tab = show(short())
    assert tab.locator("video, .film").count() == 0
    press(tab, "ArrowRight", "ArrowRight", "ArrowLeft")
    assert now(tab) == pytest.approx(1)
    press(tab, "Shift+ArrowRight")
    assert now(tab) == pytest.approx(1.04)
    press(tab, "]")
    assert now(tab) == pytest.approx(1.1)
    press(tab, "]")
    assert now(tab) == pytest.approx(4.5)
    press(tab, "[")
    assert now(tab) == pytest.approx(1.1)
    press(tab, "Space")
    tab.wait_for_function("() => Number(document.querySelector('.seek').value) > 1.3")
    assert tab.locator("#play").get_attribute("aria-label") == "Pause"
    press(tab, "Space")
    assert tab.locator("#play").get_attribute("aria-label") == "Play"
    press(tab, "3")
    assert tab.locator("button.class[aria-pressed=true]").text_content() == made_up_page.HOSTILE
    press(tab, "+")
    assert tab.evaluate("() => document.querySelector('.sheet').clientWidth > 1.5 * innerWidth / 1.5")
    press(tab, "-", "n")
    assert tab.locator("#video-title").text_content() == "video_test_0000041"
    press(tab, "p")
    assert tab.locator("#video-title").text_content() == "clip"
    press(tab, "/")
    tab.keyboard.type("n?]")
    assert tab.locator("#search").input_value() == "n?]"
    assert tab.locator("#video-title").text_content() == "clip"
    press(tab, "Escape", "?")
    assert tab.locator("#help").is_visible()
    press(tab, "Escape")
    assert not tab.locator("#help").is_visible()


def test_threshold_and_filters_change_what_is_shown(show):
    data = made_up_page.page_of(videos=6)
    tab = show(data)
    slider, found = tab.locator("#threshold"), data["videos"][0]["runs"][0]["found"]
    slider.fill("0")
    assert bars(tab) == len(found)
    slider.fill("0.5")
    scores = sorted(one[3] for video in data["videos"] for one in video["runs"][0]["found"])
    threshold = scores[int(0.5 * len(scores) + 0.5)]
    left = [one for one in found if one[3] >= threshold]
    assert 0 < len(left) < len(found)
    assert bars(tab) == len(left) == tab.locator(".detections tbody tr").count()
    shown = tab.locator(".counts tbody tr td:nth-child(2)").all_text_contents()
    assert shown == [f"{len(left)} of {len(found)}", f"{sum(x >= threshold for x in scores)} of {len(scores)}"]
    label = left[0][2]
    of_class = [one for one in left if one[2] == label]
    name = data["classes"][label]
    tab.locator("label.check", has_text=name).locator("input").uncheck()
    assert bars(tab) == len(left) - len(of_class)
    tab.locator("label.check", has_text=name).locator("input").check()
    tab.locator("#filter-class").select_option(label=name)
    assert bars(tab) == len(of_class)
    tab.locator("#filter-class").select_option(label="all classes")
    tab.locator("#search").fill("0041")
    assert tab.locator(".entry .id").all_text_contents() == ["video_test_0000041"]
    tab.locator("#search").fill("nothing is called so")
    assert tab.locator(".entry").count() == 0
    assert "No video matches" in tab.locator("#count").text_content()


def test_counts_are_those_of_the_evaluator(show):
    data = made_up_page.page_of(videos=5, seed=4)
    for i, video in enumerate(data["videos"][:3]):  # ties, copies, and one without truth
        video["runs"][0]["found"] += [[*one[:3], 0.5] for one in video["truth"]] * (i + 1)
    data["videos"][3].update(truth=[[10, 20, 0], [30, 40, 1]])  # IoUs that are thresholds
    data["videos"][3]["runs"][0]["found"] = [[10, 15, 0, 0.9], [30, 33, 1, 0.8], [30, 37, 1, 0.7]]
    data["videos"][4]["truth"] = None
    known = data["videos"][:4]
    truth = {x["id"]: Annotation(*_columns(x["truth"], 3)) for x in known}
    found = {x["id"]: Detections(*_columns(x["runs"][0]["found"], 4)) for x in known}
    tab = show(data)
    tab.locator("#threshold").fill("0")
    for iou in data["ious"]:
        tab.locator("#iou").select_option(f"{iou:g}")
        matched = metrics.match(found, truth, len(data["classes"]), np.array([iou]), "activitynet")
        hits = sum(int((of.taken[0] >= 0).sum()) for of in matched)
        cells = tab.locator(".counts tbody tr:last-child td").all_text_contents()
        total, positives = sum(len(x.labels) for x in found.values()), sum(len(x.labels) for x in truth.values())
        expected = [hits, total - hits, positives - hits, f"{100 * hits / total:.0f} %"]
        assert cells[1:5] == list(map(str, expected))
    tab.locator("#threshold").fill("0")
    tab.locator("#iou").select_option("0.3")
    tab.locator("#filter-errors").check()
    listed = tab.locator(".entry .id").all_text_contents()
    matched = metrics.match(found, truth, len(data["classes"]), np.array([0.3]), "activitynet")
    wrong = {int(v) for of in matched for v in of.videos[of.taken[0] < 0]}
    assert {x["id"] for i, x in enumerate(known) if i in wrong} <= set(listed)
    assert data["videos"][4]["id"] not in listed


def _columns(rows, width):
    x = np.array(rows, np.float64).reshape(-1, width)
    return (x[:, :2], x[:, 2].astype(int), *([x[:, 3]] if width == 4 else []))


def test_names_are_text(show):
    data = short()
    hostile = made_up_page.HOSTILE
    data["title"] = data["videos"][0]["id"] = data["runs"][0]["name"] = data["runs"][0]["command"] = hostile
    data["runs"][0]["config"].append([hostile, "{{style}} \u2028 <!-- <script>"])
    tab = show(data)
    assert tab.locator("img").count() == 0
    assert tab.locator("#title").text_content() == hostile
    assert hostile in tab.locator(".entry .id").all_text_contents()
    assert hostile in tab.locator("button.class").all_text_contents()
    assert tab.title().startswith(hostile)
    tab.locator("#tab-results").click()
    assert tab.locator("pre").text_content() == hostile
    assert tab.locator("img, script[src], link").count() == 0
    tab.locator("summary").last.click()
    assert "{{style}} \u2028 <!-- <script>" in tab.locator(".options").text_content()


def test_several_runs_are_compared(show):
    data = short(runs=2)
    data["videos"][0]["runs"][1]["found"] = [[1.2, 2.2, 0, 0.4], [3.0, 3.4, 0, 0.3]]
    data["runs"][0]["per_class"]["Diving"], data["runs"][1]["per_class"]["Diving"] = 0.5, 0.625
    data["videos"][1]["runs"][1] = None
    tab = show(data)
    names = [run["name"] for run in data["runs"]]
    labels = tab.locator(".found .label").all_text_contents()
    assert labels[:2] == names and len(labels) == 2 * tab.locator("button.class").count()
    tab.locator("#threshold").fill("0")
    assert bars(tab) == 4
    rows = tab.locator(".counts tbody tr").all_text_contents()
    assert rows[0].startswith(f"This video, {names[0]}2 of 2") and rows[1].startswith(f"This video, {names[1]}2 of 2")
    tab.locator(".entry").nth(1).click()
    assert tab.locator("#video-title").text_content() == data["videos"][1]["id"]
    tab.locator("#tab-results").click()
    assert tab.locator("#results .group th").first.text_content() == names[0]
    difference = tab.locator("#results tbody tr", has=tab.locator("th", has_text="Diving")).locator("td").last
    assert difference.text_content() == "+12.5"
    assert tab.locator(".differs th").all_text_contents() == ["steps"]


def test_what_is_missing_is_said(show):
    data = short()
    data["videos"][0].update(truth=None)
    data["videos"][0]["runs"][0].update(scores=None)
    data["runs"][0].update(results=None, analysis=None, per_class=None, curves=[], command=None)
    data["elsewhere"] = [["other", "videos-2.html"]]
    tab = show(data)
    assert tab.locator(".bar.unknown").count() > 0 and tab.locator(".bar.hit, .bar.false").count() == 0
    assert "No curves" in tab.locator(".rows").text_content()
    assert tab.locator("#elsewhere a").get_attribute("href") == "videos-2.html#video=other"
    tab.locator("#tab-results").click()
    assert "nothing was measured" in tab.locator("#results").text_content()
    empty = show({**data, "videos": []})
    assert empty.locator("#detail").text_content().startswith("No videos")


def test_the_address_leads_to_a_video_or_to_the_results(show):
    tab = show(short(), where="#video=video_test_0000078")
    assert tab.locator("#video-title").text_content() == "video_test_0000078"
    tab.locator("#tab-videos").press("ArrowRight")
    assert tab.evaluate("location.hash") == "#tab=results" and tab.locator("#results").is_visible()
    tab.reload()
    assert tab.locator("#results").is_visible() and not tab.locator("#videos").is_visible()


@pytest.mark.parametrize(("width", "color"), [(1280, "light"), (400, "dark")])
@pytest.mark.parametrize("kind", ["videos", "images"])
def test_accessible_and_not_wider_than_the_window(show, kind, width, color):
    if not AXE.exists():
        pytest.skip("no axe-core: npm install --no-save axe-core")
    data = short(runs=2) if kind == "videos" else made_up_page.page_of_images(runs=2)
    if kind == "videos":
        data["videos"][0]["strip"] = made_up_page.strip()
    tab = show(data, width=width, color=color)
    tab.evaluate(AXE.read_text(encoding="utf-8"))  # the page's policy forbids a <script>
    for name in (kind, "results"):
        tab.locator(f"#tab-{name}").click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        found = tab.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        serious = [
            (one["id"], [node["html"][:120] + node.get("failureSummary", "") for node in one["nodes"][:3]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert not serious


def entries(tab) -> list[str]:
    return tab.locator(".shot .name").all_text_contents()


def test_images_have_their_map_and_boxes(show):
    data = made_up_page.page_of_images()
    tab = show(data)
    assert entries(tab) == [image["id"] for image in data["images"]]
    assert tab.locator("#gallery img, .gone").count() == 6 and tab.locator(".gone").count() == 1
    first = tab.locator(".shot").first
    stage, true, found = (first.locator(one).bounding_box() for one in (".stage", ".is-true", ".is-found"))
    for box, expected in ((true, [20, 10, 60, 50]), (found, [0, 0, 40, 40])):  # of 80 x 60
        got = [box["x"] - stage["x"], box["y"] - stage["y"], box["width"], box["height"]]
        x0, y0, x1, y1 = (x * stage["width"] / 80 for x in expected)
        assert got == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=4)  # the stroke
    pixels = "one => [...one.getContext('2d').getImageData(0, 0, one.width, one.height).data]"
    values = np.array(first.locator("canvas").evaluate(pixels)).reshape(3, 4, 4)
    assert values[0, 0].tolist() == [0, 0, 4, 255] and values[2, 3].tolist() == [252, 255, 164, 255]
    assert (np.diff(values[..., :3].sum(-1).ravel()) > 0).all()  # brighter where the map is higher
    tab.locator("#heat").fill("0.2")
    assert first.locator("canvas").evaluate("one => getComputedStyle(one).opacity") == "0.2"
    assert first.locator("figcaption").text_content() == "Diving 0.834right"


def test_images_are_filtered_by_class_and_verdict(show):
    data = made_up_page.page_of_images()
    tab = show(data)
    assert tab.locator("#count").text_content() == "6 of 6 images · 2 of 5 right"
    for verdict, text in (("right", "2 of 2 right"), ("class", "0 of 1 right"), ("box", "0 of 2 right")):
        tab.locator("#filter-verdict").select_option(verdict)
        chosen = [image["id"] for image in data["images"] if image["runs"][0]["verdict"] == verdict]
        assert entries(tab) == chosen and text in tab.locator("#count").text_content()
    tab.locator("#filter-verdict").select_option("wrong")
    assert len(entries(tab)) == 3
    tab.locator("#filter-verdict").select_option("")
    tab.locator("#filter-class").select_option(label=made_up_page.HOSTILE)
    assert entries(tab) == ["test/2.jpg", "test/5.jpg"]  # found there
    tab.locator("#map").select_option("true")
    assert tab.locator(".shot").first.locator("canvas, .is-found").count() == 0  # no map of that class was kept
    tab.locator("#filter-class").select_option("")
    tab.locator("#search").fill("nothing is called so")
    assert entries(tab) == [] and "No image matches" in tab.locator("#count").text_content()


def test_images_of_several_runs(show):
    data = made_up_page.page_of_images(runs=2, images=60)
    data["elsewhere"] = [["page 2", "index-2.html"]]
    tab = show(data)
    assert tab.locator(".shot").count() == 48 and tab.locator(".shot").first.locator("canvas").count() == 2
    tab.locator("#more").click()
    assert tab.locator(".shot").count() == 60 and not tab.locator("#more").is_visible()
    tab.locator("#filter-verdict").select_option("differ")
    verdicts = [{run["verdict"] for run in image["runs"]} for image in data["images"]]
    assert len(entries(tab)) == sum(len(of) > 1 for of in verdicts) > 0
    assert tab.locator("#elsewhere a").get_attribute("href") == "index-2.html"
    tab.locator("#tab-images").press("ArrowRight")
    floors = tab.locator("#results .floor th").all_text_contents()
    assert floors[:2] == ["whole image", "shuffled"] and "6 test images" in tab.locator("#results").text_content()
    tab.reload()
    assert tab.locator("#results").is_visible() and not tab.locator("#images").is_visible()


def test_chapters_are_read_as_they_were_written(browser, tmp_path):
    """A `<track>` with our WebVTT: times and texts come out as they went in."""
    names = ["snatch <1> & co", "a --> b", made_up_page.HOSTILE]
    segments = tuple(Segment(1.25 + i, 4.5 + i, name, 0.5) for i, name in enumerate(names))
    (path,) = subtitles.write_webvtt([Labelled("v", segments)], names, tmp_path, "detections")
    text = base64.b64encode(path.read_bytes()).decode()
    tab = browser.new_page()
    tab.set_content(f'<video><track kind="chapters" src="data:text/vtt;base64,{text}"></video>')
    tab.evaluate("() => { document.querySelector('track').track.mode = 'hidden'; }")
    tab.wait_for_function("() => document.querySelector('track').readyState === 2", timeout=5000)
    code = """() => [...document.querySelector('track').track.cues].map(
        (cue) => [cue.startTime, cue.endTime, cue.getCueAsHTML().textContent])"""
    assert tab.evaluate(code) == [[one.start, one.end, one.label] for one in segments]
    tab.close()
