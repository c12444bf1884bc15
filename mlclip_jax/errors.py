"""Exceptions that are not bugs: invalid input, and a request to stop."""


class InputError(Exception):
    """Something given by the user cannot be used.

    Its message is one line: what was wrong, with the value, and the remedy. The command line prints that
    line and exits with code 2; any other exception is a defect of this package and keeps its traceback.
    """


class Preempted(BaseException):
    """A run was asked to stop (SIGTERM). What it has done is saved; the same command resumes it.

    No `Exception`, as it may come anywhere, and is no failure of what it interrupts. Its message is one line;
    the command line prints it and exits with code 75.

    Attributes:
      together: whether all processes of the run stop at this point.
    """

    def __init__(self, message: str, *, together: bool = False) -> None:
        super().__init__(message)
        self.together = together
