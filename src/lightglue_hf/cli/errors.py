"""Which errors are of input, and their one line: as in utils/errors.py."""

from ..utils.errors import is_of_input, is_out_of_memory, one_line, raised_by, reading

__all__ = ["is_of_input", "is_out_of_memory", "one_line", "raised_by", "reading"]
