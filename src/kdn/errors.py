"""Every error kdn raises on purpose.

KdnError
├── BadInput            what the caller gave cannot be done as asked
│   ├── BadConfig       a setting is unknown or has an impossible value
│   ├── PromptTooLong   more tokens than the model or the memory budget can hold
│   ├── UnknownModel    no model goes by that name here
│   └── DocumentError   a file cannot be read as a document
├── WeightsError        a model's files are missing, torn, or of a kind kdn cannot run
├── StoreError          the store as a whole cannot be used
│   ├── ForeignStore    the folder belongs to something else, or to a newer format
│   ├── NoSpace         the device, the cap or a tenant's quota is full
│   └── Unreachable     a remote tier did not answer in time, or its circuit is open after failures
├── CorruptBlock        one block is damaged; always handled inside: a counted miss, never an answer
│   └── LostBlock       its tier could not hand over the rest; nothing says that it is damaged
├── Cancelled           the caller withdrew the request
├── EngineFailed        the engine stopped; the message carries the cause
├── EndpointFailed      a model behind an address answered nonsense, or not in time
├── ProfileFailed       no profile of a question; always handled inside: another profiler stands in
├── PortInUse           the address to serve on is taken
└── MissingExtra        an optional part of kdn is not installed

A message says what was asked, what was found, and what to do.  Errors of libraries are translated
where the library is called and keep their cause.
"""

from __future__ import annotations

__all__ = [
    "BadConfig",
    "BadInput",
    "Cancelled",
    "CorruptBlock",
    "DocumentError",
    "EndpointFailed",
    "EngineFailed",
    "ForeignStore",
    "KdnError",
    "LostBlock",
    "MissingExtra",
    "NoSpace",
    "PortInUse",
    "ProfileFailed",
    "PromptTooLong",
    "StoreError",
    "UnknownModel",
    "Unreachable",
    "WeightsError",
]


class KdnError(Exception):
    """The root: catch this to catch everything kdn raises on purpose."""


class BadInput(KdnError):
    """What the caller gave cannot be done as asked."""


class BadConfig(BadInput):
    """A setting is unknown, or its value is impossible."""


class PromptTooLong(BadInput):
    """The prompt holds more tokens than the model's context or the KV budget allows."""


class UnknownModel(BadInput):
    """No model goes by that name here."""


class DocumentError(BadInput):
    """A file cannot be read as a document."""


class WeightsError(KdnError):
    """A model's files are missing, torn, or of a kind kdn cannot run."""


class StoreError(KdnError):
    """The store as a whole cannot be used."""


class ForeignStore(StoreError):
    """The folder holds something that is not a store of this format."""


class NoSpace(StoreError):
    """The device, the store's own cap or a tenant's quota is full."""


class Unreachable(StoreError):
    """A remote tier did not answer in time, refused, or its circuit is open after failures."""


class CorruptBlock(KdnError):
    """A stored block is damaged. Callers above the store never see it: it becomes a counted miss."""


class LostBlock(CorruptBlock):
    """A block's tier broke off before its end. The block stays where it is; the reader recomputes."""


class Cancelled(KdnError):
    """The caller withdrew the request before it was finished."""


class EngineFailed(KdnError):
    """The engine stopped while the request was running."""


class EndpointFailed(KdnError):
    """A model behind an address answered nonsense, refused, or did not answer in time."""


class ProfileFailed(KdnError):
    """A profiler gave no profile of a question: it answered nonsense, took too long, or is down."""


class PortInUse(KdnError):
    """The address to serve on is taken by another program."""


class MissingExtra(KdnError):
    """An optional part of kdn is not installed."""
