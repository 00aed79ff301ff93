"""Error classes that more than one module of this package raises."""


class DataError(ValueError):
    """The user's data cannot be used as the pipeline file says; the message names the place."""


class OutOfMemoryError(MemoryError):
    """There is not enough memory on the worker; a smaller micro-batch needs less."""
