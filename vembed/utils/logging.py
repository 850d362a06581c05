"""One place that decides how log lines look: rich on a terminal, plain lines elsewhere, main process only."""

import copy
import functools
import io
import logging
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING, TextIO, cast

from vembed.utils.distributed import is_main_process
from vembed.utils.untrusted import in_one_line, printable

if TYPE_CHECKING:
    from rich.console import Console

_ROOT = "vembed"


@functools.cache
def console() -> "Console":
    """The console of log lines and progress bars, on standard error; shared, so that they do not tear each other."""
    from rich.console import Console  # noqa: PLC0415 - heavy

    return Console(file=cast("IO[str]", _StandardError()))


class _StandardError(io.TextIOBase):
    """Standard error, whatever it is at the time, where nothing fails once nobody reads it any more.

    A terminal may close, and Ctrl-C ends the `tee` behind a pipe too: what is lost is a line, not the run's checkpoint.
    rich would raise from within a progress bar, or leave the process when a pipe breaks.
    """

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute there
        return self._stream().encoding

    def isatty(self) -> bool:
        return self._stream().isatty()

    def fileno(self) -> int:
        return self._stream().fileno()

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream().flush()

    def _stream(self) -> TextIO:
        """A running progress bar puts a stream of its own in the place of standard error, which writes here."""
        stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return stream


def configure_logging(level: int = logging.INFO) -> None:
    """Show the project's log lines on standard error, once however often it is called.

    An application that has set up logging itself (handlers on the root logger) keeps its own handlers. Processes
    other than the main one show warnings only.
    """
    logger = logging.getLogger(_ROOT)
    logger.setLevel(level if is_main_process() else max(level, logging.WARNING))
    if not logger.handlers and not logging.getLogger().handlers:
        logger.addHandler(_handler())


def _handler() -> logging.Handler:
    if sys.stderr.isatty():
        from rich.logging import RichHandler  # noqa: PLC0415 - heavy

        coloured = RichHandler(console=console(), show_path=False, log_time_format="%H:%M:%S", markup=False)
        coloured.setFormatter(_Printable("%(message)s"))
        return coloured
    plain = logging.StreamHandler()
    plain.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    return plain


class _Printable(logging.Formatter):
    """Lines as a terminal may show them. What stands for a %s may come from data: it gets no line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        shown = copy.copy(record)
        if isinstance(record.args, tuple):
            shown.args = tuple(arg if isinstance(arg, int | float) else in_one_line(arg) for arg in record.args)
        return printable(super().format(shown))
