"""A task may come from the user's own module; what fails there is shown as the user's own traceback, short."""

import sys

import pytest

from homeostat.errors import HomeostatError, InvalidType, InvalidValue
from homeostat.training.datasets import load_task
from homeostat.training.objective import Objective
from homeostat.training.user import user_task

GOOD = """
import torch
from torch import nn
import homeostat.training.task as hs
{extra}

def model():
    from {package}.late import WIDTH
    return nn.Linear(2, WIDTH)

def build(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(30, 2, generator=generator)
    return hs.Task(data=((x, (x[:, 0] > 0).long()), None, None), model=model)

def plain():
    return build(0)

def named():
    x = torch.arange(20.).reshape(10, 2)
    return hs.Task(data=((x, torch.arange(10) % 2), None, None), name="parity")

def nothing():
    return None

def needs(path):
    return build()

def fails():
    raise ValueError("no such spectrum")

def leaves():
    raise SystemExit(3)

def refused():
    return hs.Task(data=((torch.zeros(0, 2), torch.zeros(0)), None, None))

NUMBER = 3
"""


@pytest.fixture
def project(tmp_path, monkeypatch, request):
    """A package of the user's in the current folder, under a name that no other test uses."""
    name = "project_" + "".join(filter(str.isalnum, request.node.name)).lower()
    package = tmp_path / name
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "late.py").write_text("WIDTH = 2\n")
    (package / "work.py").write_text(GOOD.format(package=name, extra=""))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_a_function_of_the_current_folder_gives_its_task(project):
    task = load_task(f"{project}.work:build")
    assert (len(task.train), task.name, task.outputs) == (18, "build", 2)
    assert load_task(f"{project}.work:named").name == "parity"


def test_the_data_seed_is_passed_where_it_is_wanted(project):
    first, second = load_task(f"{project}.work:build", seed=1), load_task(f"{project}.work:build", seed=2)
    assert first.fingerprint != second.fingerprint
    assert first.seed == 1
    assert load_task(f"{project}.work:plain", seed=2).seed == 2


def test_a_model_builder_may_import_more_when_it_is_called(project):
    assert load_task(f"{project}.work:build").build_model().out_features == 2


def test_an_objective_knows_the_code_that_its_task_came_from(project, tmp_path):
    spec, path = f"{project}.work:build", tmp_path / project / "work.py"
    code = Objective(load_task(spec), spec=spec).base["code"]
    assert sorted(code) == ["model", "task"]
    path.write_text(path.read_text().replace("Linear(2, WIDTH)", "Linear(2, WIDTH, bias=False)"))
    del sys.modules[f"{project}.work"]
    changed = Objective(load_task(spec), spec=spec).base["code"]
    assert all(changed[name] != code[name] for name in code)


def test_the_current_folder_does_not_come_before_what_is_installed_afterwards(project, tmp_path):
    before = list(sys.path)
    load_task(f"{project}.work:build")
    assert sys.path[: len(before)] == before
    load_task(f"{project}.work:build")
    assert sys.path == [*before, str(tmp_path)]


def test_what_does_not_exist_gets_the_nearest_name(project):
    with pytest.raises(InvalidValue, match="Did you mean 'build'"):
        load_task(f"{project}.work:biuld")
    with pytest.raises(HomeostatError, match=rf"there is no module '{project}\.wrok'"):
        load_task(f"{project}.wrok:build")
    with pytest.raises(HomeostatError, match="no module 'nowhere_at_all'"):
        load_task("nowhere_at_all.work:build")
    with pytest.raises(InvalidValue, match=r"function of json 'build'.*That module is .*json"):
        load_task("json:build")  # the user's own json.py comes second to Python's


@pytest.mark.parametrize(
    ("function", "says"),
    [("nothing", "return a homeostat Task"), ("needs", "needed: path"), ("NUMBER", "have 'NUMBER' as a function")],
)
def test_what_is_no_task_function_is_refused(project, function, says):
    with pytest.raises((InvalidType, InvalidValue), match=says if function != "nothing" else "homeostat Task"):
        load_task(f"{project}.work:{function}")


def test_a_failing_function_shows_the_users_lines_alone(project):
    with pytest.raises(HomeostatError) as caught:
        load_task(f"{project}.work:fails")
    told = str(caught.value)
    assert 'work.py", line' in told
    assert 'raise ValueError("no such spectrum")' in told
    assert told.endswith("ValueError: no such spectrum")
    assert "user.py" not in told
    with pytest.raises(HomeostatError, match="SystemExit: 3"):
        load_task(f"{project}.work:leaves")


def test_a_tasks_own_refusal_is_passed_on(project):
    with pytest.raises(InvalidValue, match=r"work:refused: Task: training data: x and y must hold at least one"):
        load_task(f"{project}.work:refused")


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("import a_library_that_is_missing", "No module named 'a_library_that_is_missing'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit('parse your arguments under main')", "SystemExit: parse your arguments"),
        ("import json; json.loads('{')", "JSONDecodeError"),
    ],
)
def test_a_module_that_cannot_be_imported_shows_its_own_short_traceback(project, tmp_path, extra, says):
    (tmp_path / project / "work.py").write_text(GOOD.format(package=project, extra=extra))
    with pytest.raises(HomeostatError) as caught:
        load_task(f"{project}.work:build")
    told = str(caught.value)
    assert f"importing {project}.work failed" in told
    assert says in told
    assert "work.py" in told
    assert "importlib" not in told
    assert "json/decoder.py" not in told
    assert len(told.splitlines()) < 10


def test_callables_that_are_not_functions_work_too(project, tmp_path):
    maker = (
        "class Maker:\n    def __call__(self, *args, seed=0, **rest):\n        return build(seed)\n\nmaker = Maker()\n"
    )
    with (tmp_path / project / "work.py").open("a") as file:
        file.write(maker)
    assert user_task(f"{project}.work:maker", seed=4).seed == 4
