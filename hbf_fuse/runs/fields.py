"""Values that a stored run may have, with their bounds. Fields that nobody here knows are kept."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WrapValidator
from pydantic import ValidatorFunctionWrapHandler as Check

MAX_FIGURE = 1e18


def _as_written(value: Any, check: Check) -> Any:
    """Checked, and kept as it is: 5 does not become 5.0."""
    check(value)
    return value


Figure = Annotated[float, Field(ge=-MAX_FIGURE, le=MAX_FIGURE, strict=True), WrapValidator(_as_written)]
Positive = Annotated[float, Field(gt=0, le=MAX_FIGURE, strict=True), WrapValidator(_as_written)]
Whole = Annotated[int, Field(ge=0, le=1 << 62, strict=True)]
Number = Annotated[int, Field(ge=0, lt=10**18)]
"""A key of a JSON object, which is a text there."""
Text = Annotated[str, Field(max_length=1 << 16)]


class Document(BaseModel):
    model_config = ConfigDict(extra="allow")
