"""Reading pictures, and what all builders of images check."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.image_files import picture, write
from wsal_jax.data.images import check_boxes, find_images, open_image, squared
from wsal_jax.formats.checks import Problems

RED = (200, 30, 20)


def flat(mode, color, size=(12, 8)):
    return Image.new(mode, size, color)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (flat("L", 120), "gray.jpg"),
        (flat("RGB", RED).convert("CMYK"), "cmyk.jpg"),
        (flat("RGB", RED).convert("P"), "palette.png"),
        (flat("RGBA", (*RED, 128)), "transparent.png"),
        (flat("1", 1), "bits.png"),
        (Image.fromarray(np.full((8, 12), 120 * 257, np.uint16)), "deep.png"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_every_kind_becomes_rgb(image, name, tmp_path):
    found = open_image(write(tmp_path / name, image), 10_000)
    assert found.mode == "RGB" and found.size == (12, 8)
    expected = {"gray.jpg": (120,) * 3, "bits.png": (255,) * 3, "deep.png": (120,) * 3}.get(name, RED)
    np.testing.assert_allclose(np.asarray(found).mean((0, 1)), expected, atol=8)


def test_an_image_turned_by_exif_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rows run from right to left
    lying = np.zeros((20, 40, 3), np.uint8)
    lying[:, :10] = RED  # the left of the file is the top of the picture
    found = np.asarray(open_image(write(tmp_path / "x.jpg", Image.fromarray(lying), exif=exif), 10_000))
    assert found.shape == (40, 20, 3)
    assert found[:8].mean() > 60 and found[14:].mean() < 10


def test_what_cannot_be_read_is_told(tmp_path):
    good = write(tmp_path / "x.jpg").read_bytes()
    (tmp_path / "short.jpg").write_bytes(good[: len(good) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    picture().save(tmp_path / "program.eps")
    (tmp_path / "program.eps").rename(tmp_path / "program.jpg")
    png = io.BytesIO()
    picture().save(png, "png")
    broken = bytearray(png.getvalue())
    broken[60] ^= 255
    (tmp_path / "broken.png").write_bytes(broken)
    for name, why in (
        ("short.jpg", "[Tt]runcated"),
        ("text.jpg", "is no picture"),
        ("program.jpg", "is no picture"),
        ("empty.png", "is no picture"),
    ):
        with pytest.raises(ValueError, match=f"{why}.*save it again"):
            open_image(tmp_path / name, 10_000)
    with pytest.raises(ValueError, match="save it again"):
        open_image(tmp_path / "broken.png", 10_000)
    with pytest.raises(ValueError, match=r"40 x 30 are more than 1,199 pixels.*max_pixels"):
        open_image(tmp_path / "x.jpg", 1199)
    assert open_image(tmp_path / "x.jpg", 1200).size == (40, 30)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    """A PNG of a few bytes that says it has four thousand million pixels."""
    header = io.BytesIO()
    flat("L", 0).save(header, "png")
    content = bytearray(header.getvalue())
    content[16:24] = (65500).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(ValueError, match="pixels"):
        open_image(tmp_path / "bomb.png", 50_000_000)


def test_squares_are_of_the_whole_image():
    left = Image.fromarray(np.concatenate([np.full((10, 20, 3), 255, np.uint8), np.zeros((10, 20, 3), np.uint8)], 1))
    found = squared(left, 8)
    assert found.shape == (8, 8, 3) and found[:, :3].min() > 200 and found[:, 5:].max() < 50


def test_boxes_outside_are_told_and_others_clipped():
    problems = Problems()
    boxes = [
        ("a", tuple(map(float, box)))
        for box in ((-0.5, 0, 40.9, 30), (-2, 0, 5, 5), (0, 0, 20, 35), (5, 5, 5, 9), (3, 4, 10, 12))
    ]
    found = check_boxes(boxes, (40, 30), "x.jpg", problems)
    assert found == [("a", (0, 0, 40, 30)), ("a", (3, 4, 10, 12))]
    said = "\n".join(problems.lines())
    assert "box -2, 0, 5, 5 is outside" in said and "box 5, 5, 5, 9 is empty" in said
    assert "box 0, 0, 20, 35 is outside of the image of 40 x 30" in said and "EXIF" in said


def test_images_are_found_by_their_suffix_in_order(tmp_path):
    for name in ("b/2.JPEG", "b/10.jpg", "a/x.Png", "a/notes.txt", "c.gif"):
        write(tmp_path / name) if name != "a/notes.txt" else (tmp_path / "a" / "notes.txt").write_text("x")
    assert [x.relative_to(tmp_path).as_posix() for x in find_images(tmp_path)] == [
        "a/x.Png",
        "b/10.jpg",
        "b/2.JPEG",
        "c.gif",
    ]
    assert find_images(tmp_path / "none") == []
