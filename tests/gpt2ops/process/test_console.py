"""What a stage says cannot steer the terminal: names of runs come from a store that others write to."""

import pytest

from gpt2ops.process.console import say


def test_a_line_has_its_breaks_and_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    say("run \x1b[2Jcalm\x9b31m\r\u202e\n\tnext é 字")
    assert capsys.readouterr().out == "run \\x1b[2Jcalm\\x9b31m\\r\\u202e\n\tnext é 字\n"
