"""What is wrong with the input, rather than with the program."""


class InputError(ValueError):
    """A file, an option or a checkpoint is not as it has to be; the message says which, and how, in one sentence."""


class MissingPackageError(ImportError):
    """A package that an extra of this one brings is not installed; the message says which extra."""
