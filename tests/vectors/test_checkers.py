"""The checkers in other languages: they agree with the vectors, the server, and the camera."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from birthmark_sma.device.nonces import NonceSource  # noqa: F401
from tests.support.camera import VALIDATE, Camera, wire
from tests.support.checkers import LANGUAGES, VECTORS, Checker, build
from tests.support.running import Running, new_serial
