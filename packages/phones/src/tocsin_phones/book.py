"""The record of received pushes, what the devices show, and the programmed answers."""

import itertools
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from tocsin_phones.answers import Demand, Demands
from tocsin_phones.exchange import Banner, IncomingRequest, Provider, ReceivedPush, Rejection, Reply
from tocsin_phones.screens import Screen, banner_json, moment

MAX_PUSHES = 100_000
"""Maximum pushes that are kept; the screens do not depend on older ones."""


@dataclass(slots=True)
class Book:
    """The shared state of the stand-ins."""

    pushes: deque[ReceivedPush] = field(default_factory=lambda: deque(maxlen=MAX_PUSHES))
    screens: dict[tuple[str, str], Screen] = field(default_factory=dict)
    demands: Demands = field(default_factory=Demands)
    numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    def take(self, provider: Provider, request: IncomingRequest) -> Reply:
        """Handle a push: refuse it as the real service would, give the programmed answer, or show it."""
        headers = {name: value for name, value in request.headers.items() if name != "authorization"}
        push = ReceivedPush(next(self.numbers), provider.name, time.time(), headers)
        self.pushes.append(push)
        try:
            provider.check(request, push)
        except Rejection as refused:
            push.status, push.reason = refused.status, refused.reason
            return provider.refusal(refused, push)
        demand = self.demands.next_for(provider.name, push.token)
        if demand is not None and demand.fails:
            return self._answer(provider, push, demand)
        return self._succeed(provider, push, demand)

    def forget(self) -> None:
        """Forget all pushes and what is shown."""
        self.pushes.clear()
        self.screens.clear()

    def received(self, provider: str | None = None, token: str | None = None) -> list[dict[str, Any]]:
        """Return the received pushes, oldest first, of one provider or token if given.

        Requests for access tokens are returned only for the provider `oauth`.
        """
        visible = {banner.push: banner for screen in self.screens.values() for banner in screen.banners.values()}
        return [
            _push_json(push, visible.get(push.number))
            for push in self.pushes
            if _is_of(push, provider) and token in (None, push.token)
        ]

    def screen(self, token: str, provider: str | None = None) -> Screen:
        """Return what the device of a token shows."""
        for (of_provider, of_token), screen in self.screens.items():
            if of_token == token and provider in (None, of_provider):
                return screen
        return Screen()

    def _answer(self, provider: Provider, push: ReceivedPush, demand: Demand) -> Reply:
        reply = demand.reply(lambda refused: provider.refusal(refused, push))
        push.status = reply.status if reply.fate == "answered" else None
        push.reason = demand.reason or demand.answer
        if demand.shown:
            self._show(push)
        return reply

    def _succeed(self, provider: Provider, push: ReceivedPush, demand: Demand | None) -> Reply:
        reply = provider.success(push)
        if demand is not None:
            status, headers = demand.status or reply.status, reply.headers + demand.headers
            reply = replace(reply, status=status, headers=headers, after=demand.after)
        push.status = reply.status
        self._show(push)
        return reply

    def _show(self, push: ReceivedPush) -> None:
        change = push.change
        if change.banner is not None:
            key = change.banner.key or f"push {push.number}"
            change = replace(change, banner=replace(change.banner, key=key, push=push.number, at=push.at))
        self.screens.setdefault((push.provider, push.token), Screen()).apply(change)


def _is_of(push: ReceivedPush, provider: str | None) -> bool:
    return push.provider != "oauth" if provider is None else push.provider == provider


def _push_json(push: ReceivedPush, visible: Banner | None) -> dict[str, Any]:
    return {
        "number": push.number,
        "provider": push.provider,
        "token": push.token,
        "id": push.id,
        "headers": push.headers,
        "payload": push.payload,
        "at": moment(push.at),
        "status": push.status,
        "reason": push.reason,
        "visible": None if visible is None else banner_json(visible),
    }
