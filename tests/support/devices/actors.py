"""The operator who does the acts of tests."""

from birthmark_sma.authority.acts.actor import Actor, Source

ACTOR = Actor("an operator", Source.COMMAND_LINE)
