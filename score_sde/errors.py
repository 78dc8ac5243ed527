"""The one exception for mistakes of users."""

from collections.abc import Sequence


class UserError(Exception):
    """A mistake of the user: one line that names the key or file, the value and what is allowed.

    `main.py` prints it and exits with status 2; everything else is a bug and keeps its traceback.

    Attributes:
        details: further lines, printed before it, where the one line has to leave something out.
    """

    def __init__(self, line: str, details: Sequence[str] = ()) -> None:
        super().__init__(line)
        self.details = details
