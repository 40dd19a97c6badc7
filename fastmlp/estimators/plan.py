"""The plan of a fit, made from an estimator's parameters; what cannot be done is refused here.

Refusals come before any work.  Most follow from a row of `fastmlp.estimators.parameters`, which
says what a parameter needs, and from what the engine of the device can do; the others are
combinations that contradict each other.
"""

from numbers import Integral, Real
from typing import Any, NamedTuple

from fastmlp.engine import check_device
from fastmlp.estimators.parameters import SHARED, ByParameters
from fastmlp.formulas import activations_of
from fastmlp.optimizers import OPTIMIZERS, Optimizer
from fastmlp.schedules import SCIKIT_LEARN_SCHEDULES, Schedule
from fastmlp.training.plan import Plan


class HeldOut(NamedTuple):
    """A user's validation set."""

    X: Any = None
    y: Any = None
    sample_weight: Any = None


NOTHING_HELD_OUT = HeldOut()
_PLANS = ByParameters()


def make_plan(
    estimator: Any, *, incremental: bool = False, held_out: HeldOut = NOTHING_HELD_OUT,
    resume: bool = False,
) -> Plan:  # fmt: skip
    """What a fit will do.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        With parameters of the right types.
    incremental : bool
        For `partial_fit`.
    held_out : HeldOut
    resume : bool
        Whether to go on from the checkpoint.

    Raises
    ------
    ValueError
        If parameters could not do what they say.
    """
    is_given = tuple(part is not None for part in held_out)
    plan = _PLANS.get(
        estimator, lambda: _make_plan(estimator, incremental, held_out, resume),
        incremental, is_given, resume,
    )  # fmt: skip
    check_device(estimator.device, estimator.matmul_precision)
    return plan


def _make_plan(p: Any, incremental: bool, held_out: HeldOut, resume: bool) -> Plan:
    is_stochastic = p.solver != "lbfgs"
    hidden = _hidden_layer_sizes(p.hidden_layer_sizes)
    plan = Plan(
        hidden_layer_sizes=hidden,
        activations=activations_of(p.activation, len(hidden)),
        layer_norm=bool(p.layer_norm),
        weight_init=p.weight_init,
        solver=p.solver,
        optimizer=make_optimizer(p) if is_stochastic else None,
        schedule=make_schedule(p),
        dropout=_dropout(p.dropout, len(hidden)),
        alpha=p.alpha,
        batch_size=p.batch_size,
        max_iter=p.max_iter,
        max_fun=p.max_fun,
        shuffle=p.shuffle,
        tol=p.tol,
        n_iter_no_change=p.n_iter_no_change,
        verbose=bool(p.verbose),
        early_stopping=bool(p.early_stopping) and is_stochastic,
        validation_fraction=p.validation_fraction,
        scoring=p.scoring,
        n_restarts=p.n_restarts,
        max_time=p.max_time,
        checkpoint=p.checkpoint,
        checkpoint_every=p.checkpoint_every,
        incremental=incremental,
        warm_start=bool(p.warm_start),
        resume=resume,
        execution=execution(p),
    )
    _refuse_what_the_solver_lacks(p, plan)
    _refuse_contradictions(p, plan, held_out)
    return plan


def execution(estimator: Any) -> dict[str, Any]:
    """Where and how an estimator runs, as `fastmlp.engine.get_engine` takes it."""
    return {
        "device": estimator.device,
        "n_threads": estimator.n_threads,
        "matmul_precision": estimator.matmul_precision,
    }


def make_optimizer(estimator: Any) -> Optimizer:
    """The optimizer of a stochastic solver."""
    p = estimator
    rule = "nesterov" if p.solver == "sgd" and p.nesterovs_momentum else p.solver
    constants = [float(getattr(p, name)) for name in OPTIMIZERS[rule].constants]
    return Optimizer.of(rule, constants, float(p.weight_decay), p.max_grad_norm, p.ema_decay)


def make_schedule(estimator: Any) -> Schedule:
    """The schedule; scikit-learn's are constant for other solvers than 'sgd'."""
    p, name = estimator, estimator.learning_rate
    if p.solver != "sgd" and not callable(name) and name in SCIKIT_LEARN_SCHEDULES:
        name = "constant"
    return Schedule(
        name=name,
        learning_rate_init=float(p.learning_rate_init),
        max_iter=p.max_iter,
        power_t=float(p.power_t),
        decay_rate=float(p.decay_rate),
        decay_epochs=p.decay_epochs,
        patience=p.patience,
        warmup_epochs=p.warmup_epochs,
    )


def _hidden_layer_sizes(given: Any) -> tuple[int, ...]:
    sizes = list(given) if hasattr(given, "__iter__") else [given]
    if not all(isinstance(size, Integral) and not isinstance(size, bool) for size in sizes):
        raise ValueError(f"hidden_layer_sizes must contain integers, got {sizes}.")
    if any(size <= 0 for size in sizes):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
    return tuple(int(size) for size in sizes)


def _dropout(given: Any, n_hidden: int) -> tuple[float, ...]:
    """The rate of each of ``n_hidden`` hidden layers; empty without dropout."""
    one_for_all = isinstance(given, Real)
    rates = [given] * n_hidden if one_for_all else list(given)
    if len(rates) != n_hidden:
        raise ValueError(
            f"dropout must have one entry for each of the {n_hidden} hidden layers of "
            f"hidden_layer_sizes, got {len(rates)}."
        )
    if not all(isinstance(rate, Real) and 0 <= float(rate) < 1 for rate in rates):
        raise ValueError(f"dropout must consist of numbers in [0, 1), got {rates}.")
    if one_for_all and given and not rates:
        raise ValueError("dropout needs a hidden layer; set dropout=0.0.")
    return tuple(float(rate) for rate in rates) if any(rates) else ()


def _refuse_what_the_solver_lacks(p: Any, plan: Plan) -> None:
    """Parameters that only stochastic solvers have, for another one."""
    if plan.optimizer is not None:
        return
    for name, row in SHARED.items():
        value = getattr(p, name)
        is_used = any(plan.dropout) if name == "dropout" else value != row.default
        if row.instead is not None and is_used:
            raise ValueError(f"{name} does not work with solver={p.solver!r}; {row.instead}.")
    if callable(p.learning_rate) or p.learning_rate not in SCIKIT_LEARN_SCHEDULES:
        raise ValueError(
            f"learning_rate={p.learning_rate!r} does not work with solver={p.solver!r}; use a "
            "stochastic solver."
        )


def _refuse_contradictions(p: Any, plan: Plan, held_out: HeldOut) -> None:
    hidden = plan.hidden_layer_sizes
    if plan.layer_norm and (not hidden or min(hidden) < 2):
        raise ValueError(
            "layer_norm needs hidden layers of at least 2 units, over which it normalises, got "
            f"hidden_layer_sizes={hidden}; set layer_norm=False."
        )
    if plan.incremental and plan.early_stopping:
        raise ValueError("partial_fit does not support early_stopping=True")
    if (held_out.X is None) != (held_out.y is None):
        missing = "X_val" if held_out.X is None else "y_val"
        raise ValueError(f"X_val and y_val belong together: {missing} is missing.")
    if held_out.sample_weight is not None and held_out.X is None:
        raise ValueError("sample_weight_val needs X_val and y_val.")
    if plan.scoring is not None and held_out.X is None and not plan.early_stopping:
        raise ValueError(
            f"scoring={plan.scoring!r} needs validation data: give X_val and y_val to fit, or "
            "set early_stopping=True with a stochastic solver."
        )
    if plan.n_restarts > 1 and (plan.incremental or plan.warm_start):
        what = "partial_fit" if plan.incremental else "warm_start=True"
        raise ValueError(
            f"{what} does not support n_restarts={plan.n_restarts}: it goes on from one "
            "solution; set n_restarts=1."
        )
    if plan.checkpoint is None and plan.resume:
        raise ValueError("resume=True needs a file: set checkpoint.")
    if plan.checkpoint is not None and plan.incremental:
        raise ValueError(
            "partial_fit does not support checkpoint; set checkpoint=None, and save the model "
            "between calls by fastmlp.io.save(model, path, optimizer_state=True)."
        )
