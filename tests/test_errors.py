import numpy as np
import pytest
import torch

from homeostat.errors import HomeostatError, InvalidType, InvalidValue, invalid, invalid_type, unknown


def test_invalid_value_is_a_value_error_that_names_thing_value_and_cure():
    error = invalid("Dropout", "p", "lie in [0, 1]", 1.5, "Use a smaller p.")
    assert isinstance(error, ValueError)
    assert isinstance(error, HomeostatError)
    assert str(error) == "Dropout: p must lie in [0, 1], but got 1.5. Use a smaller p."


def test_invalid_type_is_a_type_error():
    assert isinstance(invalid_type("f", "x", "be a tensor", "text"), TypeError)
    assert isinstance(invalid_type("f", "x", "be a tensor", "text"), InvalidType)


@pytest.mark.parametrize("value", [torch.zeros(3, 2), np.zeros((3, 2))])
def test_arrays_are_named_by_shape_and_dtype_not_printed(value):
    text = str(invalid("f", "x", "be finite", value))
    assert "shape=(3, 2)" in text
    assert "float" in text
    assert "0." not in text


def test_long_values_are_cut():
    assert len(str(invalid("f", "x", "be short", "a" * 10_000))) < 300


def test_unknown_offers_the_nearest_name_whatever_its_case():
    assert "Did you mean 'batch'?" in str(unknown("Recipe", "norm", "BACTH", ["none", "batch"]))


def test_unknown_offers_nothing_where_nothing_is_near():
    text = str(unknown("Recipe", "norm", "zzzz", ["none", "batch"]))
    assert "Did you mean" not in text
    assert "Known: none, batch." in text
    assert isinstance(unknown("a", "b", "c", []), InvalidValue)
