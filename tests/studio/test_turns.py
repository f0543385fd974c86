"""Who has the pipeline, and what a newer request of the same browser ends, in whatever order requests come."""

from __future__ import annotations

import threading
import time

import pytest

from mace_pl.studio.turns import Cancelled, Turns


def worked(turns: Turns, who: str, part: str, number: int) -> bool:
    """Whether a request is worked on."""
    try:
        with turns.turn(who, part, number):
            return True
    except Cancelled:
        return False


def test_a_slider_that_moves_on_costs_one_turn() -> None:
    """Of requests that follow each other quickly only the last is worked on."""
    turns, done = Turns(), []

    def ask(number: int) -> None:
        try:
            with turns.turn("somebody", "images", number, settle=0.5):
                done.append(number)
        except Cancelled:
            pass

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert done == [4]


def test_an_older_request_that_comes_late_is_not_worked_on() -> None:
    turns = Turns()
    assert worked(turns, "somebody", "images", 2)
    assert not worked(turns, "somebody", "images", 1)
    assert worked(turns, "somebody", "grid", 1) and worked(turns, "another", "images", 1)
    assert worked(turns, "somebody", "images", 3)


def test_an_older_request_that_comes_late_does_not_end_the_newer() -> None:
    turns = Turns()
    with turns.turn("somebody", "images", 2) as check:
        assert not worked(turns, "somebody", "images", 1)
        check()


def test_a_newer_request_ends_the_older_of_its_part_alone() -> None:
    """The grid waits for the images and does not end them."""
    turns, order = Turns(), []

    def ask(part: str, number: int) -> None:
        if worked(turns, "somebody", part, number):
            order.append((part, number))

    with pytest.raises(Cancelled), turns.turn("somebody", "images", 1) as check:
        grid = threading.Thread(target=ask, args=("grid", 2))
        grid.start()
        grid.join(0.2)
        check()
        newer = threading.Thread(target=ask, args=("images", 3))
        newer.start()
        while True:  # until the newer has come
            time.sleep(0.02)
            check()
    grid.join()
    newer.join()
    assert sorted(order) == [("grid", 2), ("images", 3)]


def test_cancelling_ends_what_was_asked_before_in_every_part_and_nothing_after() -> None:
    turns = Turns()
    with pytest.raises(Cancelled), turns.turn("somebody", "images", 1) as check:
        turns.cancel("somebody", 2)
        check()
    assert not worked(turns, "somebody", "grid", 1)  # which came late
    with turns.turn("somebody", "images", 4) as check:
        turns.cancel("somebody", 3)  # which came late
        turns.cancel("another", 5)
        check()


def test_who_has_left_is_not_waited_for() -> None:
    turns = Turns()
    with pytest.raises(Cancelled), turns.turn("somebody", "images", 7) as check:
        turns.leave("somebody")
        check()
    turns.leave("nobody")
    assert worked(turns, "somebody", "images", 1)


def test_what_is_written_is_not_cancelled() -> None:
    turns = Turns()
    with turns.alone():
        turns.cancel("somebody", 1)
        waiting = threading.Thread(target=worked, args=(turns, "somebody", "images", 2))
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive()  # until it is written
    waiting.join()
