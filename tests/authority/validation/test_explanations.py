"""The words for reasons and repeats: each has some, and the commands in them exist."""

import re

from birthmark_sma.authority.validation.explanations import EXPLANATIONS, REPEATS
from birthmark_sma.protocol.replay import Repeat
from birthmark_sma.protocol.verdict import Reason
from checks.public_surface.command_line import list_commands


def test_each_reason_and_repeat_is_explained() -> None:
    """An operator opens a validation of any kind."""
    assert EXPLANATIONS.keys() == set(Reason)
    assert REPEATS.keys() == set(Repeat)


def test_advice_names_commands_and_options_that_exist() -> None:
    options = {
        path: {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        for path, command in list_commands()
    }
    named = 0
    for _, advice in (*EXPLANATIONS.values(), *REPEATS.values()):
        for path, rest in re.findall(r"(sma [a-z-]+ [a-z-]+)([^.,;:)]*)", advice):
            named += 1
            assert path in options, advice
            assert set(re.findall(r"--[a-z-]+", rest)) <= options[path], advice
    assert named > 10
