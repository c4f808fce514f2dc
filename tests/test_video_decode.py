"""From a video file to pictures: each file is made, or damaged, by the test that wants it."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av", reason="needs the extra [video]")
pytest.importorskip("cv2", reason="needs the extra [video]")

from tiny_extractor import HEIGHT, WIDTH, encode, picture, regular  # noqa: E402

from wsal_jax.types import InputError  # noqa: E402
from wsal_jax.video import decode, features  # noqa: E402


def read(path, fps=Fraction(25), **options):
    """All pictures, as decoded at their own size, and what was seen."""
    with decode.opened(path, **options) as (container, stream, seen):
        timed = decode.pictures(path, container, stream, seen, lambda width, height: (width, height), **options)
        chosen = decode.native(timed, seen, path) if fps is None else decode.resample(timed, fps)
        return [one() for one in chosen], seen


def indices(pictures):
    """Which frame of `encode` each picture is (modulo 60), by its gray level."""
    return [round(float(np.median(image[:8])) / 4) for image in pictures]


def filtered(path, fps):
    """The indices that FFmpeg's filter gives."""
    graph, found = av.filter.Graph(), []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        source, sink = graph.add_buffer(template=stream, time_base=stream.time_base), graph.add("buffersink")
        rate = graph.add("fps", f"fps={fps}")
        source.link_to(rate)
        rate.link_to(sink)
        graph.configure()
        frames = [*container.decode(stream), None]
        for frame in frames:
            source.push(frame)
            while True:
                try:
                    found.append(sink.pull().to_ndarray(format="rgb24"))
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
    return indices(found)


def irregular(count):
    steps = np.random.default_rng(0).integers(20, 150, count)
    return [Fraction(int(x - steps[0]), 1000) for x in np.cumsum(steps)]


@pytest.mark.parametrize("times", [regular(60, 30), regular(60, Fraction(30000, 1001)), regular(40, 50), irregular(40)])
def test_resampling_is_the_filter_of_ffmpeg(tmp_path, times):
    path = encode(tmp_path / "a.mkv", times)
    pictures, seen = read(path)
    slots = [math.floor(25 * (t - times[0]) + Fraction(1, 2)) for t in times]
    expected = filtered(path, 25)  # that of the library leaves out the last frame, whose end it is not told
    assert indices(pictures)[: len(expected)] == expected
    assert len(expected) == slots[-1] and len(pictures) == slots[-1] + 1
    assert seen.frames == len(times)


@pytest.mark.parametrize("fps", [Fraction(25), Fraction(10), Fraction(30000, 1001)])
def test_resampling_by_its_definition(fps):
    """Slot k shows the last frame whose slot floor(fps t + 1/2) is <= k."""
    times = irregular(30)
    slots = [math.floor(fps * t + Fraction(1, 2)) for t in times]
    expected = [max(i for i, slot in enumerate(slots) if slot <= k) for k in range(slots[-1] + 1)]
    assert list(decode.resample(zip(times, range(30)), fps)) == expected
    assert list(decode.resample([], fps)) == []


def test_times_that_go_back_count_as_the_one_before():
    times = [Fraction(0), Fraction(1), Fraction(1, 2), Fraction(2)]
    assert list(decode.resample(zip(times, "abcd"), Fraction(2))) == ["a", "a", "c", "c", "d"]


def test_mean_rate_and_varying_rate(tmp_path):
    """Matroska's clock of milliseconds makes 30 frames a second 33, 33 and 34 ms: the rate is still 30."""
    _, seen = read(encode(tmp_path / "a.mkv", regular(61, 30)), None)
    assert seen.fps == 30 and not seen.vfr
    path = encode(tmp_path / "b.mkv", irregular(20))
    _, seen = read(path)
    assert seen.vfr
    with pytest.raises(InputError, match=r"b.mkv.*no native frame rate: give --fps 25"):
        read(path, None)


def test_first_time_is_zero(tmp_path):
    stream = encode(tmp_path / "a.ts", [t + 6 for t in regular(50)], codec="mpeg2video", time_base=Fraction(1, 25))
    late = encode(tmp_path / "b.mkv", [t + Fraction(7, 10) for t in regular(50)])
    for path in (stream, late):
        pictures, seen = read(path)
        assert seen.start > 0.5 and not seen.truncated, path
        assert indices(pictures) == list(range(50)), path


def test_playlists_are_not_opened(tmp_path):
    """They open other files, whatever their name; PyAV without the list of formats does."""
    encode(tmp_path / "real.mp4", regular(10))
    encode(tmp_path / "real.ts", regular(10), codec="mpeg2video", time_base=Fraction(1, 25))
    concat = tmp_path / "cat.mp4"
    concat.write_text("ffconcat version 1.0\nfile real.mp4\n")
    playlist = tmp_path / "list.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.4,\nreal.ts\n#EXT-X-ENDLIST\n")
    with av.open(str(concat)) as container:
        assert len(list(container.decode(video=0))) == 10
    for path in (concat, playlist):
        with pytest.raises(InputError, match=f"{path.name}: is not a video, or damaged"):
            read(path)


def test_files_that_are_no_videos(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "dash.mp4").write_text(
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"/>'
    )
    still = av.CodecContext.create("mjpeg", "w")
    still.width, still.height, still.pix_fmt, still.time_base = WIDTH, HEIGHT, "yuvj420p", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(picture(3), format="rgb24").reformat(format="yuvj420p")
    (tmp_path / "picture.mp4").write_bytes(b"".join(map(bytes, still.encode(frame))))
    for name in ("empty", "text", "dash", "picture"):
        with pytest.raises(InputError, match=f"{name}.mp4: is not a video, or damaged"):
            read(tmp_path / f"{name}.mp4")
    with pytest.raises(InputError, match="there is no such file"):
        read(tmp_path / "none.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match="is not a file"):
        read(tmp_path / "folder.mp4")


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        output.mux(stream.encode(frame))
    with pytest.raises(InputError, match=r"sound.mkv: has no video stream"):
        read(path)


def test_a_name_with_a_colon_is_a_file(tmp_path):
    path = encode(tmp_path / "http:a.mkv", regular(10))
    assert len(read(path)[0]) == 10


def test_cover_pictures_are_passed_over(tmp_path):
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as output:
        cover, stream = output.add_stream("mjpeg", rate=25), output.add_stream("libx264", rate=25, options={"qp": "0"})
        for one, pixels in ((cover, "yuvj420p"), (stream, "yuv420p")):
            one.width, one.height, one.pix_fmt = WIDTH, HEIGHT, pixels
        cover.disposition = int(av.stream.Disposition.attached_pic.value)
        for one, count in ((cover, 1), (stream, 20)):
            for i in range(count):
                frame = av.VideoFrame.from_ndarray(picture(100 if one is cover else i), format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                output.mux(one.encode(frame.reformat(format=one.pix_fmt)))
            output.mux(one.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 2  # so there is something to pass over
    assert indices(read(path)[0]) == list(range(20))


def test_truncated_matroska(tmp_path):
    """FFmpeg gives fewer frames and no error."""
    path = encode(tmp_path / "a.mkv", regular(200), container="matroska")
    assert not read(path)[1].truncated
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    pictures, seen = read(path)
    assert 80 < len(pictures) < 150 and indices(pictures) == [i % 60 for i in range(len(pictures))]
    assert seen.truncated


def test_truncated_mp4(tmp_path):
    """With the table of frames in front, those that are there are used; behind, nothing can be."""
    path = encode(tmp_path / "a.mp4", regular(200), movflags="faststart")
    assert not read(path)[1].truncated
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    pictures, seen = read(path)
    assert 80 < len(pictures) < 150 and indices(pictures)[:-2] == [i % 60 for i in range(len(pictures))][:-2]
    assert seen.truncated
    path = encode(tmp_path / "b.mp4", regular(50))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"b.mp4: is not a video, or damaged"):
        read(path)


def test_a_missing_last_second_is_no_truncation(tmp_path):
    """Up to 1 s or 5 %, as where sound goes on for longer."""
    seen = decode.Seen(stated=10.0, frames=228, last=Fraction(9))
    assert not seen.truncated
    assert decode.Seen(stated=10.5, frames=228, last=Fraction(9)).truncated
    assert not decode.Seen(stated=103.0, frames=2476, last=Fraction(99)).truncated
    assert decode.Seen(stated=106.0, frames=2476, last=Fraction(99)).truncated
    assert decode.Seen(stated=9.0, frames=228, last=Fraction(9), broken=True).truncated
    assert not decode.Seen(frames=228, last=Fraction(9)).truncated  # nothing is known


def test_damaged_frames_are_counted(tmp_path):
    path = encode(tmp_path / "a.mkv", regular(100), codec="libx264", container="matroska")
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.integers(len(content) // 3, len(content) * 2 // 3, 8):
        content[place] ^= 0xFF
    path.write_bytes(content)
    _, seen = read(path)
    assert seen.frames > 80 and seen.corrupt > 2
    info = {"truncated": False, "corrupt_frames": seen.corrupt, "source_frames": seen.frames}
    assert features.warnings(info) == [f"{seen.corrupt} of {seen.frames} frames are damaged"]
    assert features.warnings({**info, "corrupt_frames": 1, "source_frames": 100}) == []


MATRICES = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


@pytest.mark.parametrize("degrees", MATRICES)
def test_rotation(tmp_path, degrees):
    """The matrix in the track's header says how many degrees, clockwise, a player turns the picture."""
    path = encode(tmp_path / "a.mp4", regular(3))
    plain = read(path)[0]
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version 0
    a, b, c, d = MATRICES[degrees]
    content[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    turned, seen = read(path)
    assert seen.rotation % 360 == -degrees % 360
    np.testing.assert_array_equal(turned[0], np.rot90(plain[0], -degrees // 90 % 4))
    assert turned[0].shape[:2] == ((WIDTH, HEIGHT) if degrees in (90, 270) else (HEIGHT, WIDTH))


def test_large_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp4", regular(3))
    assert len(read(path, max_pixels=WIDTH * HEIGHT)[0]) == 3
    monkeypatch.setattr(decode, "frames", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(InputError, match=r"a.mp4: has 64 x 48 pixels.*--max-pixels 3072"):
        read(path, max_pixels=WIDTH * HEIGHT - 1)


@pytest.mark.parametrize(
    "name, codec, pixels",
    [
        ("ten.mkv", "libx264", "yuv420p10le"),
        ("full.mp4", "libx264", "yuv444p"),
        ("web.webm", "libvpx-vp9", "yuv420p"),
        ("old.avi", "mpeg4", "yuv420p"),
        ("anime.gif", "gif", "rgb8"),
        ("motion.mov", "mjpeg", "yuvj422p"),
    ],
)
def test_all_pixels_become_8_bit_rgb(tmp_path, name, codec, pixels):
    """The square is red to the right of black: of right order, and at its place."""
    path = encode(tmp_path / name, regular(6, 20), codec=codec, pixels=pixels, time_base=Fraction(1, 100))
    pictures, seen = read(path, Fraction(20))
    assert len(pictures) == 6 and not seen.truncated
    assert pictures[0].dtype == np.uint8 and pictures[0].shape == (HEIGHT, WIDTH, 3)
    for i, image in enumerate(pictures):
        red, green, blue = image[HEIGHT // 2 + 3, 5 * i + 4].astype(int)
        assert red > 150 and green < 100 and blue < 100, i


def test_times_that_are_hours_apart_are_damage(tmp_path):
    path = encode(tmp_path / "a.mkv", [*regular(10), Fraction(4000)])
    with pytest.raises(InputError, match=r"a.mkv: 4000 s pass .* times in the file are damaged"):
        read(path)
