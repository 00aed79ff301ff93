"""The one error class that more than one module of this package raises."""


class DataError(ValueError):
    """The user's data cannot be used as the pipeline file says; the message names the place."""
