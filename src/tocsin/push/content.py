"""What a push shows: the title and body of a notification, limited by TOCSIN_PUSH_CONTENT."""

import json
from typing import Literal
from uuid import UUID

from cachetools import LRUCache

from tocsin.catalogue import Catalogue
from tocsin.notifications import to_json
from tocsin.push.channels import Shown
from tocsin.push.deliveries import Delivery

Content = Literal["full", "title", "none"]

CACHE_SIZE = 1_000
"""Maximum notifications whose text is kept for their other devices."""


class Composer:
    """Composes pushes: all text (`full`), only the title of the kind (`title`), or a fixed title (`none`)."""

    def __init__(self, catalogue: Catalogue, content: Content = "full") -> None:
        self._catalogue = catalogue
        self._content = content
        self._cache: LRUCache[tuple[UUID, str, str], Shown] = LRUCache(CACHE_SIZE)

    def shown(self, delivery: Delivery) -> Shown:
        """Return what the push of a delivery shows, in the language of its inbox row."""
        key = (delivery.key.event_id, delivery.language, delivery.body)
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = self._compose(delivery)
        return found

    def bundle(self, count: int, locale: str) -> Shown:
        """Return what one push that replaces `count` pushes shows."""
        said = self._catalogue.phrase("bundled", self._catalogue.language_of(locale)).replace("{count}", str(count))
        return Shown("", said, "", "{}", "", "", "", "", "normal")

    def test(self, locale: str) -> Shown:
        """Return what a test push shows."""
        said = self._catalogue.phrase("tested", self._catalogue.language_of(locale))
        return Shown("", said, "", "{}", "", "", "", "", "normal")

    def _compose(self, delivery: Delivery) -> Shown:
        kind = self._catalogue.kinds.get(delivery.kind)
        language = self._catalogue.spoken(delivery.language, delivery.locale)
        if kind is None or self._content == "none":
            title = self._catalogue.phrase("pushed", language)
            return Shown("", title, "", "{}", "", "", "", "", kind.preset if kind else "normal", mutable=True)
        looks = (kind.category, kind.channel, kind.preset)
        title = kind.wordings[language].title
        if self._content == "title":
            return Shown(kind.type, title, "", "{}", "", "", *looks, mutable=True)
        notification, params = json.loads(f"{{{delivery.body}}}"), json.loads(delivery.params)
        thread = kind.thread_of(notification["data"])
        title = kind.wordings[language].title_of(notification["data"], params)
        link = kind.link_of(notification["data"], params)
        body = notification["message"].replace(" <br> ", "\n")
        return Shown(kind.type, title, body, to_json(notification["data"]), link, thread, *looks)
