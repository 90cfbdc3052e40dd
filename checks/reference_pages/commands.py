"""Make the reference of the command line from the commands themselves."""

from typing import Any

from checks.public_surface.command_line import list_commands
from checks.reference_pages.marks import table


def render() -> str:
    """Return a section for each command that does something itself."""
    return "\n".join(
        _section(path, command)
        for path, command in list_commands()
        if not getattr(command, "commands", {}) and not command.hidden
    )


def _section(path: str, command: Any) -> str:
    arguments = [each for each in command.params if not each.opts[0].startswith("-")]
    options = [each for each in command.params if each.opts[0].startswith("-") and not each.hidden]
    usage = " ".join([path, *(_placeholder(each) for each in arguments)])
    text = f"## {path}\n\n`{usage}`\n\n{_escape(_paragraphs(command.help or ''))}\n"
    if options:
        rows = [(f"`{', '.join(_spellings(each))}`", _escape(each.help or "")) for each in options]
        text += "\n" + table(("option", "what it does"), rows)
    return text


def _placeholder(argument: Any) -> str:
    name = (argument.metavar or argument.name or "").upper().strip("[]<>")
    return name if argument.required else f"[{name}]"


def _spellings(option: Any) -> list[str]:
    return [*option.opts, *option.secondary_opts]


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _escape(text: str) -> str:
    """Return text without characters that Markdown would read, except for backticks."""
    return text.replace("*", r"\*").replace("<", r"\<").replace("[", r"\[")
