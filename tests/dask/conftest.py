"""Clusters, which need the extra dask, and a limit of time for each test."""

import signal

import pytest

SECONDS = 60  # for one test


@pytest.fixture(autouse=True)
def _in_time():
    def give_up(*_):
        raise AssertionError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def client():
    """A client of three workers that are threads."""
    from clusters import make_cluster

    with make_cluster(3) as cluster, cluster.get_client() as client:
        yield client


@pytest.fixture(scope="module")
def process_cluster():
    """Two workers that start anew however often tests kill them.

    A cluster looks at a lost worker some seconds later and gives it up if it is lost at that
    moment: a second kill, of another test, would be enough.
    """
    import dask
    from clusters import make_cluster

    patience = {"distributed.deploy.lost-worker-timeout": "1h"}
    with dask.config.set(patience), make_cluster(2, processes=True) as cluster:
        yield cluster


@pytest.fixture
def processes(process_cluster):
    """A client of two workers that are processes."""
    with process_cluster.get_client() as client:
        client.wait_for_workers(2, timeout=30)
        yield client
