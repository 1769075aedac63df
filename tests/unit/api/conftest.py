"""A Valkey in the process, to which the services of the api connect."""

from __future__ import annotations

import pytest

from tests.support.fake_valkey import FakeValkey


@pytest.fixture
def fake_valkey(monkeypatch: pytest.MonkeyPatch) -> FakeValkey:
    fake = FakeValkey()
    monkeypatch.setattr("api.services.relay.valkey_client", fake.connect)
    monkeypatch.setattr("api.services.rate_limiter.valkey_client", fake.connect)
    return fake
