"""Errors for the person who started the program."""


class UserError(ValueError):
    """Something that the user can fix: a flag, a file, a list. Programs print its message alone and exit with 2."""


class ReadError(UserError):
    """A clip that cannot be read in the middle of a run."""


class FileError(UserError):
    """A file that cannot be used: the message names it, what is wrong with it and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
