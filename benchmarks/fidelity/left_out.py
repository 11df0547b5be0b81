"""Why a part of the report is not measured."""

__all__ = ["FailedError", "LeftOutError"]


class LeftOutError(Exception):
    """A part needs what this machine or user has not; its rows stay as they are."""


class FailedError(Exception):
    """A measurement was begun and did not come to its end; what was measured before it stays."""
