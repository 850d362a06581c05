"""LossFactory: from settings to the objective of a run."""

from functools import partial

from vembed.errors import ConfigError
from vembed.losses.objective import Objective
from vembed.losses.registry import LossRegistry
from vembed.losses.settings import LossSettings
from vembed.scoring import Scorer, cosine
from vembed.utils.settings import Section


class LossFactory:
    """Builds objectives."""

    @staticmethod
    def create(settings: LossSettings, options: Section | None = None, *, scorer: Scorer = cosine) -> Objective:
        """The objective for `settings.loss_type`, with that loss's own `options` (None: its defaults).

        Raises ConfigError for an unknown loss, naming the nearest, and for options of another loss.

        >>> LossFactory.create(LossSettings(loss_type="infonse"))
        Traceback (most recent call last):
        vembed.errors.ConfigError: unknown loss_type 'infonse'; did you mean 'infonce'? Known: infonce
        """
        loss = LossRegistry.get(settings.loss_type)
        chosen = loss.settings() if options is None else options
        if not isinstance(chosen, loss.settings):
            right, wrong = loss.settings.__name__, type(chosen).__name__
            raise ConfigError(f"loss_type {settings.loss_type!r} takes {right} as its options, not {wrong}")
        return Objective(partial(loss.load(), settings=chosen), scorer)
