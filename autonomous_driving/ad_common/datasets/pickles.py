"""Reading pickles of plain values and numpy arrays without running code from them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

NUMPY_MODULES = tuple(
    f"numpy{module}"
    for module in ("", ".core.multiarray", "._core.multiarray", ".core.numeric", "._core.numeric")
)
NUMPY_NAMES = ("_reconstruct", "_frombuffer", "ndarray", "dtype", "scalar")
BYTES = ("_codecs", "encode")  # how pickle protocol 2 writes the bytes of an array


class NumpyUnpickler(pickle.Unpickler):
    """Reads plain values and numpy arrays; a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        """What the file names, if it is part of a numpy array."""
        if (module in NUMPY_MODULES and name in NUMPY_NAMES) or (module, name) == BYTES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}; only numpy arrays are read")


def read_pickle(path: str | Path) -> Any:
    """Plain values and numpy arrays from a pickle.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is broken, or holds objects of other classes.
    """
    with open(path, "rb") as file:
        try:
            return NumpyUnpickler(file).load()
        except MemoryError:
            raise
        except Exception as error:  # a broken pickle raises nearly anything
            raise ValueError(
                f"{path} cannot be read as a pickle of plain values and numpy arrays: "
                f"{error or type(error).__name__}"
            ) from error
