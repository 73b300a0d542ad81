"""What is in force: what the files said when they were last read, but for what waits for a restart."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from moorage.configuration.settings import DEFAULT, Loaded, Settings

_log = logging.getLogger(__name__)


class Entry(msgspec.Struct, frozen=True):
    """An option, as it is told.

    Attributes:
        name: as in the file; the values are as well.
        value: in force.
        default: that it has if nobody sets it.
        source: where the value comes from.
        after: the value after a restart, and where that comes from, if it is another one.
    """

    name: str
    value: str
    default: str
    source: str
    after: tuple[str, str] | None = None


class Configuration:
    """The configuration of the service.

    Args:
        load: reads the files.

    Attributes:
        settings: the values in force.
    """

    def __init__(self, load: Callable[[], Loaded]) -> None:
        self._load = load
        self._loaded = loaded = load()
        self.settings = loaded.settings
        self._sources = dict(loaded.sources)
        self._overridden: set[str] = set()
        self._followers: list[Callable[[Settings], None]] = []

    @property
    def problems(self) -> list[str]:
        """What is wrong with the files, as they were last read."""
        return [str(problem) for problem in self._loaded.problems]

    def follow(self, follower: Callable[[Settings], None]) -> None:
        """Call a function with the settings, now and whenever they have changed."""
        self._followers.append(follower)
        follower(self.settings)

    def report(self) -> None:
        """Log what is wrong with the files."""
        for problem in self._loaded.problems:
            _log.log(logging.ERROR if problem.severe else logging.WARNING, "%s", problem)

    def read(self) -> Loaded:
        """Read the files again, and change nothing yet. This may take a moment, in any thread."""
        return self._load()

    def take(self, loaded: Loaded) -> list[str]:
        """Put in force what can be without a restart.

        Returns:
            Names of the options that wait for one.
        """
        from moorage.configuration.options import OPTIONS, name_of

        self._loaded = loaded
        waiting: list[str] = []
        now: dict[str, Any] = {}
        for field, option in OPTIONS.items():
            waits = field in self._overridden or option.at_restart
            if waits and getattr(loaded.settings, field) != getattr(self.settings, field):
                waiting.append(name_of(field))
                continue
            if field in self._overridden:
                continue
            now[field] = getattr(loaded.settings, field)
            self._set_source(field, loaded.sources.get(field))
        self._change(now)
        return waiting

    def override(self, field: str, value: Any, source: str) -> None:
        """Set an option until the service ends, whatever the files say.

        Args:
            field: of :class:`Settings`.
            value: that it gets.
            source: who does so.
        """
        self._overridden.add(field)
        self._set_source(field, source)
        self._change({field: value})

    def entries(self) -> Iterator[Entry]:
        """Describe all options."""
        from moorage.configuration.options import OPTIONS, changed, name_of, written

        defaults, later = Settings(), self._loaded
        differing = set(changed(self.settings, later.settings))
        for field in OPTIONS:
            after = None
            if field in differing:
                after = written(later.settings, field), later.sources.get(field, DEFAULT)
            yield Entry(
                name_of(field),
                written(self.settings, field),
                written(defaults, field),
                self._sources.get(field, DEFAULT),
                after,
            )

    def _set_source(self, field: str, source: str | None) -> None:
        if source is None:
            self._sources.pop(field, None)
        else:
            self._sources[field] = source

    def _change(self, values: dict[str, Any]) -> None:
        settings = msgspec.structs.replace(self.settings, **values)
        if settings == self.settings:
            return
        self.settings = settings
        for follower in self._followers:
            follower(settings)
