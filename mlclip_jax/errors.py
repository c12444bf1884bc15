"""The exceptions that are no defects: what the user must mend, and an order to stop."""


class InputError(Exception):
    """Something given by the user cannot be used.

    Its message is one line: what was wrong, with the value, and the remedy. The command line prints that
    line and exits with code 2; any other exception is a defect of this package and keeps its traceback.
    """


class Preempted(Exception):
    """A run was told to stop (SIGTERM), has saved where it stands, and can be started again.

    Its message is one line; the command line prints it and exits with code 75.
    """
