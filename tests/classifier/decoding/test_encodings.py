"""The answer must not depend on the encoding: one image, every way of writing it, the same picture."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from pydicom.uid import UID

from classifier.decoding.decode import decode
from tests.helpers.encodings import SYNTAXES, drawn

# PACS_NODE_ENCODINGS=10000 draws so many of each transfer syntax
COUNT = int(os.environ.get("PACS_NODE_ENCODINGS", "30"))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.keyword)
def test_a_picture_is_the_native_one_to_the_last_value(syntax: UID) -> None:
    for seed in range(COUNT):
        encoding = drawn(seed, syntax)
        expected = decode(encoding.native())
        for source in (io.BytesIO(encoding.file()), encoding.dataset()):
            np.testing.assert_array_equal(decode(source), expected, err_msg=str(encoding))


def test_the_native_picture_is_the_values() -> None:
    for seed in range(COUNT):
        encoding = drawn(seed)
        values = encoding.values().astype(float)
        stretched = (values - values.min()) / (values.max() - values.min())
        np.testing.assert_allclose(decode(encoding.native())[0], stretched, atol=1e-6, err_msg=str(encoding))
