"""Shapes of events with named parts."""

from collections.abc import Iterator, Mapping
from typing import Any

from ebm_ppl._checks import check_event_shape


class NamedShapes(Mapping[str, tuple[int, ...]]):
    """A read-only, hashable mapping from the names of the parts of an event to their shapes, in the order given.

    Compares equal to a dictionary of the same items. Hashable, so that it may be a static field.
    """

    __slots__ = ("_items",)

    def __init__(self, shapes: Mapping[str, Any]) -> None:
        self._items = tuple(
            (name, check_event_shape(shape, f"event_shape[{name!r}]")) for name, shape in shapes.items()
        )

    def __getitem__(self, name: str) -> tuple[int, ...]:
        for key, shape in self._items:
            if key == name:
                return shape
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(self._items)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, NamedShapes):
            return self._items == other._items  # the order is that of the coordinates
        return isinstance(other, Mapping) and dict(self) == dict(other)

    def __repr__(self) -> str:
        return repr(dict(self._items))


def as_event_shape(event_shape: Any) -> tuple[int, ...] | NamedShapes:
    """`event_shape` as a tuple of positive integers, or as `NamedShapes` where it is a dictionary of such tuples.

    Raises:
        TypeError: neither a tuple nor a dictionary with string keys.
        ValueError: a size is not a positive integer, or a dictionary is empty.
    """
    if not isinstance(event_shape, Mapping):
        return check_event_shape(event_shape)
    if not event_shape:
        raise ValueError("`event_shape` must have at least one named part; got an empty dictionary.")
    for name in event_shape:
        if not isinstance(name, str):
            raise TypeError(f"`event_shape` must have strings as names of parts; got {name!r}.")
    return NamedShapes(event_shape)
