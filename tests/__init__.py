"""The tests, in folders that mirror the packages."""

import pytest

pytest.register_assert_rewrite("tests.support")
