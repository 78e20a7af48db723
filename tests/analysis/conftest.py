"""The embedding table of the toy job's model."""

import pytest

from tests.helpers.toy_models import make_table


@pytest.fixture(scope="session")
def table():
    """Returns the embeddings of the words of the toy job's model."""
    return make_table()
