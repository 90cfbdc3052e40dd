"""Make the lists of commands, metrics and settings from the tables in the code."""

from typing import Any

from birthmark_sma.authority.validation.explanations import EXPLANATIONS
from birthmark_sma.config import (
    NewSecret,
    Settings,
    describe_default,
    environment_variable,
    find_setting,
)
from birthmark_sma.runtime.metrics import METRICS
from checks.public_surface.command_line import list_commands
from checks.reference_pages.marks import table


def render_settings() -> str:
    """Return the table as Markdown: a row for each setting, in the order of their declaration."""
    rows = []
    for model in (Settings, NewSecret):
        for name, field in model.model_fields.items():
            default = describe_default(model, name)
            # A value is code, a description of the default is text.
            is_value = default and find_setting(model, name).default is None
            rows.append(
                (
                    f"`{environment_variable(name)}`",
                    f"`{default}`" if is_value else default,
                    field.description or "",
                )
            )
    return table(("variable", "default", "meaning"), rows)


def render_metrics() -> str:
    """Return a Markdown table with a row for each metric."""
    rows = [
        (
            f"`{each.name}_total`" if each.type == "counter" else f"`{each.name}`",
            each.type,
            ", ".join(f"`{label}`" for label in each.labels),
            each.help,
        )
        for each in METRICS
    ]
    return table(("metric", "type", "labels", "what it is"), rows)


def render_reasons() -> str:
    """Return a Markdown table with a row for each reason of a verdict."""
    rows = [
        (f"`{reason.value}`", reason.verdict.value, each.meaning, each.advice)
        for reason, each in EXPLANATIONS.items()
    ]
    return table(("reason", "verdict", "meaning", "what to do"), rows)


def render_commands() -> str:
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
