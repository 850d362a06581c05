"""The exceptions a user can meet. All of them are a `VembedError`, so one `except` catches the lot."""


class VembedError(Exception):
    """Says what went wrong, where, and what would be right. The command line prints it without a traceback."""

    exit_code = 1


class UsageError(VembedError):
    """The command or call itself is wrong: an unknown option, a folder that is in use."""

    exit_code = 2


class ConfigError(UsageError):
    """One or more settings are unknown, out of range or contradict each other. Lists all of them."""


class DataError(VembedError):
    """A row, a file or an image cannot be used. Names the file and line."""

    exit_code = 2


class ModelError(VembedError):
    """A model cannot be loaded, or cannot do what is asked of it."""

    exit_code = 2


class NotFiniteError(VembedError):
    """A loss or a gradient is no finite number. Names the step and the rows."""


class CheckpointError(VembedError):
    """A checkpoint cannot be written, read or resumed."""


class WorkerError(VembedError):
    """A process that loads rows could not be started, or ended. Says of what, and what would need less."""


class Interrupted(VembedError):
    """A signal stopped a run, which left a checkpoint. The exit code is the shell's for that signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
