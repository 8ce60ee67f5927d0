"""What starts at once: the version, the help and the import need none of the large packages."""

import ast
import inspect
import pkgutil
import subprocess
import sys

import pytest

import secateur
from secateur.cli.app import COMMANDS

LARGE = ["PIL", "jinja2", "matplotlib", "nncf", "numpy", "onnx", "onnxruntime", "openvino"]
LARGE += ["onnxscript", "safetensors", "scipy", "torch"]


def fresh(program):
    """What a program prints in a Python of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def imported_by(program):
    """The large packages that are there after a program."""
    told = f"import sys\n{program}\nprint('imported', *({set(LARGE)} & set(sys.modules)))"
    return fresh(told).splitlines()[-1].split()[1:]


def test_no_large_package_for_a_question_about_the_program():
    questions = [["--version"], ["--help"], [], *([name, "--help"] for name in COMMANDS)]
    program = (
        f"import secateur.cli.main as secateur_main\nfor arguments in {questions}:\n"
        "    sys.argv = ['secateur', *arguments]\n"
        "    try:\n        secateur_main.main()\n    except SystemExit:\n        pass"
    )
    assert imported_by(program) == []


def test_no_large_package_for_the_import():
    assert imported_by("import secateur\nprint(dir(secateur), secateur.__version__)") == []


def test_type_checkers_and_the_interpreter_find_a_name_in_the_same_module():
    checked = {}
    for node in ast.walk(ast.parse(inspect.getsource(secateur))):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            held = [of for of in node.body if isinstance(of, ast.ImportFrom)]
            checked = {name.name: of.module for of in held for name in of.names}
    assert checked == secateur._HOME
    assert sorted(secateur.__all__) == sorted({*secateur._HOME, "__version__"})


@pytest.mark.parametrize("name", secateur.__all__)
def test_every_public_name_is_there(name):
    assert getattr(secateur, name) is not None
    assert name in dir(secateur)


def test_a_star_imports_all_of_it():
    told = fresh("from secateur import *\nprint(sorted(set(globals())))")
    assert set(secateur.__all__) <= set(ast.literal_eval(told))


def test_no_module_hides_behind_a_function_of_its_name():
    modules = [of.name for of in pkgutil.walk_packages(secateur.__path__, "secateur.")]
    hidden = [name for name in modules if name.rpartition(".")[2] in (*secateur.__all__,)]
    assert [name for name in hidden if name.count(".") == 1] == []


def test_modules_need_no_import_of_their_own():
    told = fresh("import secateur\nprint(secateur.export.__name__, secateur.example.__name__)")
    assert told == "secateur.export secateur.example\n"


@pytest.mark.parametrize("name", ["prunes", "_private", "evaluate2", "__wrapped__"])
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"'secateur' has no attribute '{name}'"):
        getattr(secateur, name)
