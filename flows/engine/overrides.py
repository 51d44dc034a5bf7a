"""The flow's parameters: the sections of gpt2ops/params/sections.py with every key optional.

Prefect shows their JSON schema as a form, and validates each submission against it.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    create_model,
    model_serializer,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from gpt2ops.params import sections as params
from gpt2ops.params.editing import merged, parse_assignments
from gpt2ops.params.problems import user_error
from gpt2ops.params.schema import Params, parse_params


class Overrides(BaseModel):
    """Some keys of a section; `values()` has only the given ones."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)

    def values(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)

    @model_serializer(mode="wrap")
    def _only_given(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Prefect puts the serialized default into the form: a null there would be submitted as an override."""
        given = {self.__class__.model_fields[name].alias or name for name in self.model_fields_set}
        return {key: value for key, value in serialize(self).items() if key in given | self.model_fields_set}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """`propertyNames` in place of `additionalProperties`: its error message lists the known keys."""
        schema = handler.resolve_ref_schema(handler(core_schema))
        del schema["additionalProperties"]
        properties = schema.get("properties", {})
        schema["propertyNames"] = {"enum": list(properties)}
        for branch in (one for field in properties.values() for one in field.get("anyOf", [field])):
            if branch.get("type") == "boolean":
                # The form shows a boolean as a switch, and submits `false` for an untouched one.
                del branch["type"]
                branch["enum"] = [True, False]
        return schema


def overrides_of(section: type[BaseModel]) -> type[Overrides]:
    """`section` with the same bounds, no required keys and no defaults: other keys keep the values of params.yaml."""
    fields: Any = {name: _optional(field) for name, field in section.model_fields.items()}
    return create_model(f"{section.__name__}Overrides", __base__=Overrides, **fields)


def _optional(field: FieldInfo) -> tuple[Any, Any]:
    """Annotation and default: a factory, because a plain default would be in the form, and submitted as an override."""
    kind: Any = field.annotation
    default: Any = lambda: None  # noqa: E731
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        kind = default = overrides_of(kind)
    elif field.metadata:
        kind = Annotated[kind, *field.metadata]
    if field.default is params.BY_RECIPE:
        kind = kind | None
    return kind, Field(default_factory=default, alias=field.alias, description=field.description)


if TYPE_CHECKING:
    RunOverrides = Overrides
    DataOverrides = Overrides
    ModelOverrides = Overrides
    TrainOverrides = Overrides
    EvaluateOverrides = Overrides
    SampleOverrides = Overrides
    RegisterOverrides = Overrides
    ParamsOverrides = Overrides
else:
    RunOverrides = overrides_of(params.Run)
    DataOverrides = overrides_of(params.Data)
    ModelOverrides = overrides_of(params.Model)
    TrainOverrides = overrides_of(params.Train)
    EvaluateOverrides = overrides_of(params.Evaluate)
    SampleOverrides = overrides_of(params.Sample)
    RegisterOverrides = overrides_of(params.Register)
    ParamsOverrides = overrides_of(Params)


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """`train.learning_rate=1e-3`, ... as nested values. Raises UserError with a line for each problem."""
    try:
        return ParamsOverrides.model_validate(parse_assignments(assignments)).values()
    except ValidationError as error:
        raise user_error(error, Params) from None


def check_merged(base: Params, overrides: Mapping[str, Any]) -> Params:
    """All parameters of a run. Raises UserError where settings of different sections do not fit together."""
    return parse_params(merged(base.model_dump(mode="json", by_alias=True), overrides), source="parameters")
