"""Routes that are declared and described as in FastAPI, with another order of checks.

The caller is authenticated first. Then the parameters and the body are validated, and all errors are reported at once.
The handler of FastAPI reads the body before it authenticates the caller, and costs several times as much.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, TypeVar, cast, get_args, get_origin

from fastapi import APIRouter
from fastapi import Body as BodyParameter
from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from tocsin.api import documented
from tocsin.api.auth import Authentication, Service, UserToken
from tocsin.api.body import JSON, MAX_BODY_BYTES, body_of
from tocsin.api.idempotency import HEADER, do_once
from tocsin.api.state import AppState, app_state_of, refuse_moved
from tocsin.auth.claims import ServiceCaller
from tocsin.errors import (
    ContentType,
    FieldError,
    HeadTooLarge,
    InternalError,
    Invalid,
    KeyReused,
    Malformed,
    NotFound,
    RateLimited,
    ReadOnly,
    Timeout,
    TooLarge,
    Unauthenticated,
    Unauthorized,
    Unavailable,
)
from tocsin.validation import RequestModel, field_errors_of_findings

Model = TypeVar("Model", bound=RequestModel)

Arguments = dict[str, Any]
Handler = Callable[[Request], Awaitable[Response]]


class Unchecked(Generic[Model]):
    """A body that the endpoint validates itself, because it needs further data. `given` is a JSON object."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Use the schema of the model."""
        [model] = get_args(source)
        return core_schema.no_info_wrap_validator_function(lambda given, _: cls(given), handler.generate_schema(model))


Given = Annotated[Unchecked[Model], BodyParameter()]
"""A body that the endpoint validates itself."""

GIVEN = "given"
"""The key in the state of a request of its body that was parsed to find the cell."""

OPTIONAL: Any = None
"""The default of an optional body. The endpoint gets it as an empty object."""


class Parameters:
    """The parameters of a route in one part of a request. Errors use the title of a parameter, if it has one."""

    def __init__(self, fields: Sequence[ModelField]) -> None:
        self.defaults = {field.name: field.field_info.default for field in fields if not field.field_info.is_required()}
        self._fields = [
            (
                field.name,
                field.alias,
                (field.field_info.title or field.alias,),
                None if _is_any_text(field) else field.validate,
            )
            for field in fields
        ]
        self.are_optional = len(self.defaults) == len(fields)

    def check(self, given: Mapping[str, Any], arguments: Arguments, field_errors: list[FieldError]) -> None:
        """Validate the parameters, add them or their defaults to the arguments, and errors to `field_errors`."""
        for name, alias, path, validate in self._fields:
            if alias in given:
                if validate is None:
                    arguments[name] = given[alias]
                    continue
                arguments[name], findings = validate(given[alias], loc=path)
                if findings:
                    field_errors += field_errors_of_findings(findings)
            elif name in self.defaults:
                arguments[name] = self.defaults[name]
            else:
                field_errors += field_errors_of_findings([{"type": "missing", "loc": path}])


class Call:
    """Calls the endpoint of a route with its declared arguments."""

    def __init__(self, dependant: Dependant, status: int) -> None:
        self._endpoint = cast("Callable[..., Awaitable[Any]]", dependant.call)
        self._status = status
        self._request = dependant.request_param_name
        self._read_dependencies(dependant)
        self._path = Parameters(dependant.path_params) if dependant.path_params else None
        self._query = Parameters(dependant.query_params) if dependant.query_params else None
        self._headers = Parameters(dependant.header_params) if dependant.header_params else None
        self._read_body(dependant)

    def _read_dependencies(self, dependant: Dependant) -> None:
        self.authentication: Authentication | None = None
        """The dependency that authenticates the caller; None: no token is required."""
        self._caller = self._state = ""
        self._others: list[tuple[str, Callable[[Request], Any]]] = []
        for each in dependant.dependencies:
            name, find = cast("str", each.name), cast("Callable[[Request], Any]", each.call)
            if isinstance(find, Authentication):
                self._caller, self.authentication = name, find
            elif find is app_state_of:
                self._state = name
            else:
                self._others.append((name, find))

    def _read_body(self, dependant: Dependant) -> None:
        self.model: type[RequestModel] | None = None
        self.max_bytes, self.media_types = MAX_BODY_BYTES, tuple[str, ...](JSON)
        self._body, self._checks_body = "", False
        if not dependant.body_params:
            return
        [field] = dependant.body_params
        annotation = field.field_info.annotation
        self._body, self._checks_body = field.name, get_origin(annotation) is not Unchecked
        self.model = cast("type[RequestModel]", annotation if self._checks_body else get_args(annotation)[0])
        self.max_bytes = getattr(self.model, "MAX_BYTES", MAX_BODY_BYTES)
        self.media_types = getattr(self.model, "MEDIA_TYPES", JSON)

    @property
    def finds_cell(self) -> bool:
        """Whether a service of all companies can name the cell of its request."""
        return isinstance(self.authentication, Service) and bool(self._state)

    async def __call__(self, request: Request) -> Response:
        """Handle a request."""
        caller = await self.authentication(request) if self.authentication else None
        await self.place(request, caller)
        return await self.run(request, caller, app_state_of(request))

    async def place(self, request: Request, caller: Any) -> None:
        """Find the cell of a request of a service of all companies, if this process serves several."""
        routing = request.scope["app"].routing
        if routing is not None and isinstance(caller, ServiceCaller) and caller.company_id is None:
            given = await body_of(request, self.max_bytes, self.media_types) if self.model else None
            request.scope["state"][GIVEN] = given
            await routing.place_service(request, given)

    async def run(self, request: Request, caller: Any, app_state: AppState) -> Response:
        """Validate the request and call the endpoint with this state. Raises `Invalid` with all errors."""
        arguments: Arguments = {self._caller: caller} if self._caller else {}
        field_errors: list[FieldError] = []
        if self._request:
            arguments[self._request] = request
        if self._state:
            arguments[self._state] = app_state
        for name, find in self._others:
            arguments[name] = find(request)
        try:
            self._check_parameters(request, arguments, field_errors)
        except NotFound:  # an id that is none
            await self._confirm(request, caller)
            raise
        if self.model is not None:
            given = request.scope["state"].pop(GIVEN, None)
            if given is None:
                given = await body_of(request, self.max_bytes, self.media_types)
            check = self.model.checked if self._checks_body else _unchecked
            arguments[self._body] = check(given, field_errors, app_state)
        if field_errors:
            await self._confirm(request, caller)
            raise Invalid(field_errors)
        return _answer(await self._endpoint(**arguments), self._status)

    async def _confirm(self, request: Request, caller: Any) -> None:
        if self.authentication:
            await self.authentication.confirm(request, caller)

    def _check_parameters(self, request: Request, arguments: Arguments, field_errors: list[FieldError]) -> None:
        if self._path:
            self._path.check(request.path_params, arguments, field_errors)
        if self._query:
            if request.scope["query_string"] or not self._query.are_optional:
                self._query.check(request.query_params, arguments, field_errors)
            else:
                arguments |= self._query.defaults
        if self._headers:
            self._headers.check(request.headers, arguments, field_errors)


def _is_any_text(field: ModelField) -> bool:
    """Return whether a parameter accepts every text as it is."""
    return field.field_info.annotation in {str, str | None} and not field.field_info.metadata


def _unchecked(given: Mapping[str, Any], *_: object) -> Unchecked[Any]:
    return Unchecked(given)


def _answer(found: Any, status: int) -> Response:
    if isinstance(found, Response):
        return found
    if found is None:
        return Response(status_code=status)
    serializer = cast(
        "BaseModel", found
    ).__pydantic_serializer__  # `model_dump_json` would convert the bytes to a string
    content = serializer.to_json(found, by_alias=True, exclude_unset=True)
    return Response(content, status, media_type="application/json")


class ApiRoute(APIRoute):
    """A route. Its name is the operation id, and its docstring the summary and the description.

    A POST route processes requests with the same `Idempotency-Key` once.
    """

    methods: set[str]
    keeps_keys: ClassVar[bool] = True
    """Whether the route stores responses by their keys. If not, the endpoint does, because the body is too large."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **declared: Any) -> None:
        super().__init__(path, endpoint, **declared)
        self.status_code = self.status_code or 200
        self.operation_id = self.name
        self.summary, described = documented.paragraphs(endpoint.__doc__)
        authentication = self.call.authentication
        needs = f"Requires {authentication.says if authentication else 'no token'}."
        self.description = f"{described}\n\n{needs}".strip()
        self.responses = documented.rendered(
            documented.declared(*self._common(), self.responses),
            self.status_code,
            documented.LIMITED if isinstance(authentication, UserToken) else (),
        )
        self.openapi_extra = {**self._extra(), **(self.openapi_extra or {})}
        if "GET" in self.methods:
            self.methods.add("HEAD")

    def get_route_handler(self) -> Any:
        """Return the handler of requests."""
        self.call = Call(self.dependant, self.status_code or 200)
        self._reads = "GET" in self.methods
        self._write: Handler = self.handle_once if "POST" in self.methods and self.keeps_keys else self.call
        self._handle: Handler = self.call if self._reads else self.write
        return self.answer

    async def answer(self, request: Request) -> Response:
        """Handle a request.

        Raises `Unavailable` if its company has moved: what is unknown, or missing in a list, may be in its new cell.
        """
        try:
            response = await self._handle(request)
        except (Invalid, NotFound, Unauthenticated):
            await refuse_moved(request.scope)
            raise
        if self._reads:
            await refuse_moved(request.scope)
        return response

    async def write(self, request: Request) -> Response:
        """Handle a request that changes something. Raises `ReadOnly` if this process cannot."""
        if app_state_of(request).database.is_read_only:
            raise ReadOnly
        return await self._write(request)

    async def handle_once(self, request: Request) -> Response:
        """Handle a request, unless one with the same `Idempotency-Key` was handled before."""
        if HEADER not in request.headers:
            return await self.call(request)
        authenticate = cast("Authentication", self.call.authentication)
        caller = await authenticate(request)
        await self.call.place(request, caller)
        return await do_once(
            request, caller, self.call.max_bytes, lambda app_state: self.call.run(request, caller, app_state)
        )

    def _common(self) -> Iterable[documented.Responses]:
        """Yield the responses that follow from the declaration of the route."""
        yield documented.problems(HeadTooLarge, InternalError, Unavailable)
        if self.call.authentication:
            yield documented.problems(Unauthenticated, Unauthorized, RateLimited)
        if self.call.model:
            yield documented.problems(Malformed, TooLarge, ContentType, Timeout)
        if "POST" in self.methods:
            yield documented.problems(KeyReused, documented.NO_KEY)

    def _extra(self) -> dict[str, Any]:
        extra: dict[str, Any] = {} if self.call.authentication else {"security": []}
        if "POST" in self.methods:
            extra["parameters"] = [documented.ONCE]
        if self.call.model:
            schema = {"$ref": f"#/components/schemas/{self.call.model.__name__}"}
            extra["requestBody"] = {"content": {each: {"schema": schema} for each in self.call.media_types[1:]}}
        return extra


class StreamedRoute(ApiRoute):
    """A route whose endpoint reads the body as a stream and handles the `Idempotency-Key`."""

    keeps_keys = False

    def _common(self) -> Iterable[documented.Responses]:
        yield from super()._common()
        yield documented.problems(TooLarge, ContentType, Timeout)


def router(tag: str, route: type[ApiRoute] = ApiRoute) -> APIRouter:
    """Return a router for the routes of a tag of the document."""
    return APIRouter(route_class=route, tags=[tag])


def require_keys(routes: Iterable[BaseRoute]) -> None:
    """Raise `TypeError` if one of these routes accepts POST without supporting the `Idempotency-Key`."""
    for context in iter_route_contexts(list(routes)):
        if "POST" in (context.methods or ()) and not isinstance(context.original_route, ApiRoute):
            raise TypeError(f"POST {context.path} would ignore the Idempotency-Key; declare it by `router`")
