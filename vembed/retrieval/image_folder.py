"""The image files of a folder, by their endings, and what is said of the others."""

import logging
import os
from collections import Counter
from pathlib import Path

from vembed.data.decoding import IMAGE_ENDINGS
from vembed.errors import DataError
from vembed.utils.untrusted import printable

_SHOWN, _SHOWN_LENGTH = 10, 30
_log = logging.getLogger(__name__)


def image_paths(folder: Path) -> list[Path]:
    """The image files below the folder, sorted; says once how many other files there are, but for hidden ones.

    Links to folders are not followed, since they may lead in circles. Raises DataError when there is no image file, or
    a folder cannot be read.
    """
    paths: list[Path] = []
    others: Counter[str] = Counter()
    num_links = 0

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error

    for parent, folders, names in os.walk(folder, onerror=refuse):
        num_links += sum(os.path.islink(os.path.join(parent, name)) for name in folders)  # noqa: PTH114, PTH118 (many)
        is_hidden = any(part.startswith(".") for part in Path(parent).relative_to(folder).parts)
        for name in names:
            ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 (many)
            if ending in IMAGE_ENDINGS:
                paths.append(Path(parent, name))
            elif not is_hidden and not name.startswith("."):
                others[ending] += 1
    if not paths:
        raise DataError(
            f"{folder}: no file in it has the ending of an image ({' '.join(sorted(IMAGE_ENDINGS))});"
            f" {f'it holds {_counts(others)}' if others else 'it is empty'}"
        )
    if num_links:
        _log.warning("%s: %d links to folders in it are not followed; name such a folder itself", folder, num_links)
    if others:
        _log.warning(
            "%s: %s not embedded, for want of an image's ending: %s (give pictures among them the ending of their"
            " format, one of %s)",
            folder, _files(others.total()), _counts(others), " ".join(sorted(IMAGE_ENDINGS)),
        )  # fmt: skip
    return sorted(paths)


def _files(count: int) -> str:
    return f"{count:,} file{'s are' if count > 1 else ' is'}"


def _counts(others: Counter[str]) -> str:
    """Files by their endings, the most first.

    >>> _counts(Counter({".tga": 3, "": 1}))
    '3 .tga, 1 without an ending'
    """
    shown = [
        f"{count:,} {printable(ending[:_SHOWN_LENGTH]) or 'without an ending'}"
        for ending, count in others.most_common(_SHOWN)
    ]
    left = sum(others.values()) - sum(count for _, count in others.most_common(_SHOWN))
    return ", ".join([*shown, f"{left:,} of other endings"] if left else shown)
