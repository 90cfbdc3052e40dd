"""The tree of exceptions: one root, a sentence for each, and nothing of other rooms."""

import inspect
import subprocess
import sys
from enum import Enum
from importlib import import_module
from pkgutil import iter_modules

import pytest

from birthmark_sma import errors
from birthmark_sma.errors import BirthmarkError

MODULES = [
    import_module(each.name) for each in iter_modules(errors.__path__, "birthmark_sma.errors.")
]
DEFINED = {
    name: member
    for module in MODULES
    for name, member in inspect.getmembers(module, inspect.isclass)
    if member.__module__ == module.__name__
}
CLASSES = [each for each in DEFINED.values() if not issubclass(each, Enum)]
WITHOUT_ARGUMENTS = [
    each
    for each in CLASSES
    if "__init__" in vars(each)
    and all(p.default is not p.empty for p in inspect.signature(each).parameters.values())
]


def test_the_package_exports_every_error() -> None:
    assert {name: getattr(errors, name) for name in errors.__all__} == DEFINED


@pytest.mark.parametrize("error", CLASSES, ids=lambda each: each.__name__)
def test_every_error_hangs_on_the_one_tree(error: type[Exception]) -> None:
    """Whoever catches BirthmarkError catches all that this package raises on purpose."""
    assert issubclass(error, BirthmarkError)
    assert error.__name__.endswith("Error")
    assert inspect.getdoc(error)


@pytest.mark.parametrize("error", WITHOUT_ARGUMENTS, ids=lambda each: each.__name__)
def test_an_error_with_one_meaning_brings_its_own_sentence(error: type[Exception]) -> None:
    """Such an error says the same everywhere, and says it to a person."""
    message = str(error())
    assert message[0].isupper()
    assert len(message.split()) >= 3


def test_the_sentence_of_the_contract() -> None:
    """The 409 for a serial that exists reads as the contract has it."""
    assert str(errors.DeviceAlreadyProvisionedError()) == "Device already provisioned"


def test_conflicts_are_kin() -> None:
    """Everything that contradicts the register is answered alike."""
    for kind in (
        errors.DeviceAlreadyProvisionedError,
        errors.PublicKeyInUseError,
        errors.NucHashInUseError,
        errors.DeviceStatusError,
    ):
        assert issubclass(kind, errors.ConflictError)
    assert not issubclass(errors.DatabaseUnavailableError, errors.AuthorityError)


def test_errors_bring_no_other_room_along() -> None:
    """A camera that imports the errors does not import a web framework or a database."""
    program = (
        "import sys, birthmark_sma.errors;"
        "print({'fastapi', 'starlette', 'sqlalchemy', 'pydantic', 'cryptography'} & {*sys.modules})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "set()"
