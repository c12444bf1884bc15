"""What tests of backbones share."""

import jaxtyping
import pytest


@pytest.fixture
def types_unchecked():
    """For values of a wrong type, which are to be refused in a line, and not by the tests' own checks."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
