"""The guard at the start of an inference: `check_model`, called by itself.

The guard on derivatives (`_guard`) cannot see through loops, branches and enumeration. But inference in NumPyro starts
with one of two functions that know model and arguments; when an energy without log Z is built inside one of them, the
model is checked, once.
"""

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any

import numpyro
from numpyro.infer import SVI
from numpyro.infer.util import initialize_model
from numpyro.primitives import _PYRO_STACK

_off: ContextVar[bool] = ContextVar("start_guard_off", default=False)
_checked: weakref.WeakSet[Any] = weakref.WeakSet()  # the `trace` handlers of the executions that have been checked


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Where the model has been checked already, or is being checked, or needs no check (`ExchangeKernel`)."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def check_at_start(check: Callable[..., None]) -> None:
    """Call `check(model, args, kwargs, params)` if NumPyro is just executing its model for the first time.

    `params` says whether inference is about the `numpyro.param` sites too: in SVI.
    """
    outermost = next((handler for handler in _PYRO_STACK if isinstance(handler, numpyro.handlers.trace)), None)
    if _off.get() or outermost is None or outermost in _checked:
        return
    call = _starting_call()
    if call is None:
        return
    _checked.add(outermost)
    handlers = _PYRO_STACK[:]
    # The model as it was given: under none of the handlers of the execution that is going on.
    _PYRO_STACK[:] = handlers[: handlers.index(outermost)]
    try:
        with checked():
            check(*call)
    finally:
        _PYRO_STACK[:] = handlers


def _starting_call() -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], bool] | None:
    """Model and arguments of the innermost start of an inference among the callers."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        values = frame.f_locals if frame.f_code in (initialize_model.__code__, SVI.init.__code__) else None
        if values is not None:
            if "model_trace" in values:  # a later execution; the first has been checked
                return None
            if "model_args" in values:
                return values["model"], values["model_args"], values["model_kwargs"] or {}, False
            return values["self"].model, values["args"], values["kwargs"] | values["self"].static_kwargs, True
        frame = frame.f_back
    return None
