"""Data components by name: the collators, under the seed's path."""

from vembed.data.collators.registry import CollatorRegistry

__all__ = ["CollatorRegistry"]
