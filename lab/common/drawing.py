"""matplotlib as it is by itself, whatever a user's files and environment say of it."""

import contextlib
import os

from lab.common.cli import UsageError


@contextlib.contextmanager
def own_style():
    """Load matplotlib, and draw in the block by its own defaults.

    A module that imports it is imported in the block. Raises UsageError if it cannot be loaded.
    """
    # A notebook's backend, which may not be installed here, would end the import.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    except Exception as error:  # of many kinds, by what is wrong with a matplotlibrc
        raise UsageError(
            f"matplotlib cannot be loaded: {error}; look at its matplotlibrc"
        ) from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    defaults = dict(matplotlib.rcParamsDefault)
    del defaults["backend"]
    # A name may hold $ signs: it is no formula.
    with matplotlib.rc_context(defaults | {"text.parse_math": False}):
        yield
