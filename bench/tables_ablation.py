"""Which pieces of RealMLP-TD and TabM would pay in the preset of `TabularMLPClassifier`?

    python bench/tables_ablation.py [--sets NAME ...] [--switches NAME ...] [--seeds 2]

Needs the extras `bench` and `tables`.  A PyTorch copy of what the preset 'default' trains (the same
matrix, from the same encoder; the same networks, optimizer, stopping and choice of the epoch), with
switches for what it lacks.  The switch 'fastmlp' is the preset itself, on our engine: its effect is
how far the copy is from it.

Protocol.  The tuning sets of `table_sets.py`, and no others; at most 4,000 rows to train on, 2
members instead of 4, splits with seeds that `tables.py` does not use.  A cell is a set, a seed and
a switch; with and without the switch, splits and initial weights come from the same seeds.

Effect.  The logarithm of the ratio of errors, with the switch over without it; an error is 1 - R^2,
or 1 - area under the ROC curve, its mean over the seeds that both have.  Below 0 is better.  Means
and standard errors are over the sets.  Where the copy of the preset has an error below 0.01 (breast
cancer, digits), the ratio says little: some columns are without these.  The factor of time is that
of the processor seconds of `fit`.

Rates.  RealMLP's factors are of a rate for weights of variance 1.  Weights of 256 inputs have a
16th of their size here and as much less a rate: a factor of 6 there is 96 here, 0.1 is 1.6, and
with the preset's rate, biases have about RealMLP's already.  A weight decay of 0.02 at a rate of
0.04 is 0.8 here.

Results are kept after every cell, and are not measured again unless ``--redo`` says so.  Writes
bench/results/tables_ablation.json and .md.
"""

import argparse
import json
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from machine import describe
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import LabelEncoder, StandardScaler
from table_sets import CLASSES, DATA_SETS, VALUES, DataSet

from fastmlp import TabularMLPClassifier, TabularMLPRegressor
from fastmlp.tabular import TabularEncoder
from fastmlp.tabular.presets import recipe_for, share_held_out

OUT = Path(__file__).parent / "results" / "tables_ablation.json"
MOST_ROWS = 4_000
MOST_ROWS_OF_TEST = 10_000
FIRST_SEED = 100
N_MEMBERS = 2
RATE = 1e-3
LEAST_ERROR = 0.01  # below it, ratios of errors say little


class Switches(NamedTuple):
    """What is done otherwise than in the preset."""

    n_members: int = N_MEMBERS
    scaling: float = 0.0  # a learned factor of each input, at so many times the rate
    ntk: bool = False  # weights of variance 1, divided by sqrt(fan_in) in the forward pass
    bias_factor: float = 1.0  # of the learning rate
    factor: float = 1.0  # of all inputs, not learned
    zero_last: bool = False
    parametric: float = 0.0  # z + a (silu(z) - z), a for each unit, at so many times the rate
    epochs: int = 0  # a fixed number, for schedules over it; 0 for early stopping
    flat_cos: bool = False  # dropout and decay, constant for half of the epochs, then a cosine to 0
    weight_decay: float = 0.0
    periodic: str = ""  # 'beside' the bins or 'instead' of them
    sigma: float = 0.1  # of frequencies
    trained: bool = True  # frequencies and the layer behind them
    is_shared: bool = False  # TabM-mini: one network, inputs and outputs of each member scaled
    clamped: bool = False  # predictions, to the range of the training targets


SWITCHES = {
    "preset": Switches(),
    "fastmlp": Switches(),
    "clamped output": Switches(clamped=True),
    "input scaling": Switches(scaling=6.0),
    "input scaling, x 24": Switches(scaling=24.0),
    "input scaling, x 96": Switches(scaling=96.0),
    "periodic beside bins": Switches(periodic="beside"),
    "zero last layer": Switches(zero_last=True),
    "TabM-mini of 8": Switches(n_members=8, is_shared=True),
    "periodic instead of bins": Switches(periodic="instead"),
    "parametric activation": Switches(parametric=0.1),
    "parametric activation, x 1.6": Switches(parametric=1.6),
    "bias rate 0.1": Switches(bias_factor=0.1),
    "NTK": Switches(ntk=True),
    "32 epochs": Switches(epochs=32),
    "32 epochs, flat_cos dropout": Switches(epochs=32, flat_cos=True),
    "32 epochs, flat_cos both": Switches(epochs=32, flat_cos=True, weight_decay=0.8),
    "4 members": Switches(n_members=4),
    "inputs times 2": Switches(factor=2.0),
    "inputs times 0.5": Switches(factor=0.5),
    "fixed periodic beside bins": Switches(periodic="beside", trained=False, sigma=0.5),
    "periodic beside, sigma 1": Switches(periodic="beside", sigma=1.0),
}
# the same training as another switch, predictions apart
SAME_TRAINING = {"clamped output": "preset"}


# --- the network


class Ensemble(torch.nn.Module):
    """Members side by side: parameters have an axis of members in front.

    ``numbers`` are the positions of scaled numbers among the inputs, ``bins`` those of their bins.
    """

    def __init__(self, widths: list[int], numbers: list[int], bins: list[int], on: Switches):
        super().__init__()
        self.on, self.numbers = on, numbers
        self.kept = sorted(set(range(widths[0])) - set(bins if on.periodic == "instead" else []))
        k = on.n_members
        self.rates: dict[str, float] = {}
        if on.periodic and numbers:
            self._add_periodic(k, len(numbers))
        widths = [len(self.kept) + 3 * len(numbers) * bool(on.periodic), *widths[1:]]
        if on.scaling:
            self._add("scales", torch.ones(k, 1, widths[0]), on.scaling)
        if on.is_shared:
            self._add("signs", torch.randint(2, (k, 1, widths[0])) * 2.0 - 1.0)
        self.n_layers = len(widths) - 1
        for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
            is_last = i == self.n_layers - 1
            copies = 1 if on.is_shared and not is_last else k
            self._add_layer(i, copies, fan_in, fan_out, is_last)

    def _add(self, name: str, value: torch.Tensor, rate: float = 1.0) -> None:
        self.register_parameter(name, torch.nn.Parameter(value))
        self.rates[name] = RATE * rate

    def _add_layer(self, i: int, k: int, fan_in: int, fan_out: int, is_last: bool) -> None:
        weights = torch.randn(k, fan_in, fan_out)
        if is_last and self.on.zero_last:
            weights = torch.zeros_like(weights)
        # with NTK, a layer of 256 inputs learns as fast as without
        self._add(f"w{i}", weights / (1 if self.on.ntk else fan_in**0.5), 16 if self.on.ntk else 1)
        self._add(f"b{i}", torch.zeros(k, 1, fan_out), self.on.bias_factor)
        if self.on.parametric and not is_last:
            self._add(f"a{i}", torch.ones(k, 1, fan_out), self.on.parametric)

    def _add_periodic(self, k: int, n: int) -> None:
        """PBLD of RealMLP: 16 frequencies, then a layer of 3 units, of each number."""
        self._add("frequencies", self.on.sigma * torch.randn(k, 1, n, 16))
        self._add("phases", (2 * torch.rand(k, 1, n, 16) - 1) * np.pi)
        self._add("mix", torch.randn(k, n, 16, 3) / 4)
        self._add("mix_bias", torch.zeros(k, 1, n, 3))
        for name in ("frequencies", "phases", "mix", "mix_bias"):
            self.rates[name] *= 1.0 if self.on.trained else 0.0

    def forward(self, X: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        """(members, rows, inputs) to (members, rows, outputs)."""
        own = dict(self.named_parameters())
        h = X if len(self.kept) == X.shape[2] else X[:, :, self.kept]
        if self.on.periodic and self.numbers:
            angles = X[:, :, self.numbers, None] * own["frequencies"] * (2 * np.pi)
            waves = torch.cos(angles + own["phases"])
            mixed = torch.einsum("krnf,knfm->krnm", waves, own["mix"]) + own["mix_bias"]
            h = torch.cat([h, mixed.flatten(2)], 2)
        h = h * self.on.factor if self.on.factor != 1 else h
        for name in ("scales", "signs"):
            h = h * own[name] if name in own else h
        for i in range(self.n_layers):
            w = own[f"w{i}"]
            w = w / w.shape[1] ** 0.5 if self.on.ntk else w
            z = torch.matmul(h, w) + own[f"b{i}"]
            if i == self.n_layers - 1:
                return z
            h = torch.nn.functional.silu(z)
            h = z + own[f"a{i}"] * (h - z) if f"a{i}" in own else h
            h = torch.nn.functional.dropout(h, dropout) if dropout else h
        raise AssertionError


def losses(z: torch.Tensor, y: torch.Tensor, task: str) -> torch.Tensor:
    """A mean for each member; ``z`` (members, rows, outputs)."""
    F = torch.nn.functional
    if task == VALUES:
        return ((z[:, :, 0] - y) ** 2).mean(1) / 2
    if z.shape[2] == 1:
        found = F.binary_cross_entropy_with_logits(z[:, :, 0], y.float(), reduction="none")
        return found.mean(1)
    return F.cross_entropy(z.transpose(1, 2), y, reduction="none").mean(1)


# --- training


class Table(NamedTuple):
    """A table as `Ensemble` gets it."""

    X: torch.Tensor
    y: torch.Tensor
    task: str
    n_outputs: int
    numbers: list[int]
    bins: list[int]


def rows_of_members(table: Table, share: float, on: Switches, seed: int) -> tuple:
    """(members, rows) to train on and to find the best epoch by; shared networks share them."""
    labels = table.y.numpy() if table.task == CLASSES else None
    found = [
        train_test_split(np.arange(len(table.y)), test_size=share, stratify=labels,
                         random_state=1000 * seed + member)
        for member in range(1 if on.is_shared else on.n_members)
    ]  # fmt: skip
    return tuple(
        np.ascontiguousarray(np.broadcast_to(np.stack(part), (on.n_members, len(part[0]))))
        for part in zip(*found, strict=True)
    )


def flat_cos(epoch: float, epochs: int) -> float:
    share = epoch / epochs
    return 1.0 if share < 0.5 else 0.5 * (1 + np.cos(np.pi * (2 * share - 1)))


def train(table: Table, on: Switches, seed: int) -> Ensemble:
    """Adam with averaged weights; of each member, the best epoch on the rows that it set aside."""
    n_classes = table.n_outputs if table.n_outputs > 1 else 2 if table.task == CLASSES else 1
    share = share_held_out(len(table.y), n_classes)
    rows, others = rows_of_members(table, share, on, seed)
    recipe = recipe_for("default", rows.shape[1], validates=True).parameters
    torch.manual_seed(seed)
    widths = [table.X.shape[1], *recipe["hidden_layer_sizes"], table.n_outputs]
    net = Ensemble(widths, table.numbers, table.bins, on)
    groups = [{"params": [p], "lr": net.rates[name]} for name, p in net.named_parameters()]
    adam = torch.optim.Adam(groups, betas=(0.9, recipe["beta_2"]), fused=True)
    parameters = [p.data for p in net.parameters()]
    averages = [p.clone() for p in parameters]
    best = [p.clone() for p in parameters]
    best_loss, waited = np.full(on.n_members, np.inf), np.zeros(on.n_members, int)
    for epoch in range(on.epochs or recipe["max_iter"]):
        rest = flat_cos(epoch, on.epochs) if on.flat_cos else 1.0
        for batch in batches(rows, recipe["batch_size"], on):
            loss = losses(net(table.X[batch], recipe["dropout"] * rest), table.y[batch], table.task)
            adam.zero_grad()
            (loss.mean() if on.is_shared else loss.sum()).backward()
            if on.weight_decay:
                decayed = [p.data for name, p in net.named_parameters() if name.startswith("w")]
                torch._foreach_mul_(decayed, 1 - RATE * on.weight_decay * rest)
            adam.step()
            torch._foreach_lerp_(averages, parameters, 1 - recipe["ema_decay"])
        loss = validation_losses(net, averages, table, others)
        is_better = loss < best_loss
        running = waited <= recipe["n_iter_no_change"] if not on.epochs else np.ones_like(is_better)
        is_better &= running
        for kept, new in zip(best, averages, strict=True):
            keep(kept, new, is_better)
        best_loss = np.where(is_better, loss, best_loss)
        waited = np.where(is_better, 0, waited + 1)
        if not on.epochs and (waited > recipe["n_iter_no_change"]).all():
            break
    for p, kept in zip(parameters, best, strict=True):
        p.copy_(kept)
    return net


def keep(kept: torch.Tensor, new: torch.Tensor, is_better: np.ndarray) -> None:
    """Copy the members that are better; what all share, if there is one."""
    if len(kept) == len(is_better):
        chosen = torch.from_numpy(np.flatnonzero(is_better))
        kept[chosen] = new[chosen]
    elif is_better.any():
        kept.copy_(new)


def batches(rows: np.ndarray, size: int, on: Switches) -> Any:
    """Rows of a step, (members, rows); torch's generator shuffles them."""
    k, n = rows.shape
    if on.is_shared:
        order = torch.randperm(n).expand(k, n)
    else:
        order = torch.stack([torch.randperm(n) for _ in range(k)])
    mixed = torch.from_numpy(rows).gather(1, order)
    return mixed.split(size, 1)


@torch.no_grad()
def validation_losses(
    net: Ensemble, averages: list[torch.Tensor], table: Table, others: np.ndarray
) -> np.ndarray:
    """Of each member with its averaged weights; of a shared network, that of the mean output."""
    current = [p.data.clone() for p in net.parameters()]
    for p, average in zip(net.parameters(), averages, strict=True):
        p.data.copy_(average)
    chosen = torch.from_numpy(others)
    found = losses(net(table.X[chosen]), table.y[chosen], table.task).numpy()
    for p, value in zip(net.parameters(), current, strict=True):
        p.data.copy_(value)
    return np.full_like(found, found.mean()) if net.on.is_shared else found


# --- cells


class Split(NamedTuple):
    data: DataSet
    X_train: Any
    X_test: Any
    y_train: np.ndarray
    y_test: np.ndarray


def split_of(data: DataSet, seed: int) -> Split:
    """At most 4,000 rows to train on."""
    X, y = data.load()
    y = LabelEncoder().fit_transform(y) if data.task == CLASSES else y.to_numpy(np.float64)
    n_train = min(int(0.75 * len(y)), MOST_ROWS)
    n_test = min(len(y) - n_train, MOST_ROWS_OF_TEST)
    labels = y if data.task == CLASSES else None
    parts = train_test_split(X, y, train_size=n_train, test_size=n_test, stratify=labels,
                             random_state=FIRST_SEED + seed)  # fmt: skip
    return Split(data, *parts)


def positions(encoder: TabularEncoder) -> tuple[list[int], list[int]]:
    """Of scaled numbers and of their bins among the encoder's columns."""
    n = len(encoder.numbers_)
    n_bins = sum(max(len(edges) - 1, 0) for edges in encoder.bins_.bin_edges_) if n else 0
    return list(range(n)), list(range(n, n + n_bins))


def fitted_by_fastmlp(split: Split, seed: int) -> tuple[np.ndarray, float]:
    """As `fitted`, of the preset itself with as many members."""
    kind = TabularMLPClassifier if split.data.task == CLASSES else TabularMLPRegressor
    model = kind(n_members=N_MEMBERS, random_state=seed, n_threads=1)
    before = time.process_time()
    model.fit(split.X_train, split.y_train)
    seconds = time.process_time() - before
    if split.data.task == VALUES:
        return model.predict(split.X_test), seconds
    p = model.predict_proba(split.X_test)
    return (p[:, 1] if p.shape[1] == 2 else p), seconds


def fitted(split: Split, on: Switches, seed: int) -> tuple[np.ndarray, float]:
    """Predictions of the test rows, and the seconds of the fit."""
    task = split.data.task
    before = time.process_time()
    encoder = TabularEncoder(n_bins=32, strategy="quantile", task=task, random_state=0)
    Z = torch.from_numpy(encoder.fit_transform(split.X_train, split.y_train))
    scaler = StandardScaler().fit(split.y_train[:, None]) if task == VALUES else None
    y = split.y_train if scaler is None else scaler.transform(split.y_train[:, None]).ravel()
    target = torch.from_numpy(y.astype(np.float32 if task == VALUES else np.int64))
    n_classes = len(np.unique(y)) if task == CLASSES else 1
    numbers, bins = positions(encoder)
    table = Table(Z, target, task, n_classes if n_classes > 2 else 1, numbers, bins)
    net = train(table, on, seed)
    seconds = time.process_time() - before
    test = torch.from_numpy(encoder.transform(split.X_test))
    with torch.no_grad():
        z = torch.cat([net(part.expand(on.n_members, -1, -1)) for part in test.split(2000)], 1)
    if scaler is not None:
        found = scaler.inverse_transform(z.mean(0).numpy().astype(np.float64)).ravel()
    elif n_classes == 2:
        found = torch.sigmoid(z).mean(0).numpy().ravel()
    else:
        found = torch.softmax(z.double(), 2).mean(0).numpy()
    return found, seconds


def error_of(split: Split, found: np.ndarray) -> float:
    if split.data.task == VALUES:
        return 1 - r2_score(split.y_test, found)
    return 1 - roc_auc_score(split.y_test, found, multi_class="ovr")


def clamped(split: Split, found: np.ndarray) -> np.ndarray:
    if split.data.task == CLASSES:
        return found
    return np.clip(found, split.y_train.min(), split.y_train.max())


def measure(split: Split, name: str, seed: int) -> dict[str, dict]:
    """{switch: error and seconds}: the switch's, and those of the same training."""
    if name == "fastmlp":
        found, seconds = fitted_by_fastmlp(split, seed)
    else:
        found, seconds = fitted(split, SWITCHES[name], seed)
    cell = {"seconds": seconds}
    cells = {name: cell | {"error": float(error_of(split, found))}}
    for other, same in SAME_TRAINING.items():
        if same == name:
            cells[other] = cell | {"error": float(error_of(split, clamped(split, found)))}
    return cells


def run(arguments: argparse.Namespace) -> dict[str, dict]:
    """{set/seed/switch: cell}; all sets of a switch before the next switch."""
    known = json.loads(arguments.out.read_text())["results"] if arguments.out.exists() else {}
    sets = [d for d in DATA_SETS if d.name in arguments.sets]
    splits = {}
    for seed in range(arguments.seeds):
        for name in arguments.switches:
            for data in sets:
                key = f"{data.name}/{seed}/{name}"
                if name in SAME_TRAINING or (key in known and not arguments.redo):
                    continue
                if (data.name, seed) not in splits:
                    splits[data.name, seed] = split_of(data, seed)
                cells = measure(splits[data.name, seed], name, seed)
                known |= {f"{data.name}/{seed}/{one}": cell for one, cell in cells.items()}
                print(key, cells[name], flush=True)
                report = {"machine": describe(), "results": known}
                arguments.out.write_text(json.dumps(report, indent=0) + "\n")
    return known


# --- the report


class Effect(NamedTuple):
    """Of a switch on a set: logarithms of ratios; ``error`` is without the switch."""

    task: str
    error: float
    of_errors: float
    of_seconds: float


def effects(known: dict[str, dict], name: str) -> list[Effect]:
    """Of a switch on each set that has it."""
    found = []
    for data in DATA_SETS:
        seeds = [key.split("/")[1] for key in known
                 if key.startswith(f"{data.name}/") and key.endswith(f"/{name}")]  # fmt: skip
        if not seeds:
            continue
        means = {
            one: [np.mean([known[f"{data.name}/{seed}/{one}"][what] for seed in seeds])
                  for what in ("error", "seconds")]
            for one in ("preset", name)
        }  # fmt: skip
        without, with_it = (np.array(means[one]) for one in ("preset", name))
        found.append(Effect(data.task, without[0], *np.log(with_it / without)))
    return found


def mean_and_error(values: list[float]) -> str:
    if len(values) < 2:
        return "-"
    return f"{np.mean(values):+.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def table(known: dict[str, dict]) -> str:
    """Markdown: a row for each switch."""
    lines = ["| switch | seeds | all sets | error above 0.01 | better on | regression | "
             "classification, error above 0.01 | time |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in SWITCHES:
        found = effects(known, name)
        if name == "preset" or not found:
            continue
        telling = [one for one in found if one.error > LEAST_ERROR]
        parts = [mean_and_error([one.of_errors for one in part]) for part in
                 (found, telling, *([one for one in telling if one.task == task]
                                    for task in (VALUES, CLASSES)))]  # fmt: skip
        seeds = len({key.split("/")[1] for key in known if key.endswith(f"/{name}")})
        better = f"{sum(one.of_errors < 0 for one in telling)} of {len(telling)}"
        seconds = np.exp(np.mean([one.of_seconds for one in found]))
        lines.append(f"| {name} | {seeds} | {parts[0]} | {parts[1]} | {better} | {parts[2]} | "
                     f"{parts[3]} | x {seconds:.2f} |")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    sets = [d.name for d in DATA_SETS if not d.held_out]
    parser.add_argument("--sets", nargs="+", default=sets, choices=sets)
    parser.add_argument("--switches", nargs="+", default=list(SWITCHES), choices=list(SWITCHES))
    parser.add_argument("--redo", action="store_true", help="measure again what is known")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    text = table(run(arguments))
    print(f"\n{text}")
    arguments.out.with_suffix(".md").write_text(text + "\n")


if __name__ == "__main__":
    main()
