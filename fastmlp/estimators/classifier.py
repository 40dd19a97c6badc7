"""MLPClassifier: labels in, labels and probabilities out."""

from typing import Any, Self

import numpy as np

from fastmlp._sklearn import (
    ClassifierMixin,
    LabelBinarizer,
    available_if,
    check_partial_fit_first_call,
    column_or_1d,
    partial_fit_context,
    type_of_target,
    unique_labels,
)
from fastmlp.estimators.base import BaseMLP, all_or_nothing
from fastmlp.estimators.data import checked, on_host, where_it_belongs
from fastmlp.estimators.parameters import (
    ATTRIBUTES,
    CLASS_LOSSES,
    CLASSIFIER,
    constraints,
    documentation,
)
from fastmlp.estimators.targets import Labels, are_plain_labels, check_sorted, is_among, labels_of
from fastmlp.estimators.weights import class_weights, weigh
from fastmlp.formulas import loss_of
from fastmlp.functions import LOSSES
from fastmlp.objective import Objective


def _is_stochastic(estimator: Any) -> bool:
    """Whether there is a `partial_fit`."""
    if estimator.solver == "lbfgs":
        raise AttributeError(
            "partial_fit is only available for stochastic"
            f" optimizers. {estimator.solver} is not stochastic."
        )
    return True


class MLPClassifier(ClassifierMixin, BaseMLP):
    __module__ = "fastmlp.estimators"  # pickles and `fastmlp.io.TRUSTED_TYPES` go by it
    __doc__ = f"""Multilayer perceptron classifier.

    Takes the place of `sklearn.neural_network.MLPClassifier`: same parameters, attributes and
    numbers, trained by compiled kernels.  It minimises the log loss unless ``loss`` says otherwise;
    the output layer is softmax for several classes, logistic for two classes and for multilabel
    targets.

    Parameters
    ----------
    {documentation(CLASSIFIER)}

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    {ATTRIBUTES}

    See Also
    --------
    MLPRegressor : The same network for target values.

    Examples
    --------
    >>> from fastmlp import MLPClassifier
    >>> from sklearn.datasets import make_classification
    >>> from sklearn.model_selection import train_test_split
    >>> X, y = make_classification(n_samples=100, random_state=1)
    >>> X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=1)
    >>> clf = MLPClassifier(random_state=1, max_iter=300).fit(X_train, y_train)
    >>> clf.predict_proba(X_test[:1]).round(3).tolist()
    [[0.038, 0.962]]
    >>> clf.predict(X_test[:5]).tolist()
    [1, 0, 1, 0, 1]
    """

    _parameter_constraints = constraints(CLASSIFIER)

    def __init__(
        self,
        hidden_layer_sizes=(100,),
        activation="relu",
        *,
        solver="adam",
        alpha=0.0001,
        batch_size="auto",
        learning_rate="constant",
        learning_rate_init=0.001,
        power_t=0.5,
        max_iter=200,
        shuffle=True,
        random_state=None,
        tol=1e-4,
        verbose=False,
        warm_start=False,
        momentum=0.9,
        nesterovs_momentum=True,
        early_stopping=False,
        validation_fraction=0.1,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        n_iter_no_change=10,
        max_fun=15000,
        n_threads=None,
        device="cpu",
        matmul_precision="highest",
        rho=0.9,
        weight_decay=0.0,
        scoring=None,
        decay_rate=0.1,
        decay_epochs=30,
        patience=5,
        warmup_epochs=0,
        weight_init="auto",
        n_restarts=1,
        max_time=None,
        dropout=0.0,
        max_grad_norm=None,
        ema_decay=None,
        layer_norm=False,
        checkpoint=None,
        checkpoint_every=60.0,
        class_weight=None,
        loss="log_loss",
        focal_gamma=2.0,
        label_smoothing=0.0,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.n_threads = n_threads
        self.device = device
        self.matmul_precision = matmul_precision
        self.rho = rho
        self.weight_decay = weight_decay
        self.scoring = scoring
        self.decay_rate = decay_rate
        self.decay_epochs = decay_epochs
        self.patience = patience
        self.warmup_epochs = warmup_epochs
        self.weight_init = weight_init
        self.n_restarts = n_restarts
        self.max_time = max_time
        self.dropout = dropout
        self.max_grad_norm = max_grad_norm
        self.ema_decay = ema_decay
        self.layer_norm = layer_norm
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.class_weight = class_weight
        self.loss = loss
        self.focal_gamma = focal_gamma
        self.label_smoothing = label_smoothing

    @available_if(_is_stochastic)
    @partial_fit_context
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Go on for one epoch over the given data.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            Class labels or a label indicator matrix.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        classes : array of shape (n_classes,), default=None
            All classes that any call will see; needed in the first call.

        Returns
        -------
        self : object
            The estimator.

        Raises
        ------
        ValueError
            If an input or a parameter is invalid.  The estimator is then as it was before the call.

        Examples
        --------
        >>> from fastmlp import MLPClassifier
        >>> model = MLPClassifier(random_state=0)
        >>> for X, y in [([[0.0], [1.0]], ["a", "b"]), ([[2.0], [3.0]], ["c", "a"])]:
        ...     model = model.partial_fit(X, y, classes=["a", "b", "c"])
        >>> model.t_
        4
        """
        with all_or_nothing(self):
            self._announce(y, classes)
            return self._fit(X, y, sample_weight, incremental=True)

    def predict(self, X: Any) -> Any:
        """Predict class labels.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_classes)
            Labels, or a label indicator matrix.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPClassifier
        >>> model = MLPClassifier(solver="lbfgs", random_state=0)
        >>> model.fit([[0.0], [1.0]], ["no", "yes"]).predict([[0.1], [0.9]]).tolist()
        ['no', 'yes']
        """
        outputs = self._outputs(X)
        return where_it_belongs(self._targets.decode(outputs), X)

    def predict_proba(self, X: Any) -> Any:
        """Predict probabilities.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Columns in the order of ``classes_``.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPClassifier
        >>> model = MLPClassifier(solver="lbfgs", random_state=0)
        >>> model.fit([[0.0], [1.0]], ["no", "yes"]).predict_proba([[1.0]]).round(2).tolist()
        [[0.0, 1.0]]
        """
        outputs = self._outputs(X)
        return where_it_belongs(self._targets.probabilities(outputs), X)

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithm of `predict_proba`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Input samples.

        Returns
        -------
        log_probabilities : ndarray of shape (n_samples, n_classes)

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPClassifier
        >>> model = MLPClassifier(solver="lbfgs", random_state=0)
        >>> model.fit([[0.0], [1.0]], ["no", "yes"]).predict_log_proba([[1.0]]).shape
        (1, 2)
        """
        outputs = self._outputs(X)
        probabilities = self._targets.probabilities(outputs)
        return where_it_belongs(np.log(probabilities, out=probabilities), X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy of `predict`.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Samples.
        y : array-like of shape (n_samples,) or (n_samples, n_classes)
            Their true labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.

        Returns
        -------
        score : float
            Share of the samples whose labels, all of them for a label indicator matrix, are
            predicted: `sklearn.metrics.accuracy_score`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError
            If ``X`` has another number of features than in `fit`, NaN or infinity.

        Examples
        --------
        >>> from fastmlp import MLPClassifier
        >>> model = MLPClassifier(solver="lbfgs", random_state=0)
        >>> model.fit([[0.0], [1.0]], ["no", "yes"]).score([[0.1], [0.9]], ["no", "no"])
        0.5
        """
        if sample_weight is None and are_plain_labels(y):
            predictions = self.predict(X)
            if are_plain_labels(predictions) and len(predictions) == len(y) > 0:
                return float(np.mean(predictions == y))  # accuracy_score looks at both for longer
        return super().score(X, y, sample_weight)

    def _announce(self, y: Any, classes: Any) -> None:
        """Before a `partial_fit`: note the classes in the first one, compare them in others."""
        if isinstance(self.class_weight, str):
            raise ValueError(
                f"class_weight={self.class_weight!r} is not supported by partial_fit, which does "
                "not see all data; use sklearn.utils.class_weight.compute_class_weight on a large "
                "enough sample, and pass its weights as a dict."
            )
        if check_partial_fit_first_call(self, classes):
            labels = on_host(y)
            multilabel = type_of_target(labels).startswith("multilabel")
            self._label_binarizer = LabelBinarizer().fit(labels if multilabel else classes)

    # --- what `BaseMLP` asks

    @property
    def _targets(self) -> Labels:
        return Labels(self._label_binarizer)

    def _objective(self, n_outputs: int) -> Objective:
        labels, smoothing = self._targets, float(self.label_smoothing)
        if not isinstance(self.loss, str):
            out_activation = "softmax" if labels.is_multiclass else "logistic"
            loss = loss_of(self.loss, out_activation, of_class=True)
            return Objective(loss, n_outputs, (), smoothing)
        if smoothing and self.loss == "focal":
            raise ValueError(
                "label_smoothing does not work with loss='focal'; use loss='log_loss' or "
                "'squared_error'."
            )
        name = CLASS_LOSSES[self.loss]
        if not labels.is_multiclass:
            name = f"binary_{name}"
        elif name == "log_loss" and smoothing:
            name = "cross_entropy"
        constant = LOSSES[name].constant
        constants = () if constant is None else (float(getattr(self, constant)),) * n_outputs
        return Objective(name, n_outputs, constants, smoothing)

    def _read(self, X: Any, y: Any, *, incremental: bool, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = self._check(X, y, reset)
        if not hasattr(self, "classes_") or not (self.warm_start or incremental):
            self._label_binarizer = labels_of(y).binarizer
            self.classes_ = self._label_binarizer.classes_
        else:
            self._targets.check_kind(y)
            self._check_classes(y)
        return X, self._targets.encode(y, X.dtype)

    def _read_held_out(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        X, y = self._check(X, y, reset=False)
        self._targets.check_held_out(y)
        return X, self._targets.encode(y, X.dtype)

    def _check(self, X: Any, y: Any, reset: bool) -> tuple[Any, np.ndarray]:
        X, y = checked(self, X, y, multi_output=True, dtype=(np.float64, np.float32), reset=reset)
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X, y

    def _check_classes(self, y: np.ndarray) -> None:
        """Refuse labels that the network has no output for."""
        check_sorted(self.classes_)
        if not self.warm_start and are_plain_labels(y) and is_among(y, self.classes_):
            return
        classes = unique_labels(y)
        if self.warm_start:
            if set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the "
                    f"previous call to fit. Previously got {self.classes_}, `y` has {classes}"
                )
        elif not set(classes.tolist()) <= set(self.classes_.tolist()):
            raise ValueError(
                "`y` has classes not in `self.classes_`. "
                f"`self.classes_` has {self.classes_}. 'y' has {classes}."
            )

    def _for_scorers(self, given: tuple, encoded: np.ndarray) -> tuple:
        X, y, sample_weight = given
        return X, encoded.astype(int) if self._targets.is_multilabel else y, sample_weight

    def _weights(self, encoded: np.ndarray, sample_weight: Any, reference: np.ndarray) -> Any:
        of_classes = class_weights(self.class_weight, self._targets, reference)
        if of_classes is None:
            return sample_weight
        return weigh(self._targets, encoded, sample_weight, of_classes)

    def _made_of(self) -> tuple:
        return *super()._made_of(), self.__dict__.get("_label_binarizer")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
