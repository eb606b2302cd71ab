"""Errors that speak to the person who started the program."""


class UserError(ValueError):
    """Something that the user can mend: a flag, a file, a list. Programs print its message alone and exit with 2."""


class ReadError(UserError):
    """A clip that cannot be read in the middle of a run."""
