"""The yardstick of the load benchmark against what queueing theory knows in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.serving.queueing import Service, arrivals, floor_ratio, sojourns

RNG = np.random.default_rng(7)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_one_at_a_time_waits_as_pollaczek_and_khinchin_say(load):
    """M/D/1: the mean wait is load / (2 (1 - load)) service times."""
    service = Service(0.01, 0.0)
    seconds = sojourns(arrivals(load / 0.01, 4000, RNG), service, max_batch=1)
    assert seconds.mean() - 0.01 == pytest.approx(0.01 * load / (2 * (1 - load)), rel=0.05)


def test_two_servers_wait_less_and_even_arrivals_not_at_all():
    one, two = floor_ratio(70, Service(0.01, 0), 1), floor_ratio(140, Service(0.01, 0), 1, servers=2)
    assert two < one == pytest.approx(4.3, abs=0.1)
    assert floor_ratio(70, Service(0.01, 0), 1, even=True) == pytest.approx(1)


def test_a_server_that_gains_by_batching_has_a_short_tail():
    """Where a full batch costs hardly more than one user, all wait for the batch before theirs and no longer."""
    fixed, each = Service(0.01, 0.0001), Service(0.0, 0.01)
    assert floor_ratio(0.7 * fixed.peak(64), fixed, 64) < 1.6 < floor_ratio(0.7 * each.peak(64), each, 64)


def test_batches_are_of_those_who_wait_and_never_above_the_limit():
    at_N = np.array([0.0, 0.1, 0.2, 0.3, 5.0])
    seconds = sojourns(at_N, Service(1.0, 0.0), max_batch=2)
    np.testing.assert_allclose(seconds, [1.0, 1.9, 1.8, 2.7, 1.0])  # alone, then two, then the one left over, alone


def test_the_fit_finds_both_parts_and_refuses_nothing_measured():
    found = Service.fit({1: 3.0, 2: 4.0, 8: 10.0}, {1: 5, 2: 1, 8: 3})
    assert (found.fixed, found.each) == pytest.approx((2.0, 1.0))
    assert Service.fit({4: 8.0}) == Service(0.0, 2.0)
    assert Service.fit({1: 1.0, 2: 4.0}).fixed == 0 and Service.fit({1: 4.0, 2: 1.0}).each == 0
    with pytest.raises(ValueError, match="no batch was served"):
        Service.fit({})
