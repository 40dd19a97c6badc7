"""Proof on a GPU, in one command: is it right, how fast is it, how fast could it be.

    python bench/cuda_report.py [--minutes 8] [--only products tiled] [--readme]

Runs the test ladder on the device (`cuda_ladder`), then measures training steps, epochs, inference,
launches and grid barriers beside PyTorch (eager, CUDA graphs, `torch.compile`; float32, TF32 and
bfloat16, each against the same) and beside the roofline, a measured copy bandwidth and a measured
matmul rate.  It builds nothing and needs what an image with CUDA 13, numba-cuda, numba, numpy,
scikit-learn and PyTorch holds.

A GPU can hang a process, or leave it with a context that refuses everything.  So each section is a
child process with a time limit, and keeps what it found as it goes: whatever happens to it costs
nothing else.  Sections come in order of importance; when time is over the rest is reported as not
reached.  Within a section everybody does the same work in the same process: the same network, rows,
order and Adam, and the same losses before anything is timed.  Rounds are interleaved; a figure is
the median of its rounds, without compilation, which is reported by itself.

Writes <gpu>.json and <gpu>.md into bench/results; ``--readme`` puts the latter into README.md.
``--emulate`` runs everything in the emulator of the tests, at toy sizes, for typing errors; its
figures mean nothing and its tables show none.
"""

import argparse
import contextlib
import faulthandler
import fcntl
import importlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from readme import put_into_readme

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]  # fastmlp need not be installed

MARGIN = 4  # seconds that a section gets to end by itself
HANG_SECONDS = 3
TO_COMPILE = 60  # seconds
UNSHOWN = ("flop", "losses", "epoch_samples", "copy_out_us", "tolerance")
SPEEDS = ("host_us", "done_us", "step_us", "epoch_us", "predict_us", "prepare_s", "tflops")
MAX_TEXT = 3000  # characters kept of what a failed section printed


class Plan(NamedTuple):
    """What is measured, and for how long."""

    networks: dict[str, tuple[int, ...]]
    turns: dict[str, float]  # seconds for each network
    batches: tuple[int, ...]
    compiled: tuple[str, ...]  # networks for `torch.compile`, the most telling first
    compiled_batches: tuple[int, ...]
    min_rows: int  # of data
    max_samples: int  # in one timed run, if that is more than a few steps
    check_steps: int
    epoch_rows: int
    rounds: int
    round_seconds: float
    matmul: int  # rows of the first operand; the other sizes are a quarter
    n_matmuls: int
    copy_bytes: int
    n_launches: int
    graph_nodes: int
    n_barriers: int
    shared: tuple[int, ...]  # elements of static shared memory to try


GPU = Plan(
    networks={
        "64-100-10": (64, 100, 10),
        "4096x4": (4096,) * 4,
        "784-256-128-10": (784, 256, 128, 10),
        "32-64x4-8": (32, 64, 64, 64, 64, 8),
        "512-1024-1024-100": (512, 1024, 1024, 100),
    },
    turns={"64-100-10": 50, "784-256-128-10": 50, "32-64x4-8": 50, "512-1024-1024-100": 50,
           "4096x4": 60},
    batches=(128, 2048, 16384, 262144),
    compiled=("512-1024-1024-100", "784-256-128-10"), compiled_batches=(16384,),
    min_rows=8192, max_samples=2**20, check_steps=4,
    epoch_rows=2**16, rounds=5, round_seconds=0.06, matmul=16384, n_matmuls=4, copy_bytes=2**32,
    n_launches=1000, graph_nodes=100, n_barriers=1000, shared=(16384, 51200),
)  # fmt: skip
# Of the code of the resident path, and of products of each precision on the tiled path; one more
# where a report of former code tells nothing of what there is now.  Reports without them are of the
# first.
GENERATIONS = {"resident": 2, "highest": 1, "high": 1, "medium": 2}
TOY = Plan(
    networks={"5-4-3": (5, 4, 3)}, turns={"5-4-3": 60}, batches=(4,), compiled=("5-4-3",),
    compiled_batches=(4,), min_rows=8, max_samples=4, check_steps=1, epoch_rows=8, rounds=1,
    round_seconds=0.0, matmul=16, n_matmuls=1, copy_bytes=1024, n_launches=3, graph_nodes=2,
    n_barriers=2, shared=(64,),
)  # fmt: skip
SMALL = ("64-100-10", "32-64x4-8", "784-256-128-10")


class Job:
    """A section in its child process: what it may use, and where its results go.

    Parameters
    ----------
    section : str
    out : Path
        Written anew with every result.
    emulated : bool
    seconds : float
        Until it is killed.
    lock : Path, optional
        Of its stage, for those that measure in turn.
    """

    def __init__(self, section: str, out: Path, emulated: bool, seconds: float,
                 lock: Path | None = None):  # fmt: skip
        self.section, self.emulated = section, emulated
        self.plan = TOY if emulated else GPU
        self.results: dict[str, Any] = {}
        self._out, self._turn_ends = out, math.inf
        self._end = time.monotonic() + seconds
        faulthandler.dump_traceback_later(max(1, seconds - 1))  # shows where it hangs
        if lock is not None:
            self._lock = lock.open("w")
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def time_left(self) -> float:
        """Seconds until it should stop."""
        return min(self._end, self._turn_ends) - MARGIN - time.monotonic()

    def take_turn(self, seconds: float) -> None:
        """Wait until nobody else of the stage prepares or measures; end the process by force after
        so many seconds from then on.
        """
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._turn_ends = time.monotonic() + seconds
        faulthandler.dump_traceback_later(seconds, exit=True)

    def keep(self, **results) -> None:
        self.results |= results
        write(self._out, json.dumps(self.results))

    def add(self, key: str, record: dict[str, Any]) -> None:
        """Append to a list of records."""
        print(f"  {self.section}: {describe(record, self.emulated)}", flush=True)
        self.keep(**{key: [*self.results.get(key, []), record]})

    @cached_property
    def device(self):
        """The GPU, or the emulator in its place for everything that opens one."""
        from fastmlp.engine.cuda import device as target
        from fastmlp.engine.cuda import tiles

        if self.emulated:
            from simt import EMULATED_SIZES, EmulatedDevice

            device = EmulatedDevice()
            target.open_device = lambda: device
            tiles.SIZES = dict.fromkeys(tiles.SIZES, EMULATED_SIZES)
        return target.open_device()


def describe(record: dict[str, Any], emulated: bool = False) -> str:
    """A record on one line, without what only the JSON needs; of a text, the last line."""
    shown = {name: short(value) for name, value in record.items()
             if name not in UNSHOWN and not (emulated and name in SPEEDS)}  # fmt: skip
    return ", ".join(f"{name} {value}" for name, value in shown.items() if value)


def short(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {short(each)}" for name, each in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).strip().split("\n")[-1][:150]


def write(path: Path, text: str) -> None:
    """Replace a file at once, so that whoever reads it finds it whole."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)


# --- the sanitizer ----------------------------------------------------------------------------


def sanitizer(job: Job) -> None:
    """NVIDIA's memory and race checkers over `small_fit`, where they are installed."""
    tool = shutil.which("compute-sanitizer", path=os.environ["PATH"] + ":/usr/local/cuda/bin")
    if job.emulated or tool is None:
        job.keep(text="needs a GPU" if job.emulated else "compute-sanitizer is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        for check in ("memcheck", "racecheck"):
            command = [tool, "--tool", check, "--error-exitcode", "9", *child_command(
                "small fit", Path(folder) / "out.json", 600, False)]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            job.add("checks", {"tool": check, "code": done.returncode,
                               "text": (done.stdout + done.stderr)[-MAX_TEXT:]})  # fmt: skip


# --- sections ---------------------------------------------------------------------------------


class Section(NamedTuple):
    """A part of the report: its most seconds, and the function of a `Job` that makes it."""

    limit: float
    module: str
    function: str
    arguments: tuple = ()


def stages(plan: Plan) -> list[dict[str, Section]]:
    """Sections by name that run side by side; the most important stages first.

    Rungs and networks spend most of their time in the compiler, on one core each; networks then
    measure in turn.
    """
    ladder, timing = "cuda_ladder", "cuda_timing"
    waiting = TO_COMPILE + sum(plan.turns.values())  # a network's, until the others are done
    networks = {f"network {name}": Section(waiting, timing, "time_network", (name, turn))
                for name, turn in plan.turns.items()}  # fmt: skip
    return [
        {"system": Section(40, timing, "system")},
        {"barrier": Section(25, timing, "barrier")},
        {
            "products": Section(90, ladder, "products"),
            "tiled": Section(90, ladder, "paths", ("tiled", "float32", "float64")),
            "resident float32": Section(90, ladder, "paths", ("resident", "float32")),
            "resident float64": Section(90, ladder, "paths", ("resident", "float64")),
            "estimators": Section(90, ladder, "estimators"),
        },
        {"roofline": Section(45, timing, "roofline")},
        networks,
        {"compiled": Section(150, timing, "compiled")},
        {"sanitizer": Section(150, "cuda_report", "sanitizer")},
    ]


def sections(plan: Plan) -> dict[str, Section]:
    """All sections by name."""
    return {name: section for stage in stages(plan) for name, section in stage.items()}


SMALL_FIT = {"small fit": Section(60, "cuda_timing", "small_fit")}  # what the sanitizer looks at


def child_command(name: str, out: Path, seconds: float, emulated: bool) -> list[str]:
    command = [sys.executable, str(Path(__file__).resolve()), "--section", name, "--out", str(out)]
    return [*command, "--seconds", str(seconds), *["--emulate"] * emulated]


def be_child(arguments) -> None:
    """Run one section in this process."""
    faulthandler.enable()
    job = Job(arguments.section, arguments.out, arguments.emulate, arguments.seconds,
              arguments.lock)  # fmt: skip
    while arguments.hang == arguments.section:
        time.sleep(1)
    section = (sections(job.plan) | SMALL_FIT)[arguments.section]
    module = importlib.import_module(section.module)
    getattr(module, section.function)(job, *section.arguments)
    faulthandler.cancel_dump_traceback_later()


class Child:
    """A section in a process group of its own, from its start on."""

    def __init__(self, name: str, seconds: float, folder: Path, options: list[str], emulated: bool):
        folder.mkdir()
        self._out, self._log = folder / "out.json", folder / "log"
        self._start, self._seconds = time.monotonic(), seconds
        command = child_command(name, self._out, seconds, emulated) + options
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stderr=log, start_new_session=True, cwd=ROOT)

    def wait(self) -> dict[str, Any]:
        """Let it end, or its time; what it found."""
        left = self._seconds - (time.monotonic() - self._start)
        try:
            code = self._process.wait(max(0, left))
        except subprocess.TimeoutExpired:
            return self.end(f"killed after {self._seconds:.0f} s")
        return self.end(f"failed with code {code}" if code else "done")

    def end(self, status: str) -> dict[str, Any]:
        """Kill what is left of it; what it found.  One that the driver holds is not waited for."""
        seconds = round(time.monotonic() - self._start, 1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        log = "" if status == "done" else self._log.read_text(errors="replace")[-MAX_TEXT:]
        results = json.loads(self._out.read_text()) if self._out.exists() else {}
        return {"status": status, "seconds": seconds, "text": log, "results": results}


def run_all(arguments, report: dict[str, Any]) -> None:
    """All stages in turn; the report is written after each section."""
    end = time.monotonic() + 60 * arguments.minutes - MARGIN
    for stage in stages(TOY if arguments.emulate else GPU):
        chosen = {name: section for name, section in stage.items()
                  if name in (arguments.only or stage)}  # fmt: skip
        left = end - time.monotonic()
        if left > 2 * MARGIN:
            run_stage(chosen, left, arguments, report)
        else:
            nothing = {"status": "not reached", "seconds": 0, "text": "", "results": {}}
            report["sections"] |= dict.fromkeys(chosen, nothing)


def run_stage(stage: dict[str, Section], left: float, arguments, report: dict[str, Any]) -> None:
    """Sections side by side, for at most the ``left`` seconds."""
    children: dict[str, Child] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, section in stage.items():
                hang = name == arguments.hang
                seconds = min(HANG_SECONDS if hang else section.limit, left)
                print(f"{name}: at most {seconds:.0f} s", flush=True)
                options = ["--lock", f"{folder}/lock", *["--hang", name] * hang]
                children[name] = Child(name, seconds, Path(folder) / str(len(children)), options,
                                       arguments.emulate)  # fmt: skip
            for name, child in children.items():
                record = report["sections"][name] = child.wait()
                print(f"{name}: {record['status']}, {record['seconds']} s", flush=True)
                print(record["text"], flush=True, end="")
                write_report(report, arguments.out_dir)
        finally:  # after Ctrl-C or SIGTERM
            for name in children.keys() - report["sections"].keys():
                report["sections"][name] = children[name].end("stopped")


# --- the report -------------------------------------------------------------------------------


def new_report(emulated: bool) -> dict[str, Any]:
    """What is known before anything ran."""
    query = ["nvidia-smi", "-i", "0", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    found = "" if emulated else output_of(query)
    gpu, _, driver = found.partition(", ")
    return {
        "gpu": "emulated" if emulated else gpu or "unknown GPU", "driver": driver or "unknown",
        "emulated": emulated, "date": time.strftime("%Y-%m-%d"),
        "commit": output_of(["git", "describe", "--always", "--dirty"]) or "unknown",
        "generations": GENERATIONS, "sections": {},
    }  # fmt: skip


def output_of(command: list[str]) -> str:
    """First line of what a command prints, or nothing."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().split("\n")[0]


def records(report: dict[str, Any], section: str, key: str) -> list[dict[str, Any]]:
    """Records of all sections whose name starts so."""
    found = (each["results"].get(key, []) for name, each in report["sections"].items()
             if name.startswith(section))  # fmt: skip
    return [record for some in found for record in some]


def ratios(cells: list[dict], rival: str) -> list[float]:
    """How many times longer a rival's steps take."""
    both = [cell["step_us"] for cell in cells if rival in cell.get("step_us", {})]
    return [times[rival] / times["fastmlp"] for times in both]


def marks(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What was promised: text, lowest figure found, needed figure; met is None if unknown."""
    cells = records(report, "network", "cells")
    small = [cell for cell in cells if cell["network"] in SMALL and cell["batch"] <= 2048
             and cell["precision"] == "highest"]  # fmt: skip
    compiled = ratios(records(report, "compiled", "cells"), "torch.compile")
    fast = [inference_rate(cell, "fastmlp") for cell in cells
            if key(cell) == ("32-64x4-8", 262144, "medium") and "predict_us" in cell]  # fmt: skip
    rows = [
        ("small networks, batch <= 2048: PyTorch with CUDA graphs / fastmlp",
         ratios(small, "CUDA graphs"), 6, 5),
        ("small networks, batch <= 2048: PyTorch eager / fastmlp", ratios(small, "PyTorch"), 6, 20),
        ("4096x4, batch 16384: rate of a step / rate of PyTorch's matmul, same precision",
         matmul_shares(report, cells), 3, 0.7),
        ("batch 16384: torch.compile / fastmlp", compiled, 6, 1),
        ("32-64x4-8, batch 262144, bfloat16: samples per second", fast, 1, 1e9),
    ]  # fmt: skip
    return [mark(text, values, n, needed, report["emulated"]) for text, values, n, needed in rows]


def mark(text: str, values: list[float], n: int, needed: float, emulated: bool) -> dict[str, Any]:
    """One mark; it is met if all ``n`` figures are there and reach what is needed."""
    worst = min(values, default=None)
    met = None if worst is None or len(values) < n else worst >= needed
    if worst is not None and worst < needed:
        met = False
    found = {"lowest": worst, "measured": len(values), "of": n, "needed": needed, "met": met}
    return {"text": text} | (found if not emulated else found | {"lowest": None, "met": None})


def matmul_shares(report: dict[str, Any], cells: list[dict]) -> list[float]:
    rates = torch_rates(report)
    return [cell["flop"] / cell["step_us"]["fastmlp"] * 1e-6 / rates[cell["precision"]]
            for cell in cells if (cell["network"], cell["batch"]) == ("4096x4", 16384)
            and "step_us" in cell and cell["precision"] in rates]  # fmt: skip


def torch_rates(report: dict[str, Any]) -> dict[str, float]:
    """TFLOP/s of PyTorch's matmul by precision."""
    rates: dict[str, float] = {}
    for each in records(report, "roofline", "matmul"):
        if "PyTorch" in each["tflops"]:
            rate = each["tflops"]["PyTorch"]
            rates[each["precision"]] = max(rate, rates.get(each["precision"], 0))
    return rates


def write_report(report: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    report["marks"] = marks(report)
    stem = "".join(c if c.isalnum() else "-" for c in report["gpu"].lower())
    write(folder / f"{stem}.json", without_folders(json.dumps(report, indent=1)) + "\n")
    write(folder / f"{stem}.md", markdown(report) + "\n")


def without_folders(text: str) -> str:
    """Names of files only: where they lie on a machine is nobody's business."""
    return re.sub(r"(?<!\w)/(?:[\w.+@-]+/)+", "", text)


def markdown(report: dict[str, Any]) -> str:
    versions = report["sections"].get("system", {"results": {}})["results"].get("versions", {})
    software = ", ".join(f"{name} {version}" for name, version in versions.items())
    head = (f"Measured on {report['date']}, {report['gpu']}, driver {report['driver']}, commit "
            f"{report['commit']}; {software}.")  # fmt: skip
    if report["emulated"]:
        head += "  An emulated run: it shows that the report works, and no speed."
    parts = [head, marks_table(report), ladder_table(report), steps_table(report),
             device_table(report), missing(report)]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def figure(report: dict[str, Any], value: float | None, unit: str = "") -> str:
    """A speed, for people; never one of the emulator's."""
    if report["emulated"]:
        return "emulated"
    if value is None:
        return "-"
    return f"{value:.0f}{unit}" if 1e3 <= value < 1e6 else f"{value:.3g}{unit}"


def marks_table(report: dict[str, Any]) -> str:
    words = {True: "met", False: "missed", None: "not measured"}
    rows = [[each["text"], f"{each['needed']:.3g}", figure(report, each["lowest"]),
             f"{each['measured']} of {each['of']}", words[each["met"]]]
            for each in report["marks"]]  # fmt: skip
    return table(["mark", "at least", "lowest found", "cases measured", ""], rows)


def ladder_table(report: dict[str, Any]) -> str:
    """How many rungs held, and those that did not."""
    rows = []
    for section in ("products", "tiled", "resident", "estimators"):
        rungs = records(report, section, "rungs")
        counts = [str(sum(rung["status"] == status for rung in rungs))
                  for status in ("passed", "failed", "not reached")]  # fmt: skip
        rows += [[section, *counts]] if rungs else []
    failed = [f"- {describe(rung)}" for rung in records(report, "", "rungs")
              if rung["status"] == "failed"]  # fmt: skip
    text = table(["ladder", "passed", "failed", "not reached"], rows)
    return "\n\n".join(part for part in (text, "\n".join(failed)) if part)


def steps_table(report: dict[str, Any]) -> str:
    """Steps in microseconds, and how many times longer rivals take."""
    beside = {key(cell): cell for cell in records(report, "compiled", "cells")}
    rows = [steps_row(report, cell, beside.get(key(cell), {}))
            for cell in records(report, "network", "cells") if "step_us" in cell]  # fmt: skip
    columns = ["network", "batch", "products", "path", "step", "of the roofline", "PyTorch",
               "CUDA graphs", "torch.compile", "epoch", "PyTorch's", "samples/s inference",
               "PyTorch's"]  # fmt: skip
    note = "Steps and epochs of fastmlp; PyTorch's columns are how many times longer it takes."
    return f"{note}\n\n{table(columns, rows)}" if rows else ""


def key(cell: dict[str, Any]) -> tuple:
    return cell["network"], cell["batch"], cell["precision"]


def steps_row(report: dict[str, Any], cell: dict[str, Any], beside: dict[str, Any]) -> list[str]:
    step = cell["step_us"]["fastmlp"]

    def times_longer(measured: dict, rival: str, name: str = "step_us") -> str:
        times = measured.get(name, {})
        return figure(report, times[rival] / times["fastmlp"] if rival in times else None)

    floor, epoch = floor_us(report, cell), cell.get("epoch_us", {}).get("fastmlp")
    return [
        cell["network"], str(cell["batch"]), cell["precision"], cell["path"],
        figure(report, step, " us"),
        figure(report, None if floor is None else 100 * floor / step, " %"),
        times_longer(cell, "PyTorch"), times_longer(cell, "CUDA graphs"),
        times_longer(beside, "torch.compile"),
        figure(report, None if epoch is None else epoch / 1e3, " ms"),
        times_longer(cell, "PyTorch", "epoch_us"),
        *(figure(report, inference_rate(cell, name)) for name in ("fastmlp", "PyTorch")),
    ]  # fmt: skip


def inference_rate(cell: dict[str, Any], name: str) -> float | None:
    """Samples per second, copying the outputs to the host not counted."""
    if name not in cell.get("predict_us", {}):
        return None
    return 1e6 * cell["batch"] / max(1.0, cell["predict_us"][name] - cell["copy_out_us"][name])


def floor_us(report: dict[str, Any], cell: dict[str, Any]) -> float | None:
    """A step's least time: its arithmetic at the matmul rate, or reading its rows once."""
    rates = torch_rates(report)
    bandwidth = report["sections"].get("roofline", {"results": {}})["results"].get("bandwidth")
    if cell["precision"] not in rates or bandwidth is None:
        return None
    n_features = GPU.networks.get(cell["network"], (0,))[0]
    read = 4e-3 * cell["batch"] * n_features / bandwidth
    return max(1e-6 * cell["flop"] / rates[cell["precision"]], read)


def device_table(report: dict[str, Any]) -> str:
    """Launches, barriers, bandwidth and matmul rates."""
    rows = []
    for each in records(report, "system", "launches"):
        what = "launch from a graph" if "graph_of" in each else f"launch, {each['arrays']} arrays"
        rows.append([what, figure(report, each["done_us"], " us")])
    found = {key: value for each in report["sections"].values()
             for key, value in each["results"].items()}  # fmt: skip
    rows.append(["grid barrier", figure(report, found.get("barrier_us"), " us")])
    rows.append(["copy", figure(report, found.get("bandwidth"), " GB/s")])
    for each in found.get("shared", []):
        works = "works" if each["works"] else "fails"
        rows.append([f"static shared memory of {each['bytes']} bytes", works])
    for each in found.get("matmul", []):
        ours, theirs = (figure(report, each["tflops"].get(name)) for name in ("fastmlp", "PyTorch"))
        rows.append([f"{each['product']}, {each['precision']}: TFLOP/s (PyTorch's A B)",
                     f"{ours} ({theirs})"])  # fmt: skip
    for each in found.get("checks", []):
        rows.append([each["tool"], "no error" if each["code"] == 0 else "errors, see the JSON"])
    return table(["device", ""], rows)


def missing(report: dict[str, Any]) -> str:
    """Sections that did not end by themselves, and what was not measured in the others."""
    lines = [f"{name}: {each['status']}" for name, each in report["sections"].items()
             if each["status"] != "done"]  # fmt: skip
    lines += [describe(each) for each in records(report, "system", "failures")]
    unreached: Counter = Counter()
    for cell in [*records(report, "network", "cells"), *records(report, "compiled", "cells")]:
        what = "{network}, batch {batch}, {precision}".format(**cell)
        if cell.get("text") == "not reached":
            unreached[cell["network"]] += 1
        elif "text" in cell:
            lines += [f"{what}: {cell['text']}"]
        lines += [f"{what}, {name}: {short(text)}" for name, text in cell.get("errors", {}).items()]
    lines += [f"{name}: time was over before {n} cells" for name, n in unreached.items()]
    return "\n".join(["Not complete:", "", *(f"- {line}" for line in lines)]) if lines else ""


def parse(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="most that all may take")
    parser.add_argument("--only", nargs="+", metavar="SECTION")
    parser.add_argument("--out-dir", type=Path)
    parser.add_argument("--emulate", action="store_true", help="no GPU, no figures")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    parser.add_argument("--from", dest="source", type=Path, metavar="JSON",
                        help="run nothing: make the tables from an earlier report")  # fmt: skip
    hidden = {"--section": str, "--hang": str, "--out": Path, "--lock": Path, "--seconds": float}
    for name, kind in hidden.items():
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    names = sections(TOY if arguments.emulate else GPU)
    if unknown := set(arguments.only or ()) - set(names):
        parser.error(f"--only does not know {sorted(unknown)}; sections are {list(names)}")
    if arguments.emulate and not arguments.section and arguments.out_dir is None:
        parser.error("--emulate needs --out-dir: figures of the emulator are no results")
    if arguments.emulate and arguments.readme:
        parser.error("--readme is for figures of a GPU: leave out --emulate")
    arguments.out_dir = arguments.out_dir or ROOT / "bench" / "results"
    return arguments


def main() -> None:
    arguments = parse()
    if arguments.section:
        be_child(arguments)
        return
    if arguments.source:
        report = json.loads(arguments.source.read_text())
        write_report(report, arguments.out_dir)
    else:
        # who stops the report gets what was found so far
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        report = new_report(arguments.emulate)
        try:
            run_all(arguments, report)
        finally:
            write_report(report, arguments.out_dir)
    print(markdown(report), flush=True)
    if arguments.readme:
        put_into_readme(markdown(report), "cuda report")


if __name__ == "__main__":
    main()
