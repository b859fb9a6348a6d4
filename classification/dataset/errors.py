"""What can be wrong with data."""


class DataError(ValueError):
    """The data set cannot be used as it is; the message says what was found and what to do."""


class CorruptDataError(DataError):
    """Too many unreadable images (more than DATA.MAX_CORRUPT)."""
