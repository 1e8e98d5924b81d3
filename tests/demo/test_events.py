"""What happens in the demo is what the catalogue takes, and not always the same."""

import json
from random import Random

import pytest

from tocsin.catalogue import Catalogue
from tocsin.demo.events import event_of
from tocsin.demo.run import PEOPLE


@pytest.mark.parametrize("name", sorted(Catalogue.load().samples))
def test_every_kind_happens_in_many_ways_that_the_catalogue_takes(catalogue: Catalogue, name: str) -> None:
    seen = set()
    for seed in range(40):
        event = event_of(catalogue.kinds[name], catalogue.samples[name]["event"], PEOPLE[4], dice(seed))
        checked = catalogue.check(event["type"], event.get("data"), event.get("params"))
        assert checked.kind == name
        for language in catalogue.languages:
            assert catalogue.render(name, language, checked.data, checked.params)
        seen.add(json.dumps(event))
    assert len(seen) > 1


def test_the_samples_stay_as_they_are(catalogue: Catalogue) -> None:
    before = json.dumps(catalogue.samples)
    for name, sample in catalogue.samples.items():
        event_of(catalogue.kinds[name], sample["event"], PEOPLE[0], dice(1))
    assert json.dumps(catalogue.samples) == before


def test_nobody_in_it_has_a_picture_on_another_server(catalogue: Catalogue) -> None:
    for name, sample in catalogue.samples.items():
        event = event_of(catalogue.kinds[name], sample["event"], PEOPLE[0], dice(1))
        assert "://" not in json.dumps(event)


def dice(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - what happens in the demo, no secrets
