"""A hub on this machine, an empty cache, and nobody's tokens."""

import pytest
from huggingface_hub import constants

from fake_hub import serving


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of huggingface-hub and an empty folder cache; no settings of the user."""
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "folder-cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return tmp_path / "hub-cache"


@pytest.fixture
def hub(hub_cache, monkeypatch):
    """A running hub without repositories."""
    with serving() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.address)
        yield running
