"""Files of ensembles, made-up ones too; skops; scikit-learn's voting estimators."""

import json

import numpy as np
import pandas as pd
import pytest
import skops.io
from models import quietly, require_same
from scipy import sparse
from sklearn.base import clone
from sklearn.ensemble import VotingClassifier, VotingRegressor
from sklearn.exceptions import NotFittedError

import fastmlp
from fastmlp import (
    MLPClassifier,
    MLPEnsembleClassifier,
    MLPEnsembleRegressor,
    MLPRegressor,
    _safetensors,
)
from fastmlp.io import TRUSTED_TYPES, load, save

rng = np.random.RandomState(0)
X = rng.normal(size=(40, 3))
TARGET = X[:, 0] - X[:, 1]
THREE = np.array(["a", "b", "c"])[np.argmax(X, axis=1)]
LABELS = (X > 0).astype(int)
SMALL = {"hidden_layer_sizes": (4,), "max_iter": 3}


def C(**params):
    return MLPEnsembleClassifier(MLPClassifier(**SMALL | params), 3, random_state=1)


def R(**params):
    return MLPEnsembleRegressor(MLPRegressor(**SMALL | params), 3, random_state=1)


MODELS = {
    "classes": (C(), X, THREE),
    "two classes": (C(solver="lbfgs"), X, X[:, 0] > 0),
    "labels": (C(), X, LABELS),
    "sparse labels": (C(), X, sparse.csr_matrix(LABELS)),
    "one class": (C(), X, np.zeros(40)),
    "names": (C(early_stopping=True), pd.DataFrame(X, columns=list("abc")), THREE),
    "one target": (R(), X.astype(np.float32), TARGET),
    "two targets": (R(solver="sgd"), X, X[:, :2]),
    "quantiles": (R(loss="quantile", quantile=[0.9, 0.1]), X, TARGET),
    "defaults": (MLPEnsembleRegressor(n_members=2, n_threads=1), X, TARGET),
}  # fmt: skip


def fitted(name):
    model, data, y = MODELS[name]
    return quietly(clone(model).fit, data, y), data, y


def there_and_back(model, tmp_path, **options):
    save(model, tmp_path / "model", **options)
    return load(tmp_path / "model")


def assert_predicts_as(one, other, data):
    for method in ("predict", "predict_proba"):
        if hasattr(one, method):
            arrays = [getattr(model, method)(data) for model in (one, other)]
            require_same(*(a.toarray() if sparse.issparse(a) else a for a in arrays))


@pytest.mark.parametrize("name", MODELS)
def test_everything_comes_back(name, tmp_path):
    model, data, y = fitted(name)
    again = there_and_back(model, tmp_path, optimizer_state=True)
    for one, other in zip(again.members_, model.members_, strict=True):
        require_same(one.__getstate__(), other.__getstate__())
    deep = {name: value for name, value in model.get_params().items() if name != "estimator"}
    require_same({name: again.get_params()[name] for name in deep}, deep)
    assert_predicts_as(again, model, data)
    if name not in ("two classes", "names"):  # "lbfgs", early stopping
        quietly(model.partial_fit, data, y)
        quietly(again.partial_fit, data, y)
        assert_predicts_as(again, model, data)


def test_other_readers_find_members_by_name(tmp_path):
    from safetensors.numpy import load_file

    model, _, _ = fitted("classes")
    save(model, tmp_path / "model")
    arrays = load_file(tmp_path / "model")
    for i, member in enumerate(model.members_):
        for layer, coef in enumerate(member.coefs_):
            np.testing.assert_array_equal(arrays[f"members_.{i}.coefs_.{layer}"], coef)


def test_what_could_not_be_loaded_is_not_saved(tmp_path):
    path = tmp_path / "model"
    with pytest.raises(NotFittedError):
        save(C(), path)
    model, _, _ = fitted("classes")
    model.members_[1] = fitted("labels")[0].members_[1]
    with pytest.raises(ValueError, match="features and outputs of one meaning"):
        save(model, path)
    model.members_ = fitted("one target")[0].members_
    with pytest.raises(ValueError, match="consists of one MLPClassifier or more"):
        save(model, path)
    model.members_ = []
    with pytest.raises(ValueError, match="consists of one MLPClassifier or more"):
        save(model, path)
    model, _, _ = fitted("one target")
    model.members_[2].coefs_[0][0, 0] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        save(model, path)
    model, _, _ = fitted("one target")
    model.members_[0].activation = (np.sin, np.cos)
    with pytest.raises(ValueError, match="activation"):
        save(model, path)
    assert not path.exists()


def of_member(change):
    return lambda content, arrays: change(content["members"][1])


def renamed(old, new):
    return lambda content, arrays: arrays.update({new: arrays.pop(old)})


def double(content, arrays):
    """Two members have one name for their arrays."""
    arrays.update({f"members_.01.{name}": array for name, array in arrays.items()})


HOSTILE = {
    "class": lambda content, arrays: content.update({"class": "MLPEnsembleRegressor"}),
    "class in a list": lambda content, arrays: content.update({"class": ["MLPEnsembleRegressor"]}),
    "class of a member": of_member(lambda one: one.update({"class": "MLPRegressor"})),
    "an ensemble in an ensemble": of_member(lambda one: one.update({"class": "MLPEnsembleRe"})),
    "no members": lambda content, arrays: content.update(members=[]),
    "members as text": lambda content, arrays: content.update(members="ab"),
    "members as object": lambda content, arrays: content.update(members={"0": {}}),
    "fewer members": lambda content, arrays: content["members"].pop(),
    "one member twice": lambda content, arrays: content["members"].append(content["members"][0]),
    "number of members": lambda content, arrays: content["parameters"].update(n_members=0),
    "threads": lambda content, arrays: content["parameters"].update(n_threads=-1),
    "estimator": lambda content, arrays: content["estimator"].update(alpha=-1.0),
    "a path to write to": lambda content, arrays: content["estimator"].update(checkpoint="x"),
    "estimator among parameters": lambda content, arrays: content["parameters"].update(
        estimator=None
    ),
    "more content": lambda content, arrays: content.update(code="x"),
    "another parameter": lambda content, arrays: content["parameters"].update(alpha=1.0),
    "classes of one member": of_member(
        lambda one: one["attributes"].update(classes_={"array": ["str", ["a", "b", "d"]]})
    ),
    "names of one member": of_member(
        lambda one: one["attributes"].update(feature_names_in_={"array": ["object", ["x"] * 3]})
    ),
    "sparse labels of one member": of_member(lambda one: one.update(labels=["multiclass", True])),
    "weights of one member": lambda content, arrays: arrays.update(
        {"members_.1.coefs_.1": arrays["members_.1.coefs_.1"][:, :2]}
    ),
    "an array of nobody": renamed("members_.1.coefs_.0", "members_.3.coefs_.0"),
    "an array before the first": renamed("members_.2.coefs_.0", "members_.-1.coefs_.0"),
    "an array of the ensemble": renamed("members_.1.coefs_.0", "coefs_.0"),
    "an array by another name": renamed("members_.1.coefs_.0", "member.1.coefs_.0"),
    "two spellings": double,
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_made_up_file_with_a_right_checksum_is_refused(change, tmp_path):
    path = tmp_path / "model"
    save(fitted("classes")[0], path, optimizer_state=True)
    arrays, metadata = _safetensors.read(path)
    content = json.loads(metadata["model"])
    change(content, arrays)
    _safetensors.write(path, arrays, metadata | {"model": json.dumps(content)})
    with pytest.raises(ValueError, match="is no valid model"):
        load(path)


def test_members_of_other_features_do_not_reach_the_short_way():
    model, other = fitted("one target")[0], quietly(R().fit, X[:, :2], TARGET)
    model.members_[1] = other.members_[1]
    for rows in (X[:1], X):
        with pytest.raises(ValueError, match="members_ must have been fitted to the same features"):
            model.predict(rows)
    model.members_[1] = fitted("two targets")[0].members_[1]
    for rows in (X[:1], X):
        with pytest.raises(ValueError, match="members_ must have been fitted to the same targets"):
            model.predict(rows)


@pytest.mark.parametrize("name", ["classes", "two targets"])
def test_skops_needs_to_trust_two_names(name):
    model, data, _ = fitted(name)
    dumped = skops.io.dumps(model)
    assert set(skops.io.get_untrusted_types(data=dumped)) <= set(TRUSTED_TYPES)
    again = skops.io.loads(dumped, trusted=TRUSTED_TYPES)
    require_same(again.predict(data), model.predict(data))


# --- scikit-learn


@pytest.mark.parametrize("name", ["classes", "two classes", "names"])
def test_scikit_learn_votes_as_it_does(name):
    model, data, y = fitted(name)
    voting = fastmlp.to_sklearn(model)
    assert type(voting) is VotingClassifier
    np.testing.assert_allclose(voting.predict_proba(data), model.predict_proba(data), rtol=1e-9)
    np.testing.assert_array_equal(voting.predict(data), model.predict(data))
    assert voting.score(data, y) == model.score(data, y)
    assert voting.n_features_in_ == model.n_features_in_
    again = quietly(voting.fit, data, y)  # as the ensemble's would, to rounding
    np.testing.assert_allclose(again.predict_proba(data), model.predict_proba(data), rtol=1e-6)


def test_scikit_learn_averages_as_it_does():
    model = quietly(R().fit, X, TARGET)
    voting = fastmlp.to_sklearn(model)
    assert type(voting) is VotingRegressor
    np.testing.assert_allclose(voting.predict(X), model.predict(X), rtol=1e-9, atol=1e-12)
    assert list(voting.named_estimators_) == ["member_0", "member_1", "member_2"]
    again = quietly(voting.fit, X, TARGET)
    np.testing.assert_allclose(again.predict(X), model.predict(X), rtol=1e-6, atol=1e-9)


def test_what_scikit_learn_cannot_average_is_refused():
    with pytest.raises(NotFittedError):
        fastmlp.to_sklearn(C())
    for name in ("labels", "one class"):
        with pytest.raises(ValueError, match="VotingClassifier needs two classes or more"):
            fastmlp.to_sklearn(fitted(name)[0])
    with pytest.raises(ValueError, match="VotingRegressor has no several outputs"):
        fastmlp.to_sklearn(fitted("two targets")[0])
    with pytest.raises(ValueError, match="scikit-learn has no quantile"):
        fastmlp.to_sklearn(fitted("quantiles")[0])
    model = quietly(R(weight_decay=0.1).fit, X, TARGET)
    with pytest.raises(ValueError, match=r"weight_decay=0\.1"):
        fastmlp.to_sklearn(model)
    voting = fastmlp.to_sklearn(model, predict_only=True)
    np.testing.assert_allclose(voting.predict(X), model.predict(X), rtol=1e-9, atol=1e-12)


class TestTables:
    """TabularMLPClassifier and TabularMLPRegressor are refused, and the way that is named works."""

    X = np.column_stack([np.linspace(0, 1, 60), np.tile([1.0, 2.0, np.nan], 20)])
    y = np.arange(60) * 2.0

    def test_a_regressor(self, tmp_path):
        model = fastmlp.TabularMLPRegressor("fast", random_state=0).fit(self.X, self.y)
        with pytest.raises(TypeError, match=r"give model\.network_, .*target_scaler_.*by pickle"):
            save(model, tmp_path / "model")
        save(model.network_, tmp_path / "model")
        values = load(tmp_path / "model").predict(model.encoder_.transform(self.X))
        values = model.target_scaler_.inverse_transform(values[:, None].astype(float))[:, 0]
        np.testing.assert_array_equal(values, model.predict(self.X))

    def test_a_classifier(self, tmp_path):
        model = fastmlp.TabularMLPClassifier("fast", random_state=0).fit(self.X, self.y > 60)
        for refused in (fastmlp.to_sklearn, lambda model: save(model, tmp_path / "model")):
            with pytest.raises(TypeError, match=r"model\.encoder_\.transform\(X\), or write"):
                refused(model)
        save(model.network_, tmp_path / "model")
        p = load(tmp_path / "model").predict_proba(model.encoder_.transform(self.X))
        np.testing.assert_array_equal(p, model.predict_proba(self.X))
