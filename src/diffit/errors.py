"""What a user can mend: one line, exit code 2, no traceback."""


class DiffitError(Exception):
    """A mistake of the user; its text is one sentence that says what to do."""


class ConfigError(DiffitError):
    """A configuration file or option is wrong."""


class CheckpointError(DiffitError):
    """A checkpoint is missing, damaged, or does not fit."""


class DataError(DiffitError):
    """A data set or an image cannot be used as it is."""


class UsageError(DiffitError):
    """The arguments of a command contradict each other or the file system."""
