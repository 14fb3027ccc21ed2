import pytest

from tests.foreign import standard_promotion


@pytest.fixture(autouse=True)
def numpyro_rules():
    """Everything here runs through NumPyro's own code."""
    with standard_promotion():
        yield
