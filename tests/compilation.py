"""Count what JAX lowers, to prove that an equal configuration compiles nothing."""

import contextlib

import jax.monitoring


@contextlib.contextmanager
def count_lowerings():
    """A list that receives one entry per lowering (the step before compilation, also on a persistent-cache hit)."""
    events = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            events.append(kwargs.get("fun_name", event))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
