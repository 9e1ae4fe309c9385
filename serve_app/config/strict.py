"""What every part of a configuration is made of: strict models, and the names in them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$"
ModelName = Annotated[str, Field(pattern=r"^[^@\s]{1,128}$")]
VariantName = Annotated[str, Field(pattern=NAME_PATTERN)]


class StrictModel(BaseModel):
    """Frozen, and refuses keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
