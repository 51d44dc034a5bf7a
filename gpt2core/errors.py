"""The one error that means "the user can mend this": its text is what they read."""

LONGEST_LINE = 1000  # characters
_LEFT_OUT = " [...] "


class UserError(ValueError):
    """Bad input: each of `lines`, mostly one, says what is wrong, where, and what to do.

    What a message quotes of a file or a name may hold line ends, signs that steer a terminal, or megabytes: each line
    stays one that can be read.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*map(as_one_line, lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


def as_one_line(text: str) -> str:
    """`text` with what cannot be printed spelled out (a line end is `\\n`), and without its middle where it is long."""
    shown = _shortened(str(text))
    if not shown.isprintable():
        shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in shown)
    return _shortened(shown)


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_LINE:
        return text
    half = (LONGEST_LINE - len(_LEFT_OUT)) // 2
    return text[:half] + _LEFT_OUT + text[-half:]
