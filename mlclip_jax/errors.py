"""The one exception that is the user's to mend."""


class InputError(Exception):
    """Something given by the user cannot be used.

    Its message is one line: what was wrong, with the value, and the remedy. The command line prints that
    line and exits with code 2; any other exception is a defect of this package and keeps its traceback.
    """
