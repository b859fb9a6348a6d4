"""`internimage.tensorrt_plugin`: where the library is looked for, and what is said when it fails.

TensorRT is replaced by a stand-in; its real registry is in test_build.py.
"""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, needs_gxx
from internimage import tensorrt_plugin
from internimage.tensorrt_plugin import (
    BUILT,
    PLUGIN,
    VARIABLE,
    PluginError,
    find_library,
    import_tensorrt,
    load_plugin,
)


class Registry:
    """Takes the libraries in `good`."""

    def __init__(self, good: tuple[Path, ...] = ()) -> None:
        self.good, self.creator = [str(path) for path in good], None

    def get_creator(self, name, version, namespace):
        assert (name, version, namespace) == PLUGIN
        return self.creator

    def load_library(self, path):
        if path not in self.good:
            return None
        self.creator = object()
        return object()


def stand_in(registry: Registry, version: str = "10.16.1.11") -> SimpleNamespace:
    return SimpleNamespace(__version__=version, get_plugin_registry=lambda: registry)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch) -> Path:
    """An empty current folder, and a module that lies in no repository."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tensorrt_plugin, "__file__", str(tmp_path / "site/a/b/plugin.py"))
    return tmp_path


def test_loads_once(elsewhere):
    library = elsewhere / "plugin.so"
    library.touch()
    registry = Registry((library,))
    assert load_plugin(library, stand_in(registry)) == library
    assert load_plugin(library, stand_in(registry)) is None


def test_order_of_places(elsewhere, monkeypatch):
    """Above the current folder, in it, where the variable says, what the argument names."""
    inner = elsewhere / "inner"
    above, current = elsewhere / BUILT, inner / BUILT
    variable, argument = elsewhere / "variable.so", elsewhere / "argument.so"
    for library in (above, current, variable, argument):
        library.parent.mkdir(parents=True, exist_ok=True)
        library.touch()
    (elsewhere / "other").mkdir()
    monkeypatch.chdir(elsewhere / "other")
    assert find_library() == above
    monkeypatch.chdir(inner)
    assert find_library() == current
    monkeypatch.setenv(VARIABLE, str(variable))
    assert find_library() == variable
    assert find_library(argument) == argument


def test_the_build_folder_of_this_repository_is_first(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert tensorrt_plugin.library_candidates()[0] == ROOT / BUILT


def test_mmdeploys_operators_are_last(elsewhere, monkeypatch):
    package = elsewhere / "packages" / "mmdeploy"
    (package / "lib").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(package.parent))
    operators = package / "lib" / "libmmdeploy_tensorrt_ops.so"
    assert operators not in tensorrt_plugin.library_candidates()
    operators.write_bytes(b"other plugins")  # as in mmdeploy's wheel
    assert operators not in tensorrt_plugin.library_candidates()
    operators.write_bytes(b"other plugins\0TRTDCNv3\0")
    assert tensorrt_plugin.library_candidates()[-1] == operators


def test_nothing_found(elsewhere, monkeypatch):
    with pytest.raises(PluginError, match="TRTDCNv3 was not found. Tried: ") as caught:
        load_plugin(tensorrt=stand_in(Registry()))
    assert str(elsewhere / BUILT) in str(caught.value)
    assert "tensorrt/modulated_deform_conv_v3/README.md" in str(caught.value)
    monkeypatch.setenv(VARIABLE, "no.so")
    with pytest.raises(PluginError, match=rf"Tried \({VARIABLE}\): no.so. Build it"):
        find_library()
    with pytest.raises(PluginError, match=r"Tried: other.so. Build it"):
        find_library("other.so")


def test_a_file_that_is_no_library(elsewhere):
    library = elsewhere / "plugin.so"
    library.write_text("not a library")
    with pytest.raises(PluginError, match="TensorRT 10.16.1.11 found no plugin TRTDCNv3 in ") as e:
        load_plugin(library, stand_in(Registry()))
    assert "it cannot be loaded" in str(e.value)


@needs_gxx
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("int getPluginCreators;", r"no plugins for TensorRT 10 or newer \(getCreators\)"),
        ("int getCreators;", "its plugins have other names or versions"),
    ],
    ids=["TensorRT 8", "other plugins"],
)
def test_a_library_of_another_version(elsewhere, source, reason):
    library = elsewhere / f"{len(source)}.so"
    command = ["g++", "-shared", "-fPIC", "-x", "c", "-", "-o", library]
    subprocess.run(command, input=source, text=True, check=True)
    with pytest.raises(PluginError, match=reason):
        load_plugin(library, stand_in(Registry()))


def test_no_tensorrt(monkeypatch):
    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PluginError, match="not installed: pip install tensorrt"):
        import_tensorrt()


def test_the_folder_of_this_repository_is_not_tensorrt(monkeypatch):
    """Seen from the repository's root, an empty package called tensorrt can be imported."""
    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    with pytest.raises(PluginError, match="not installed: pip install tensorrt"):
        import_tensorrt()
    assert not list((ROOT / "tensorrt").rglob("__init__.py"))


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0"])
def test_an_old_tensorrt(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "tensorrt", stand_in(Registry(), version))
    with pytest.raises(PluginError, match=f"10 or newer, this is {version}.*--inline"):
        load_plugin()


def test_a_broken_installation(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("import libnvinfer_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(PluginError, match="tensorrt cannot be imported .*libnvinfer_that"):
        import_tensorrt()
    sys.modules.pop("tensorrt", None)
