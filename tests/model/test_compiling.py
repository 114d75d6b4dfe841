import shutil

import numpy as np
import pytest
import torch

from indexer.model.classify import Classifier
from indexer.model.compiling import Compiled, pays
from indexer.model.recipe import Architecture, flops_of
from indexer.model.weights import resolve
from tests.model.stress import write_stress_checkpoint

# parts of torch that compiling loads use other parts that are deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ALWAYS = 10**15
BASE = Architecture(num_labels=400)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A model that inductor has never seen, with an empty cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    return resolve(str(write_stress_checkpoint(tmp_path / "ck")), schemes=("file",))


def random_clips(checkpoint, clips):
    size = checkpoint.image_size
    shape = (clips, checkpoint.num_frames, size, size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_operations_are_those_that_were_counted_in_the_module():
    """Multiplications and additions of its matrix products, in units of 1e12."""
    assert flops_of(BASE) == pytest.approx(0.3917e12, rel=1e-3)
    high = Architecture(num_labels=400, image_size=448, num_frames=16)
    assert flops_of(high) == pytest.approx(3.4054e12, rel=1e-3)
    assert flops_of(Architecture(num_labels=400, num_frames=96)) == pytest.approx(
        4.7598e12, rel=1e-3
    )
    joint = Architecture(num_labels=400, attention_type="joint_space_time")
    assert 0.2e12 < flops_of(joint) < flops_of(BASE)


@pytest.mark.parametrize(
    ("clips", "device", "expected"),
    [
        (0, "cpu", False),
        (100, "cpu", False),
        (1000, "cpu", True),
        (1000, "cuda", False),
        (1_000_000, "cuda", True),
    ],
)
def test_compiling_pays_for_long_jobs_only(clips, device, expected):
    assert pays(BASE, clips, device) is expected


def test_short_jobs_are_not_compiled(checkpoint):
    classifier = Classifier(checkpoint, expected_clips=1000)
    classifier.classify(random_clips(checkpoint, 1))
    assert classifier.compile_seconds == 0


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no C++ compiler")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_compiled_scores_are_those_of_the_module(checkpoint, dtype):
    frames_NTHWC = random_clips(checkpoint, 5)
    exact = Classifier(checkpoint).classify(frames_NTHWC)
    plain = Classifier(checkpoint, dtype=dtype).classify(frames_NTHWC)
    classifier = Classifier(checkpoint, dtype=dtype, batch_size=2, expected_clips=ALWAYS)
    scores = classifier.classify(frames_NTHWC)
    error = np.abs(scores.embeddings_ND - exact.embeddings_ND).max()
    assert error <= max(1e-5, 1.5 * np.abs(plain.embeddings_ND - exact.embeddings_ND).max())
    compile_seconds = classifier.compile_seconds
    assert compile_seconds > 0
    assert classifier.busy_seconds < compile_seconds
    # another number of clips needs no other program, and changes no bit
    again = classifier.classify(frames_NTHWC[:3])
    assert classifier.compile_seconds == compile_seconds
    assert np.array_equal(again.logits_NK, scores.logits_NK[:3])


def test_memory_that_does_not_suffice_is_no_failure_of_the_compiler():
    """The classifier halves its batch; the smaller one may be compiled."""

    def scarce(_):
        raise torch.OutOfMemoryError

    compiled = Compiled(torch.nn.Identity())
    compiled._compiled = scarce
    with pytest.raises(torch.OutOfMemoryError):
        compiled(torch.zeros(1))
    assert compiled.failure is None


def test_without_a_compiler_the_model_runs_uncompiled(checkpoint):
    import torch._inductor.config as inductor

    frames_NTHWC = random_clips(checkpoint, 3)
    plain = Classifier(checkpoint).classify(frames_NTHWC)
    classifier = Classifier(checkpoint, expected_clips=ALWAYS)
    with inductor.patch({"cpp.cxx": (None, "no-such-compiler")}):
        with pytest.warns(RuntimeWarning, match=r"runs uncompiled.*no-such-compiler") as caught:
            scores = classifier.classify(frames_NTHWC)
        assert [warning.category for warning in caught].count(RuntimeWarning) == 1
        again = classifier.classify(frames_NTHWC)
    assert np.array_equal(scores.logits_NK, plain.logits_NK)
    assert np.array_equal(again.logits_NK, plain.logits_NK)
    (problem,) = classifier.problems
    assert problem.startswith("the model runs uncompiled")
    assert "no-such-compiler" in problem
    assert Classifier(checkpoint).problems == frozenset()
