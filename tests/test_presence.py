"""What processes say that they do at present, and how many others do it."""

from tests.support.clock import Clock
from tocsin.presence import LIFETIME, MAX_PROCESSES, SAY_INTERVAL, Presence


def test_process_says_what_it_does_once_in_a_while() -> None:
    words: list[str] = []
    clock = Clock()
    presence = Presence(words.append, clock)
    assert presence.say("storing")
    assert not presence.say("storing")
    assert len(words) == 1
    clock.now += SAY_INTERVAL
    assert not presence.say("storing")
    assert len(words) == 2
    clock.now += LIFETIME + 1
    assert presence.say("storing")


def test_other_processes_are_counted_for_as_long_as_they_say_what_they_do() -> None:
    words: list[str] = []
    clock = Clock()
    here, *others = (Presence(words.append, clock) for _ in range(3))
    here.say("storing")
    others[0].say("storing")
    others[1].say("changes")
    for word in words:
        here.receive(word)
    assert (here.others("storing"), here.others("changes"), here.others("settled")) == (1, 1, 0)
    clock.now += LIFETIME - 1
    others[1].say("changes")
    here.receive(words[-1])
    clock.now += 2
    assert (here.others("storing"), here.others("changes")) == (0, 1)


def test_all_may_be_wanted_until_others_have_had_time_to_say_so() -> None:
    words: list[str] = []
    clock = Clock()
    here, there = Presence(words.append, clock), Presence(words.append, clock)
    clock.now += 2 * LIFETIME
    assert here.is_wanted("changes")  # it receives nothing
    with here.listening():
        assert here.is_wanted("changes")
        clock.now += LIFETIME
        assert not here.is_wanted("changes")
        there.say("changes")
        here.receive(words[-1])
        assert here.is_wanted("changes")
        assert not here.is_wanted("settled")
    assert here.is_wanted("settled")


def test_words_of_any_form_and_number_are_bounded() -> None:
    presence = Presence(lambda _: None, Clock())
    for word in ("+", "+storing", "+storing:", "+:", "+dancing:1"):
        presence.receive(word)
    assert presence.others("storing") == 0
    for number in range(2 * MAX_PROCESSES):
        presence.receive(f"+storing:{number}")
    assert presence.others("storing") == MAX_PROCESSES
