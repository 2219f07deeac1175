"""The one error that this room raises for what a user can cause: bad files, bad days, unknown layouts."""


class DataError(ValueError):
    """A source or a lake that cannot be used as it is. The message names the thing, the value and the mend."""
