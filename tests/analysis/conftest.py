"""The embedding table of the toy job's model."""

import pytest

from tests.helpers.toy_models import WORDS, pair


@pytest.fixture(scope="session")
def table(job, tmp_path_factory):
    """The model's embeddings, of words alone, by way of PyTorch."""
    theirs = pair("gpt2", tmp_path_factory.mktemp("again"))[1]
    return theirs.get_input_embeddings().weight.numpy()[: len(WORDS)]
