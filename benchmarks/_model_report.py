"""What `model.py` measured: as a table, and against the bars that our model is held to."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

Name = tuple[str, str]

REFERENCE: Final = ("hf", "float32")


@dataclass(slots=True)
class Row:
    """One contestant.

    Attributes:
        method: what ran.
        dtype: of its weights and activations.
        seconds: for each clip, of each repetition: CPU time on a CPU, else wall time.
        first_seconds: wall time of the first batch, compiling included.
        memory_bytes: the most that the model and its first batch hold, on a GPU of its memory, else
            of a process of their own with Python and torch in it.
        error: largest difference of a logit from the reference.
        relative_rms: of the differences of all logits.
        worst_cosine: of a clip's embedding with the reference's.
        problem: why there is no measurement.
    """

    method: str
    dtype: str
    seconds: list[float] = field(default_factory=list)
    first_seconds: float = 0.0
    memory_bytes: int = 0
    error: float | None = None
    relative_rms: float | None = None
    worst_cosine: float | None = None
    problem: str = ""

    @property
    def name(self) -> Name:
        """What it is found by."""
        return self.method, self.dtype

    @property
    def median_seconds(self) -> float:
        """For each clip; infinite where there is no measurement."""
        return statistics.median(self.seconds) if self.seconds else float("inf")


@dataclass(frozen=True, slots=True)
class Bar:
    """A promise about our model.

    Attributes:
        promise: in words.
        figure: what was measured; None where it was not.
        least: the figure is at least this.
        most: the figure is at most this.
    """

    promise: str
    figure: float | None
    least: float = float("-inf")
    most: float = float("inf")

    @property
    def is_missed(self) -> bool:
        """Whether there is a figure, and it is outside its limits."""
        return self.figure is not None and not self.least <= self.figure <= self.most

    def __str__(self) -> str:
        if self.figure is None:
            return f"-       not measured  {self.promise}"
        limit = f">= {self.least:g}" if self.most == float("inf") else f"<= {self.most:g}"
        return (
            f"{'MISSED' if self.is_missed else 'met':6}  {self.figure:.4g} {limit}  {self.promise}"
        )


@dataclass(frozen=True, slots=True)
class Setting:
    """What the rows were measured on.

    Attributes:
        preset: the model.
        device: `cpu` or `cuda`.
        flops: operations of a clip in the Hugging Face module.
        peaks: operations per second of plain matrix products, by dtype.
        preparation_seconds: CPU time to bring a clip to the device.
    """

    preset: str
    device: str
    flops: float
    peaks: Mapping[str, float]
    preparation_seconds: float

    def utilisation(self, row: Row) -> float:
        """The share of the peak at which the operations of a clip are done."""
        peak = self.peaks.get(row.dtype, max(self.peaks.values()))
        return self.flops / row.median_seconds / peak


def bars(rows: Sequence[Row], setting: Setting) -> Iterator[Bar]:
    """What is promised of our forward pass, with the figures of this run."""
    found = {row.name: row for row in rows if row.seconds}
    precision = found.get(("native", "float32"))
    yield Bar("native float32: error", precision.error if precision else None, most=1e-5)
    for dtype in ("bfloat16", "float16"):
        for method in ("native", "native-compiled"):
            mine, theirs = found.get((method, dtype)), found.get(("hf", dtype))
            if mine and theirs and mine.relative_rms and theirs.relative_rms:
                ratio = mine.relative_rms / theirs.relative_rms
                yield Bar(f"{method} {dtype}: relative rms / that of hf", ratio, most=1)
                yield Bar(f"{method} {dtype}: worst cosine", mine.worst_cosine, least=0.9998)
    yield Bar("milliseconds to prepare a clip", 1e3 * setting.preparation_seconds, most=0.2)
    yield from _gpu_bars(found, setting) if setting.device == "cuda" else _cpu_bars(found, setting)


def _cpu_bars(found: Mapping[Name, Row], setting: Setting) -> Iterator[Bar]:
    """Promised of the base model on a CPU with AMX."""
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if setting.preset == "base" and capabilities.get("amx_bf16"):
        ours = ("native-compiled", "bfloat16")
        yield _faster(found, ours, ("hf", "float32"), 5.5)
        yield _faster(found, ours, ("hf", "bfloat16"), 1.45)


def _gpu_bars(found: Mapping[Name, Row], setting: Setting) -> Iterator[Bar]:
    """Promised of one H200."""
    ours = ("native-compiled", "float16")
    row = found.get(ours)
    yield Bar("share of the peak", setting.utilisation(row) if row else None, least=0.5)
    if setting.preset == "base":
        yield Bar("clips per second", 1 / row.median_seconds if row else None, least=1000)
        yield _faster(found, ours, ("hf-compiled", "bfloat16"), 1.3)
        yield _faster(found, ours, ("hf", "float32"), 8)


def _faster(found: Mapping[Name, Row], ours: Name, theirs: Name, least: float) -> Bar:
    ratio = None
    if ours in found and theirs in found:
        ratio = found[theirs].median_seconds / found[ours].median_seconds
    return Bar(f"{' '.join(ours)} is so many times faster than {' '.join(theirs)}", ratio, least)


def table(rows: Sequence[Row], setting: Setting) -> str:
    """All rows in Markdown; the last columns compare with hf in float32."""
    columns = "method|dtype|ms/clip|clips/s|TFLOP/s|of peak|faster|MB|first s|error|rms|1 - cosine"
    lines = [columns.split("|"), ["-"] * len(columns.split("|"))]
    reference = next((row for row in rows if row.name == REFERENCE), None)
    for row in rows:
        if row.problem:
            lines.append([row.method, row.dtype, row.problem])
            continue
        seconds, share = row.median_seconds, setting.utilisation(row)
        lines.append(
            [
                row.method,
                row.dtype,
                f"{1e3 * seconds:.4g}",
                f"{1 / seconds:.4g}",
                f"{setting.flops / seconds / 1e12:.4g}",
                f"{share:.2f}",
                f"{reference.median_seconds / seconds:.2f}" if reference else "",
                f"{row.memory_bytes / 1e6:.0f}",
                f"{row.first_seconds:.1f}",
                *_error_cells(row),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _error_cells(row: Row) -> list[str]:
    if row.error is None or row.relative_rms is None or row.worst_cosine is None:
        return ["", "", ""]
    return [f"{row.error:.2g}", f"{row.relative_rms:.2g}", f"{1 - row.worst_cosine:.1g}"]
