"""The run-time checker behind shape annotations: beartype, applied to annotated tensors and to nothing else.

Other annotations belong to mypy. Checking them too at run time would ask every protocol to be
`runtime_checkable` and every name under `TYPE_CHECKING` to be importable, for no gain in what is tested.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its shaped-tensor parameters and result checked at every call."""
    shaped = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    if not shaped:
        return function
    function.__annotations__ = shaped
    return beartype(function)


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_shape(argument) for argument in get_args(hint))
