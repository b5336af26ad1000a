import pytest

# A failed assertion in what tests share tells as much as one in a test.
pytest.register_assert_rewrite("tests.helpers")
