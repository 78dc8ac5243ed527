"""The one class of errors that a user can mend."""


class UserError(Exception):
    """A user's mistake, told in one line.

    The line names the key or the file, the value that was given and what is allowed. `main.py`
    prints it and exits with status 2; every other exception is a bug and keeps its traceback.
    """
