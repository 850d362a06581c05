"""One place that decides how log lines look: rich on a terminal, plain lines elsewhere, main process only."""

import functools
import logging
import sys
from typing import TYPE_CHECKING

from vembed.utils.distributed import is_main_process

if TYPE_CHECKING:
    from rich.console import Console

_ROOT = "vembed"


@functools.cache
def console() -> "Console":
    """The console of log lines and progress bars, on standard error; shared, so that they do not tear each other."""
    from rich.console import Console  # noqa: PLC0415 - heavy

    return Console(stderr=True)


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

        return RichHandler(console=console(), show_path=False, log_time_format="%H:%M:%S")
    plain = logging.StreamHandler()
    plain.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"))
    return plain
