"""The guard at the start of an inference: `check_model`, called by itself.

The guard on derivatives (`_guard`) cannot see through loops, branches and enumeration, nor discrete variables. But
inference in NumPyro starts with one of a few functions that know model and arguments; when an energy without log Z is
built inside one of them, the model is checked, once.
"""

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import CodeType, FrameType
from typing import Any

import numpyro
from numpyro.infer import SVI, MixedHMC
from numpyro.infer.gibbs import DiscreteGibbs
from numpyro.infer.util import initialize_model
from numpyro.primitives import _PYRO_STACK

STARTS = {initialize_model.__code__, DiscreteGibbs.init.__code__, MixedHMC.init.__code__, SVI.init.__code__}

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
    """Call `check(model, args, kwargs, params=params)` if NumPyro is just executing its model for the first time.

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
            model, args, kwargs, params = call
            check(model, args, kwargs, params=params)
    finally:
        _PYRO_STACK[:] = handlers


def _starting_call() -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], bool] | None:
    """Model and arguments of the innermost start of an inference among the callers."""
    starts = STARTS | _stein()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        values = frame.f_locals if frame.f_code in starts else None
        if values is not None:
            if "model_trace" in values:  # a later execution; the first has been checked
                return None
            model = values["model"] if "model" in values else values["self"].model
            if "model_args" in values:
                return model, values["model_args"], values["model_kwargs"] or {}, False
            return model, values["args"], values["kwargs"] | values["self"].static_kwargs, True
        frame = frame.f_back
    return None


def _stein() -> set[CodeType]:
    """`SteinVI.init`, if anything has imported it: it is no part of `numpyro.infer`."""
    module = sys.modules.get("numpyro.contrib.einstein.steinvi")
    return set() if module is None else {module.SteinVI.init.__code__}
