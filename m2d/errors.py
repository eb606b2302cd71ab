"""Errors that speak to the person who started the program."""


class UserError(ValueError):
    """Something that the user can mend: a flag, a file, a list. Programs print its message alone and exit with 2."""
