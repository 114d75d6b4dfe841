"""Measures our forward pass against the Hugging Face module's, on the same clips and weights.

    python -m benchmarks.model --device cpu --json model.json
    python -m benchmarks.model --device cuda --preset base --check --json model.json

It needs torch, transformers, numpy and safetensors only. Everybody starts from uint8 frames in host
memory (page-locked, on a GPU) and takes turns in one process; on a CPU everybody has one thread.
TFLOP/s count the operations of the Hugging Face module (`flops_of`), also where ours do fewer.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from benchmarks._model_report import REFERENCE, Name, Row, Setting, bars, table
from benchmarks._models import ABOUT, PRESETS, Run, Scores, checkpoint_of, clips_of, contestant
from indexer.errors import IndexerError
from indexer.model.recipe import flops_of
from indexer.model.staging import Staging
from indexer.model.weights import Checkpoint

GPU_BATCHES: Final = {"base": 32, "hr": 8, "l": 4}
DTYPES: Final = {"cpu": ("float32", "bfloat16"), "cuda": ("float32", "bfloat16", "float16")}
CONTESTS: Final = {
    "cpu": (
        REFERENCE,
        ("hf", "bfloat16"),
        ("hf-compiled", "bfloat16"),
        ("openvino", "bfloat16"),
        ("native", "float32"),
        ("native", "bfloat16"),
        ("native-compiled", "float32"),
        ("native-compiled", "bfloat16"),
        ("classifier", "auto"),
    ),
    "cuda": (
        REFERENCE,
        ("hf-tf32", "float32"),
        ("hf", "bfloat16"),
        ("hf", "float16"),
        ("hf-compiled", "bfloat16"),
        ("native", "float32"),
        ("native", "float16"),
        ("native-compiled", "bfloat16"),
        ("native-compiled", "float16"),
        ("native-graphs", "float16"),
        ("classifier", "auto"),
    ),
}


def gemm_peak(device: str, dtype: str) -> float:
    """Operations per second of the fastest of some plain matrix products, of what it allows."""
    shapes = [(1576, 768, 3072), (3152, 3072, 768)] if device == "cpu" else [(8192, 8192, 8192)]
    best = 0.0
    for rows, inner, columns in shapes:
        left = torch.randn(rows, inner, dtype=getattr(torch, dtype), device=device)
        right = torch.randn(columns, inner, dtype=getattr(torch, dtype), device=device)
        product = partial(torch.nn.functional.linear, left, right)
        product()
        for _ in range(5):
            seconds = measured(device, [product] * 5) / 5
            best = max(best, 2.0 * rows * inner * columns / seconds)
    return best


def measured(device: str, calls: Iterable[Callable[[], object]]) -> float:
    """Seconds that they take: CPU time on a CPU, which a busy machine does not stretch."""
    if device == "cpu":
        started = time.process_time()
        for call in calls:
            call()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    for call in calls:
        call()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def process_bytes(row: Row, checkpoint: Checkpoint, arguments: argparse.Namespace) -> int:
    """The most memory that a process of its own holds which runs one batch; Python included."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool:
        threads, batch = arguments.threads, arguments.batch
        return pool.submit(_peak_bytes, row.name, checkpoint, threads, batch).result()


def _peak_bytes(name: Name, checkpoint: Checkpoint, threads: int, batch: int) -> int:
    torch.set_num_threads(threads)
    with torch.inference_mode():
        contestant(*name, checkpoint, "cpu", batch)(clips_of(checkpoint, batch))
    # what getrusage tells begins with the memory of the process that started this one
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def measure(
    rows: Sequence[Row], checkpoint: Checkpoint, arguments: argparse.Namespace
) -> dict[Name, Scores]:
    """Fills in the rows, and gives everybody's scores of the same clips."""
    frames_NTHWC = clips_of(checkpoint, arguments.clips)
    if arguments.device == "cuda":
        frames_NTHWC = frames_NTHWC.pin_memory()
    frames_BTHWC = frames_NTHWC[: arguments.batch]
    runs: dict[Name, Run] = {}
    scores: dict[Name, Scores] = {}
    for row in rows:
        note(f"{row.method} {row.dtype}")
        try:
            run = _started(row, checkpoint, frames_BTHWC, arguments.device)
            scores[row.name] = _score(run, frames_NTHWC, arguments.batch)
            runs[row.name] = run
        except (ImportError, IndexerError, RuntimeError) as error:
            row.problem = f"{type(error).__name__}: {error}".partition("\n")[0]
    running = [row for row in rows if row.name in runs]
    take_turns(running, runs, frames_BTHWC, arguments)
    for row in running if arguments.device == "cpu" else []:
        note(f"memory of {row.method} {row.dtype}")
        row.memory_bytes = process_bytes(row, checkpoint, arguments)
    return scores


def take_turns(
    rows: Sequence[Row], runs: dict[Name, Run], frames_BTHWC: Tensor, arguments: argparse.Namespace
) -> None:
    """Times everybody again and again, so that a busy moment hits them all."""
    for repetition in range(arguments.repeat):
        note(f"repetition {repetition + 1} of {arguments.repeat}")
        for row in rows:
            calls = [partial(runs[row.name], frames_BTHWC)] * arguments.batches
            seconds = measured(arguments.device, calls)
            row.seconds.append(seconds / (len(frames_BTHWC) * arguments.batches))


def _started(row: Row, checkpoint: Checkpoint, frames_BTHWC: Tensor, device: str) -> Run:
    before_bytes = 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before_bytes = torch.cuda.memory_allocated()
    run = contestant(row.method, row.dtype, checkpoint, device, len(frames_BTHWC))
    started = time.perf_counter()
    _score(run, frames_BTHWC, len(frames_BTHWC))
    row.first_seconds = time.perf_counter() - started
    if device == "cuda":
        row.memory_bytes = torch.cuda.max_memory_allocated() - before_bytes
    return run


def _score(run: Run, frames_NTHWC: Tensor, batch: int) -> Scores:
    """Batch by batch, each brought back before the next: CUDA graphs use their memory again."""
    parts = [
        [output.float().cpu() for output in run(frames_BTHWC)]
        for frames_BTHWC in torch.split(frames_NTHWC, batch)
    ]
    logits, embeddings = (torch.cat(outputs) for outputs in zip(*parts, strict=True))
    return logits, embeddings


def compare(rows: Sequence[Row], scores: dict[Name, Scores]) -> None:
    """Fills in how far all are from the reference."""
    expected = scores.get(REFERENCE)
    for row in rows:
        if expected is None or row.name not in scores:
            continue
        logits, embeddings = scores[row.name]
        difference = logits - expected[0]
        row.error = difference.abs().max().item()
        row.relative_rms = (difference.square().mean() / expected[0].square().mean()).sqrt().item()
        cosines = torch.cosine_similarity(embeddings.double(), expected[1].double())
        row.worst_cosine = cosines.min().item()


def preparation_seconds(checkpoint: Checkpoint, device: str, batch: int) -> float:
    """CPU time for each clip to bring a batch out of read-only memory to the device."""
    staging = Staging((checkpoint.num_frames, *[checkpoint.image_size] * 2, 3), device)
    frames_BTHWC = clips_of(checkpoint, batch).numpy()
    frames_BTHWC.setflags(write=False)
    staging.load([frames_BTHWC], batch)
    started = time.process_time()
    for _ in range(20):
        staging.load([frames_BTHWC], batch)
    return (time.process_time() - started) / (20 * batch)


def facts(arguments: argparse.Namespace) -> dict[str, object]:
    """What this was measured with."""
    if arguments.device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
        name = models[0] if models else platform.machine()
    installed = {dist.metadata["Name"] for dist in importlib.metadata.distributions()}
    packages = sorted({"torch", "transformers", "numpy", "openvino", "triton"} & installed)
    return {
        "device": name,
        "model": arguments.preset,
        "batch": arguments.batch,
        "clips_compared": arguments.clips,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "packages": {package: importlib.metadata.version(package) for package in packages},
        "methods": ABOUT,
    }


def note(text: str) -> None:
    """Says on stderr how it is going; the table has stdout for itself."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    add = parser.add_argument
    add("--preset", default="base", help=f"{', '.join(PRESETS)}, demo, a folder or a hub id")
    add("--device", choices=CONTESTS, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--batch", type=int, help="clips of a batch; by default 1 on a CPU")
    add("--batches", type=int, help="batches of a repetition; by default 1 on a CPU, 10 on a GPU")
    add("--clips", type=int, help="clips whose scores are compared; by default 4, 64 on a GPU")
    add("--methods", nargs="+", choices=ABOUT, default=list(ABOUT))
    add("--repeat", type=int, default=5)
    add("--threads", type=int, default=1, help="on a CPU")
    add("--json", type=Path, metavar="FILE", help="write everything there too")
    add("--check", action="store_true", help="exit with 1 if our model misses a bar")
    arguments = parser.parse_args(argv)
    on_gpu = arguments.device == "cuda"
    arguments.batch = arguments.batch or (GPU_BATCHES.get(arguments.preset, 32) if on_gpu else 1)
    arguments.batches = arguments.batches or (10 if on_gpu else 1)
    arguments.clips = arguments.clips or (64 if on_gpu else 4)
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and tells whether the bars were met."""
    arguments = parse(argv)
    if arguments.device == "cpu":
        torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.allow_tf32 = False  # in convolutions it is on by default
    contests = CONTESTS[arguments.device]
    rows = [Row(*name) for name in contests if name[0] in arguments.methods]
    with checkpoint_of(arguments.preset) as checkpoint, torch.inference_mode():
        compare(rows, measure(rows, checkpoint, arguments))
        setting = Setting(
            preset=arguments.preset,
            device=arguments.device,
            flops=flops_of(checkpoint.architecture),
            peaks={name: gemm_peak(arguments.device, name) for name in DTYPES[arguments.device]},
            preparation_seconds=preparation_seconds(checkpoint, arguments.device, arguments.batch),
        )
    found = list(bars(rows, setting))
    print(table(rows, setting), "", *found, sep="\n")
    if arguments.json:
        document = {
            **facts(arguments),
            "setting": asdict(setting),
            "rows": [asdict(row) | {"median_seconds": row.median_seconds} for row in rows],
            "bars": [asdict(bar) | {"missed": bar.is_missed} for bar in found],
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return int(arguments.check and any(bar.is_missed for bar in found))


if __name__ == "__main__":
    sys.exit(main())
