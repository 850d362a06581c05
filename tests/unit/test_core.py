"""The deprecated names still work and say where theirs is now."""

import importlib

import pytest

from vembed.grad_cache import GradCache


def test_the_alias_of_grad_cache_warns_and_is_it():
    with pytest.warns(DeprecationWarning, match=r"import GradCache from vembed\.grad_cache"):
        from vembed.core.gradient_cache import GradCache as Alias  # noqa: PLC0415 - the import warns
    assert Alias is GradCache


def test_other_names_are_not_there():
    alias, package = (importlib.import_module(name) for name in ("vembed.core.gradient_cache", "vembed.grad_cache"))
    for module in (alias, package):
        with pytest.raises(AttributeError, match="has no attribute 'GradCach'"):
            _ = module.GradCach
