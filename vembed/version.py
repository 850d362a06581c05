"""The version of the package, apart from it, so that any module may read it."""

__version__ = "0.1.0"
