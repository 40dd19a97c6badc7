"""The solver 'lbfgs': SciPy's L-BFGS-B over the engine's loss and gradient."""

import time
from collections.abc import Sequence

import numpy as np
import scipy.optimize

from fastmlp._sklearn import check_optimize_result
from fastmlp.training.hooks import Hook, Limit, begin_epoch, end_epoch
from fastmlp.training.run import Run


def minimise(run: Run, hooks: Sequence[Hook], limit: Limit) -> None:
    """Train on all loaded samples with SciPy's L-BFGS-B.

    Parameters
    ----------
    run : Run
        Updated in place.
    hooks : sequence of Hook
        Hear of every iteration, ``limit`` among them.
    limit : Limit
        Told of Ctrl-C.

    Raises
    ------
    DivergedError
        When the parameters become non-finite.
    """
    plan, engine = run.plan, run.engine

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        engine.set_parameters(flat)
        return engine.loss_and_gradient()

    def accept(intermediate_result: scipy.optimize.OptimizeResult) -> None:
        run.parameters = intermediate_result.x.copy()
        run.loss = float(intermediate_result.fun)
        run.n_iter += 1
        engine.set_parameters(run.parameters)
        end_epoch(run, hooks)
        if run.stop_reason is not None:
            raise StopIteration
        begin_epoch(run, hooks)

    run.n_iter, run.stop_reason = 0, None
    for hook in hooks:
        hook.begin(run)
    with limit.around(run, lambda: run.n_iter == 0):
        begin_epoch(run, hooks)
        result = scipy.optimize.minimize(
            objective,
            run.parameters,
            method="L-BFGS-B",
            jac=True,
            callback=accept,
            options={"maxfun": plan.max_fun, "maxiter": plan.max_iter, "gtol": plan.tol},
        )
        run.loss = result.fun
        run.parameters = result.x
        if run.stop_reason is None:
            for hook in hooks:
                hook.end(run)
            run.n_iter = check_optimize_result("lbfgs", result, plan.max_iter)
            run.stop_reason = {0: "converged", 1: "max_iter"}.get(result.status, "failed")
    run.require_finite()


class Recorder(Hook):
    """Keeps history."""

    def epoch_begins(self, run: Run) -> None:
        self._started = time.perf_counter()

    def epoch_ends(self, run: Run) -> None:
        run.record(np.nan, time.perf_counter() - self._started)
