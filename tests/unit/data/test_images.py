"""Every kind of picture as what a person sees, and the refusal of everything that is none."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

from tests.pictures import make_picture, write_picture
from vembed.data.hashing import image_hash
from vembed.data.images import check_file, read_bytes, read_image
from vembed.errors import DataError
from vembed.types import ImageSource

LIMIT = 1_000_000


def _encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _read(data, limit=LIMIT):
    return read_image(ImageSource(data=data, origin="train.jsonl:17: positive"), max_pixels=limit)


def _pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def test_an_ordinary_png_keeps_its_pixels(tmp_path):
    path = write_picture(tmp_path / "a.png", seed=1)
    image = read_image(ImageSource(path=path), max_pixels=LIMIT)
    assert np.array_equal(_pixels(image), _pixels(make_picture(1)))


def test_path_bytes_and_pil_give_the_same_picture(tmp_path):
    path = write_picture(tmp_path / "a.jpg", seed=2)
    data = (tmp_path / "a.jpg").read_bytes()
    sources = (ImageSource(path=path), ImageSource(data=data), ImageSource(pil=PIL.Image.open(path)))
    first, *others = (_pixels(read_image(source, max_pixels=LIMIT)) for source in sources)
    assert all(np.array_equal(first, other) for other in others)


def test_a_cmyk_jpeg_keeps_its_colours():
    picture = make_picture(3)
    pixels = _pixels(_read(_encoded(picture.convert("CMYK"), "JPEG", quality=100, subsampling=0)))
    assert np.abs(pixels - _pixels(picture)).mean() < 3


def test_a_palette_picture_gets_its_colours():
    pixels = _pixels(_read(_encoded(make_picture(4).quantize(256))))
    assert np.abs(pixels - _pixels(make_picture(4))).mean() < 12


def test_transparency_is_over_white_whatever_colour_hides_below():
    picture = PIL.Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (200, 0, 0, 255))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    assert _pixels(_read(_encoded(picture)))[0].tolist() == [[255] * 3, [200, 0, 0], [127] * 3]


def test_a_transparent_palette_entry_is_white():
    picture = PIL.Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    assert _pixels(_read(_encoded(picture, transparency=0)))[0].tolist() == [[255] * 3, [200, 100, 50]]


def test_grey_with_alpha_is_over_white():
    picture = PIL.Image.new("LA", (2, 1), (40, 255))
    picture.putpixel((1, 0), (40, 0))
    assert _pixels(_read(_encoded(picture)))[0].tolist() == [[40] * 3, [255] * 3]


@pytest.mark.parametrize("orientation", [1, 3])
@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_a_tiff_whose_zero_is_white_is_no_negative(dtype, top, orientation):
    values = (np.array([[0, 51, 204, 255]]) * (top // 255)).astype(dtype)
    black_is_zero = _encoded(PIL.Image.fromarray(values), "TIFF", tiffinfo={274: orientation})
    entry = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
    assert black_is_zero.count(entry) == 1
    zero_is_white = black_is_zero.replace(entry, struct.pack("<HHIHH", 262, 3, 1, 0, 0))
    grey = _pixels(_read(black_is_zero))[0, :, 0].tolist()
    assert grey == ([0, 51, 204, 255] if orientation == 1 else [255, 204, 51, 0])
    picture = PIL.Image.open(io.BytesIO(zero_is_white))
    for image in (_read(zero_is_white), read_image(ImageSource(pil=picture), max_pixels=LIMIT)):
        assert _pixels(image)[0, :, 0].tolist() == [255 - value for value in grey]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    pixels = _pixels(_read(_encoded(PIL.Image.fromarray(values), kind)))
    assert pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_transparent_sixteen_bit_grey_is_white():
    values = np.array([[257, 514]], np.uint16)
    pixels = _pixels(_read(_encoded(PIL.Image.fromarray(values), transparency=257)))
    assert pixels[0, :, 0].tolist() == [255, 2]


def test_float_pixels_are_refused_because_their_range_is_unknown():
    with pytest.raises(DataError, match=r"train\.jsonl:17.*8 or 16 bits"):
        _read(_encoded(PIL.Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


def test_32_bit_pixels_out_of_the_16_bit_range_are_refused():
    with pytest.raises(DataError, match="no known range"):
        _read(_encoded(PIL.Image.fromarray(np.full((2, 2), 1 << 20, np.int32)), "TIFF"))


def test_a_photo_turned_by_exif_comes_upright():
    exif = PIL.Image.Exif()
    exif[274] = 6  # the camera was turned: show it turned by 90 degrees clockwise
    picture = PIL.Image.new("RGB", (40, 20), (255, 0, 0))
    picture.paste((0, 0, 255), (0, 0, 20, 20))
    image = _read(_encoded(picture, "JPEG", exif=exif, quality=100))
    assert image.size == (20, 40)
    assert image.getpixel((10, 5))[2] > 200  # the left half, blue, is now on top
    assert image.getpixel((10, 35))[0] > 200


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind):
    frames = [PIL.Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    data = _encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=10)
    red, green, _ = _pixels(_read(data)).mean((0, 1))
    assert red > 200
    assert green < 60


def test_one_bit_pictures_are_black_and_white():
    picture = PIL.Image.new("1", (2, 1))
    picture.putpixel((1, 0), 1)
    assert _pixels(_read(_encoded(picture)))[0].tolist() == [[0] * 3, [255] * 3]


def test_a_missing_file_is_refused_with_row_and_path(tmp_path):
    source = ImageSource(path=str(tmp_path / "no.png"), origin="train.jsonl:17: positive")
    for read in (lambda: read_image(source, max_pixels=LIMIT), lambda: check_file(source)):
        with pytest.raises(DataError, match=r"train\.jsonl:17: positive: .*no\.png: there is no such image file"):
            read()


def test_a_folder_in_place_of_an_image_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_image(ImageSource(path=str(tmp_path)), max_pixels=LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_an_image_cut_short_anywhere_is_refused_and_never_half_grey(kind):
    whole = _encoded(make_picture(5, (200, 150)), kind)
    num_refused = 0
    for share in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(DataError, match=r"train\.jsonl:17"):
            _read(whole[: int(len(whole) * share)])
        num_refused += 1
    assert num_refused == 4


def test_flipped_bytes_raise_nothing_but_data_errors():
    whole = bytearray(_encoded(make_picture(6)))
    num_refused = 0
    for place in range(0, len(whole), 7):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        try:
            _read(bytes(broken))
        except DataError:
            num_refused += 1
    assert num_refused > 20


@pytest.mark.parametrize("data", [b"", b"no image at all", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(DataError, match=r"train\.jsonl:17: positive: (not an image|the image is cut off)"):
        _read(data)


def test_a_bomb_is_refused_by_its_header_before_it_is_unpacked():
    bomb = bytearray(_encoded(PIL.Image.new("L", (1, 1))))
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 30_000, 8, 0, 0, 0, 0)
    bomb[12:33] = header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(DataError, match="40000 x 30000 pixels, over max_image_pixels = 100000000"):
        _read(bytes(bomb), limit=100_000_000)


def test_the_limit_is_ours_alone_and_exact():
    data = _encoded(PIL.Image.new("L", (20, 10)))
    assert _read(data, limit=200).size == (20, 10)
    with pytest.raises(DataError, match="20 x 10"):
        _read(data, limit=199)


def test_pillows_own_limit_neither_decides_nor_is_changed(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 50)
    assert _read(_encoded(PIL.Image.new("L", (20, 10)))).size == (20, 10)
    assert PIL.Image.MAX_IMAGE_PIXELS == 50


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"


def _other_formats():
    """Files of formats that Pillow opens and that are not read here, by the name of its decoder."""
    picture = make_picture(1)
    files = {kind: _encoded(picture, kind) for kind in ("ICO", "PCX", "TGA", "SGI", "ICNS", "DDS")}
    wmf = b"\xd7\xcd\xc6\x9a\0\0\0\0\0\0\x28\0\x28\0\x60\0\0\0\0\0\0\0\x01\0\x09\0" + bytes(40)
    grib = b"GRIB" + bytes(3) + b"\x01" + bytes(40)
    return {**files, "EPS": EPS, "WMF": wmf, "GRIB": grib, "PDF": _encoded(picture, "PDF")}


@pytest.mark.parametrize("kind", sorted(_other_formats()))
def test_a_format_that_nobody_asked_for_is_no_image_and_starts_no_program(kind, tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    data = _other_formats()[kind]
    with pytest.raises(DataError, match=r"train\.jsonl:17: positive: not an image"):
        _read(data)
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.png: not an image"):
        read_image(ImageSource(path=str(tmp_path / "x.png")), max_pixels=LIMIT)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["EPS", "ICO", "GRIB"])
def test_a_picture_that_was_opened_from_such_a_file_is_refused_until_it_is_a_copy(kind):
    with pytest.raises(DataError, match=f"opened from a file of format {kind}"):
        read_image(ImageSource(pil=PIL.Image.open(io.BytesIO(_other_formats()[kind]))), max_pixels=LIMIT)
    with pytest.raises(DataError, match=f"opened from a file of format {kind}"):
        read_bytes(ImageSource(pil=PIL.Image.open(io.BytesIO(_other_formats()[kind]))))
    icon = PIL.Image.open(io.BytesIO(_other_formats()["ICO"])).copy()
    assert read_image(ImageSource(pil=icon), max_pixels=LIMIT).size == icon.size


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "MPO"])
def test_every_format_that_pictures_come_in_is_read_from_file_bytes_and_pillow(kind, tmp_path):
    options = {"save_all": True, "append_images": [make_picture(2)]} if kind == "MPO" else {}
    data = _encoded(make_picture(1), kind, **options)
    (tmp_path / "a.bin").write_bytes(data)
    sources = [ImageSource(data=data), ImageSource(path=str(tmp_path / "a.bin"))]
    sources.append(ImageSource(pil=PIL.Image.open(io.BytesIO(data))))
    first, *others = (_pixels(read_image(source, max_pixels=LIMIT)) for source in sources)
    assert np.abs(first - _pixels(make_picture(1))).mean() < 12
    assert all(np.array_equal(first, other) for other in others)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 41)
    for name in ("pipe.png", "link.png", "zero.png", "folder.png", "loop.png", "huge.png"):
        source = ImageSource(path=str(tmp_path / name), origin="train.jsonl:17: positive")
        message = rf"train\.jsonl:17: positive: .*{name}: the image file cannot be read"
        with pytest.raises(DataError, match=message):
            read_image(source, max_pixels=LIMIT)
        with pytest.raises(DataError, match=message):
            image_hash(source)
        if name != "huge.png":  # its size is asked where it is read
            with pytest.raises(DataError, match=message):
                check_file(source)


@pytest.mark.parametrize(
    "path", ["a" * 256, "x" * 100_000, "a\0b.png", "\ud800.png", "a.png/b.png", "/proc/self/mem", "a" * 200 + "\n" * 99]
)
def test_a_name_that_no_picture_can_have_is_a_data_error_of_one_short_line(path, tmp_path):
    write_picture(tmp_path / "a.png", 1)
    source = ImageSource(path=str(tmp_path / path), origin="train.jsonl:17: positive")
    for read in (lambda: read_image(source, max_pixels=LIMIT), lambda: image_hash(source)):
        with pytest.raises(DataError) as caught:
            read()
        assert str(caught.value).startswith("train.jsonl:17: positive: ")
        assert len(str(caught.value)) < 1000
    if not path.startswith("/proc"):
        with pytest.raises(DataError, match=r"train\.jsonl:17: positive: "):
            check_file(source)


def _with_broken_exif():
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\xff\xff\0\0\xff\xff\xff\x7f\0\0\0\0"
    return _encoded(make_picture(1), "JPEG", exif=exif)


def test_what_pillow_warns_of_is_shown_and_does_not_raise_where_warnings_are_errors(recwarn):
    warnings.simplefilter("error")
    before = list(warnings.filters)
    assert _read(_with_broken_exif()).size == (40, 30)
    assert warnings.filters == before
    assert any("EXIF" in str(one.message) or "Tag" in str(one.message) for one in recwarn)
    with pytest.raises(UserWarning, match="of others"):
        warnings.warn("of others", UserWarning, stacklevel=1)


def test_threads_that_read_at_once_leave_the_filters_as_they_were():
    data, before = _with_broken_exif(), list(warnings.filters)
    with ThreadPoolExecutor(8) as threads, pytest.warns(UserWarning, match="EXIF|Tag"):
        pictures = list(threads.map(_read, [data] * 64))
    assert {picture.size for picture in pictures} == {(40, 30)}
    assert warnings.filters == before


def test_a_text_chunk_that_unpacks_to_too_much_is_refused():
    notes = PIL.PngImagePlugin.PngInfo()
    notes.add_text("a", "x" * (1 << 24), zip=True)
    with pytest.raises(DataError, match="the image is cut off or broken"):
        _read(_encoded(make_picture(1), pnginfo=notes))


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(DataError, match="it has 0 x 5 pixels"):
        read_image(ImageSource(pil=PIL.Image.new("RGB", (0, 5))), max_pixels=LIMIT)
