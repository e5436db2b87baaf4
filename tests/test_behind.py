"""Frames that are written while others are made: in order, few at a time, and what goes wrong is said."""

import threading

import pytest
import torch

from letstalk_core.render import behind
from letstalk_core.render.behind import Behind


def frames(value):
    return torch.full((1, 4, 4, 3), value, dtype=torch.uint8)


def test_everything_arrives_in_order_in_another_thread():
    seen, threads = [], set()

    def write(part):
        seen.append(int(part[0, 0, 0, 0]))
        threads.add(threading.get_ident())

    with Behind(write) as later:
        for value in range(50):
            later(frames(value))
    assert seen == list(range(50)) and len(threads) == 1 and threading.get_ident() not in threads


def test_few_frames_wait(monkeypatch):
    monkeypatch.setattr(behind, "HELD_PIXELS", 3 * 16)
    begun, go = threading.Event(), threading.Event()

    def write(part):
        begun.set()
        go.wait(10)

    with Behind(write) as later:
        for value in range(3):
            later(frames(value))
        begun.wait(10)
        fourth = threading.Thread(target=later, args=(frames(3),))
        fourth.start()
        fourth.join(0.2)
        assert fourth.is_alive()  # it waits until one is written
        go.set()
        fourth.join(10)
        assert not fourth.is_alive()


def test_what_goes_wrong_is_raised():
    def write(part):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"), Behind(write) as later:
        later(frames(0))


def test_an_interrupt_drops_what_waits():
    written, begun, go = [], threading.Event(), threading.Event()

    def write(part):
        begun.set()
        go.wait(10)
        written.append(part)

    with pytest.raises(KeyboardInterrupt), Behind(write) as later:
        for value in range(5):
            later(frames(value))
        begun.wait(10)
        threading.Timer(0.3, go.set).start()
        raise KeyboardInterrupt
    assert len(written) == 1  # the one that was being written
