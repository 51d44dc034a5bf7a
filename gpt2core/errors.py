"""The one error that means "the user can mend this": its text is the line they read."""


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, and what to do, in one line."""
