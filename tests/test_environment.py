import torch

from homeostat import environment


def test_it_names_the_versions_that_run():
    found = environment.describe()
    assert found["torch"] == torch.__version__
    assert int(found["cores"]) == environment.available_cores() >= 1
    assert all(isinstance(value, str) and value for value in found.values())
