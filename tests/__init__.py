"""The tests, in the folders of what they test."""

import pytest

pytest.register_assert_rewrite("tests.support")
