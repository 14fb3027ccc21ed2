import pytest

from tests.foreign import standard_promotion


@pytest.fixture
def numpyro_rules():
    """For tests that run NumPyro's own code; the others keep the strict rules."""
    with standard_promotion():
        yield
