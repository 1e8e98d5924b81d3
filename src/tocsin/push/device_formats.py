"""The formats of devices. What they accept follows from the channels."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    field_validator,
)

from tocsin.devices import Device
from tocsin.formats import Given, Id, Moment
from tocsin.push.channels import Channel
from tocsin.push.channels.apns import Apns
from tocsin.push.channels.fcm import Fcm
from tocsin.validation import RequestModel, refusal

PHONES: dict[str, type[Channel]] = {"apns": Apns, "fcm": Fcm}
"""The providers of pushes to phones by name. The first that has a type of phone is its default."""


def _default(type_: str) -> str:
    return next(name for name, channel in PHONES.items() if type_ in channel.phones)


def _provider(given: Any, info: ValidationInfo) -> Any:
    type_ = info.data.get("type")
    names = [name for name, channel in PHONES.items() if type_ is None or type_ in channel.phones]
    if given not in names:
        raise refusal("in", f"must be {' or '.join(names)}")
    return given


App = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
Provider = Annotated[str, PlainValidator(_provider), WithJsonSchema({"enum": [*PHONES], "type": "string"})]


class DeviceBody(RequestModel):
    """A phone without its token. Missing fields have their default values."""

    type: Literal["iOS", "Android"] | None = None
    """left out: `iOS`"""
    environment: Literal["production", "sandbox"] | None = None
    """left out: `production`"""
    app: App | None = None
    """the app, if there are several; left out: `default`"""
    provider: Provider | None = None
    """left out: the default of `type`; `Android` allows only `fcm`"""
    replaces: str | None = None
    """the previous token of this device, which is removed if it is the caller's"""

    @field_validator("app", mode="wrap")
    @classmethod
    def _known_form(cls, given: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(given)
        except ValidationError:
            if not isinstance(given, str):
                raise
            raise refusal("regex", "must have 1 to 100 letters, digits, dots, dashes and underscores") from None


class DeviceWithToken(DeviceBody):
    """A phone with the token from its push service."""

    token: Annotated[str, Given, Field(json_schema_extra={"minLength": 1})]

    @field_validator("token")
    @classmethod
    def _as_it_is_kept(cls, text: str, info: ValidationInfo) -> str:
        provider = info.data.get("provider") or _default(info.data.get("type") or "iOS")
        if (token := PHONES[provider].stored_token(text)) is None:
            raise refusal("regex", f"is not a valid {provider} token")
        return token

    def device(self) -> Device:
        """Return the device."""
        type_ = self.type or "iOS"
        provider = self.provider or _default(type_)
        return Device(self.token, type_, provider, self.environment or "production", self.app or "default")

    def replaced(self) -> str | None:
        """Return the token that this one replaces, in stored form, if it is one; it may be of another provider."""
        channels = [PHONES[self.device().provider], *PHONES.values()]
        return next((token for each in channels if (token := each.stored_token(self.replaces or ""))), None)


class _Owned(RequestModel):
    user_id: Annotated[Id, Given]


class DeviceLine(DeviceWithToken, _Owned):
    """A phone in an import, with its owner."""

    registered_at: Moment | None = None
    last_delivered_at: Moment | None = None

    def times(self) -> dict[str, datetime | None]:
        """Return the times of its registration and of the last delivered push."""
        return {"registered_at": self.registered_at, "last_delivered_at": self.last_delivered_at}
