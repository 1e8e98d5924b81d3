"""The events of the demo are valid and varied."""

import json
from random import Random

import pytest

from tests.support.built_in import CATALOGUE
from tocsin.catalogue import Catalogue
from tocsin.demo.events import event_of
from tocsin.demo.run import PEOPLE


@pytest.mark.parametrize("name", sorted(CATALOGUE.samples))
def test_demo_events_of_every_kind_vary_and_are_valid(catalogue: Catalogue, name: str) -> None:
    seen = set()
    for seed in range(40):
        event = event_of(catalogue.kinds[name], catalogue.samples[name]["event"], PEOPLE[4], dice(seed))
        checked = catalogue.check(event["type"], event.get("data"), event.get("params"))
        assert checked.kind == name
        for language in catalogue.languages:
            assert catalogue.render(name, language, checked.data, checked.params)
        seen.add(json.dumps(event))
    assert len(seen) > 1


def test_demo_events_do_not_change_the_samples(catalogue: Catalogue) -> None:
    before = json.dumps(catalogue.samples)
    for name, sample in catalogue.samples.items():
        event_of(catalogue.kinds[name], sample["event"], PEOPLE[0], dice(1))
    assert json.dumps(catalogue.samples) == before


def test_demo_users_have_no_pictures_on_other_hosts(catalogue: Catalogue) -> None:
    for name, sample in catalogue.samples.items():
        event = event_of(catalogue.kinds[name], sample["event"], PEOPLE[0], dice(1))
        assert "://" not in json.dumps(event)


def dice(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - what happens in the demo, no secrets
