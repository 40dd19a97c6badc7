"""One network, trained on data that no machine holds: Dask's workers share the steps.

Partitions stay on the workers where they are.  A step takes from every partition its share of the
batch; each worker sums up the gradients of its rows, the client's process adds the sums up, makes
the update, and sends the parameters with the next step.  So the client owns parameters and
optimizer, and workers own nothing that is lost with them: when one dies, its partitions are loaded
by others and the step is repeated.

Sums are taken along one binary tree over the partitions, parts of which workers add up as far as
they hold neighbours (`merge`).  The bits of a result depend on the partitions, and neither on the
number of workers nor on who holds what.

What it costs, on paper.  A step moves ``2 b P`` bytes per worker through the client's network card
(``b`` 4 or 8 bytes, ``P`` parameters): out the parameters, back a sum for each run of neighbouring
partitions.  It waits for one round trip and the slowest worker.  Take 1e9 rows, 100 workers, ``P =
1e5`` in float32, a card of 10 Gbit/s at the client and 50 GFLOP/s per worker: a row takes ``6 P =
6e5`` flop, an epoch 120 s of computing on all workers; a step moves 80 MB, in 64 ms, beside which
the round trip (1.2 ms) does not count.

===========  ===============  ================  ==================  ==================
batch_size   steps per epoch  computing a step  moving a step       share of computing
===========  ===============  ================  ==================  ==================
200          5e6              0.024 ms          64 ms               0.04 %
1e5          1e4              12 ms             64 ms               16 %
1e6          1e3              120 ms            64 ms               65 %
sync_every   100 rounds       1.2 s a round     192 ms (with state) 86 %
===========  ===============  ================  ==================  ==================

Computing and moving both grow with ``P``, so it is the batch that decides: by these figures ``n``
workers beat one from ``batch_size = 53 n`` on (5300 rows), and compute half of the time from
``53 n^2`` on (5e5).  Where batches so large learn too little per epoch, or the network is slow,
``sync_every`` lets each partition make that many steps on its own before parameters and state of
the optimizer are averaged (local SGD; Stich, 2019).  That is different mathematics: replicas drift
apart between averages, and the result depends on how many partitions there are.  Beyond some 100
workers everybody waits for the client's card; then take fewer and larger ones.  Messages go through
the scheduler, whose card carries the same bytes, unless the client was made with
``direct_to_workers=True``.

Measured on one machine of two cores, load 1 to 2, two workers with four partitions each, 200 000
rows of 100 features in float32, the client beside them; one thread alone in brackets.  A step of 10
201 and of 91 905 parameters takes 3.7 and 8.4 ms for 200 rows (0.08 and 0.66), 9.2 and 55 ms for 20
000 rows (8.1 and 64); directly to workers 3.0 and 6.5 ms instead of 3.7 and 8.4.  An epoch of the
larger network with ``sync_every="epoch"`` takes 0.35 s (0.64).

Tried on paper and left out: a ring over the workers moves ``2 b P`` bytes through each card instead
of through one, but takes 2 (n - 1) messages one after the other, and stops when any worker does.
"""

try:
    import dask.dataframe  # noqa: F401
    import distributed  # noqa: F401
except ImportError as error:
    raise ImportError(
        'fastmlp.dask needs Dask with its scheduler: pip install "fastmlp[dask]".'
    ) from error

from fastmlp.dask.estimators import DaskMLPClassifier, DaskMLPRegressor

__all__ = ["DaskMLPClassifier", "DaskMLPRegressor"]
