"""Tensor annotations with shapes, e.g. `Float[Tensor, "B T"]`.

jaxtyping reads them under pytest; a training process does not need it installed, so a stand-in with
the same spelling is used where it is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:

        class _Shaped:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = _Shaped

__all__ = ["Bool", "Float", "Int", "Tensor"]
