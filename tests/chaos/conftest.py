"""The modules beside the tests say what they found, as tests do."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("chaos_ledger", "chaos_leftovers", "chaos_rounds")
