"""Passes as CUDA graphs: launched at once instead of kernel by kernel."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Hashable
from functools import cache
from importlib import import_module
from typing import Any, Final, TypeVar

import attrs
import torch
from torch import Tensor

from tetherflow.backbone import Transformer, remember
from tetherflow.cache.engine import CacheEngine
from tetherflow.cache.passes import Phase

_EAGER_FIRST: Final = 4
"""Denoising passes of one kind that run as usual before one is recorded: kernels are compiled and chosen in
them, and a cache that is still filling changes its kind with every chunk."""
_CONTEXT_FIRST: Final = 2
"""Context passes, likewise."""

_MOST_KEPT: Final = 16
"""Recordings that have been launched and may stay; each holds some megabytes of the device's memory."""

_STANDING: Final = 2
"""Recordings of context passes that stand for later ones. They take turns, as nothing says whether the driver
waits for one that is still being computed."""

Result = TypeVar("Result")


@attrs.frozen(eq=False)
class _Recording:
    """A denoising pass that was recorded.

    Attributes:
        kind: of pass.
        text: the prompts that it reads; kept, so that no others come to lie where they were.
        latents: its input, to be written before it is replayed.
        timesteps: likewise.
        flow: its result.
        graph: the pass.
    """

    kind: Hashable
    text: Any
    latents: Tensor
    timesteps: Tensor
    flow: Tensor
    graph: torch.cuda.CUDAGraph


class _Recurring:
    """Counts how often in a row something was the same."""

    def __init__(self, enough: int) -> None:
        self._enough = enough
        self._last: tuple[Hashable, Any] = (None, None)
        self._seen = 0

    def see(self, kind: Hashable, text: Any) -> bool:
        """Whether it has been the same often enough before to expect more."""
        if kind != self._last[0] or text is not self._last[1]:
            self._last, self._seen = (kind, text), 0
        self._seen += 1
        return self._seen > self._enough


class GraphedTransformer:
    """Calls a transformer in the passes of one rollout, as CUDA graphs where that pays.

    Between the denoising passes of a full cache nothing differs but the values in buffers that stay where
    they are: one is recorded, and replayed for the others. In the context pass a policy decides, and plugins
    are free to do there what they like; so each is recorded anew while the device is busy with the passes
    before it, and launched once. Either way the device need not wait for the host to launch thousands of
    kernels, and the results are the same, bit for bit.

    Args:
        transformer: the backbone's; what it computes depends on its arguments and its weights alone.
    """

    def __init__(self, transformer: Transformer) -> None:
        self._transformer = transformer
        self._recorder = _Recorder()
        self._recording: _Recording | None = None
        self._denoising, self._context = _Recurring(_EAGER_FIRST), _Recurring(_CONTEXT_FIRST)
        self._launched: set[Phase] = set()  # phases whose passes cannot be recorded

    def __call__(self, latents: Tensor, timesteps: Tensor, text: Any, cache: CacheEngine) -> Tensor:
        """Flow of noisy latents, as the transformer's own call returns it."""
        if cache.phase is not Phase.DENOISE or cache.phase in self._launched:
            return self._transformer(latents, timesteps, text, cache)
        recording = self._recording_for(latents, timesteps, text, cache)
        if recording is None:
            return self._transformer(latents, timesteps, text, cache)
        recording.latents.copy_(latents)
        recording.timesteps.copy_(timesteps)
        recording.graph.replay()
        self._recorder.free()
        return recording.flow.clone()  # the next pass overwrites it

    def remember(self, latents: Tensor, timesteps: Tensor, text: Any, cache: CacheEngine) -> None:
        """Take clean latents into the cache in a context pass, recorded or launched kernel by kernel."""

        def compute() -> None:
            remember(self._transformer, latents, timesteps, text, cache)
            cache.join()  # a recording ends with all of it

        settled = self._context.see((cache.held, latents.shape, latents.dtype), text)
        # Strict checks wait for the device.
        if not settled or cache.checks.strict or cache.phase in self._launched:
            compute()
            return
        cache.join()  # a recording cannot wait for what is none of it
        back = cache.retake()
        try:
            graph = self._recorder.record_once(compute)
        except Exception as error:  # whatever a plugin makes of it that the device cannot be asked now
            back()
            self._forgo(cache.phase, error)
            compute()
        else:
            self._recorder.launch_once(graph)

    def _recording_for(
        self, latents: Tensor, timesteps: Tensor, text: Any, cache: CacheEngine
    ) -> _Recording | None:
        """The pass as it was recorded, now or before; None if it is not worth recording, or cannot be."""
        kind = cache.pass_kind()
        if kind is None:
            return None
        kind = (kind, latents.shape, latents.dtype)
        known = self._recording
        if known is not None and known.kind == kind and known.text is text:
            return known
        if not self._denoising.see(kind, text):
            return None
        if known is not None:
            self._recorder.keep(known.graph)
            self._recording = None  # frees the memory of the one before
        latents, timesteps = latents.clone(), timesteps.clone()
        cache.join()  # a recording cannot wait for what is none of it
        try:
            graph, flow = self._recorder.record(lambda: self._transformer(latents, timesteps, text, cache))
        except RuntimeError as error:
            self._forgo(cache.phase, error)
        else:
            self._recording = _Recording(kind, text, latents, timesteps, flow, graph)
        return self._recording

    def _forgo(self, phase: Phase, error: Exception) -> None:
        """Launch the passes of a phase kernel by kernel from now on."""
        self._launched.add(phase)
        passes = "context passes" if phase is Phase.COMMIT else "denoising passes"
        reason = str(error).strip().split("\n")[0]
        message = f"{passes} cannot be recorded and are launched kernel by kernel: {reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=4)


class _Recorder:
    """Records passes without waiting for the device, and keeps what it may yet have to launch."""

    def __init__(self) -> None:
        self._streams: dict[bool, torch.cuda.Stream] = {}
        self._pool: Any = None
        self._standing: deque[torch.cuda.CUDAGraph] = deque()  # the pool lives as long as one of its graphs
        self._kept: list[tuple[torch.cuda.Event, torch.cuda.CUDAGraph]] = []

    def record(self, compute: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
        """Record what `compute` launches, without computing it, to be launched any number of times."""
        graph = torch.cuda.CUDAGraph()
        return graph, self._capture(graph, compute, once=False)

    def record_once(self, compute: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """Record what `compute` launches, without computing it, for `launch_once`.

        What it allocates may lie where that of earlier ones lay and is free now. What the driver made of an
        earlier one stands for this one where they differ in nothing but what their kernels are given: to make
        it anew takes memory, for which the driver waits, and freeing it waits, too.
        """
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        self._capture(graph, compute, once=True)
        if len(self._standing) == _STANDING:
            standing = self._standing.popleft()
            if _takes_over(standing, graph):
                return standing
            self.keep(standing)
        graph.instantiate()
        return graph

    def launch_once(self, graph: torch.cuda.CUDAGraph) -> None:
        """Launch what `record_once` returned, before another is recorded so."""
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.get_offset()
        graph.replay()
        if generator.get_offset() == before:
            self._standing.append(graph)
        else:  # random numbers are drawn from where its own recording says
            self.keep(graph)

    def _capture(self, graph: torch.cuda.CUDAGraph, compute: Callable[[], Result], *, once: bool) -> Result:
        if self._pool is None:
            # A decision's small kernels go before what is done beside them (`cache.beside`), not after.
            self._streams = {False: torch.cuda.Stream(), True: torch.cuda.Stream(priority=-1)}
            self._pool = torch.cuda.graph_pool_handle()
        # Not `torch.cuda.graph`, which would wait for the device and collect garbage each time. Other threads
        # may allocate and copy meanwhile: only what this one does must be recordable.
        stream, before = self._streams[once], torch.cuda.current_stream()
        # Before it records, torch resets on this stream what recordings draw random numbers by. That must not
        # happen while another one is computed, nor after this one has been told where to go on.
        stream.wait_stream(before)
        try:
            with torch.cuda.stream(stream):
                graph.capture_begin(self._pool if once else None, capture_error_mode="thread_local")
                try:
                    result = compute()
                except BaseException:  # an interrupt, too: the device must not be left recording
                    _abandon(graph)
                    raise
                try:
                    graph.capture_end()
                except RuntimeError:
                    _free_generators()
                    raise
        finally:
            before.wait_stream(stream)
        return result

    def keep(self, graph: torch.cuda.CUDAGraph) -> None:
        """Keep a graph until what has been launched so far has been computed."""
        event = torch.cuda.Event()
        event.record()
        self._kept.append((event, graph))
        if len(self._kept) >= 2 * _MOST_KEPT:  # no pass is replayed before which to free them
            self.free()

    def free(self) -> None:
        """Free what has been computed, if that is much; to be called when the next launch is soon to follow.

        For a graph that has branches, the driver waits until the device has done all that it has been given.
        """
        if len(self._kept) >= _MOST_KEPT:
            self._kept = [kept for kept in self._kept if not kept[0].query()]


def _takes_over(standing: torch.cuda.CUDAGraph, graph: torch.cuda.CUDAGraph) -> bool:
    """Let what the driver made of one recording stand for another; False if it cannot, which spoils it.

    What has been launched is not affected, as CUDA says of changes to single kernels.
    """
    runtime = _runtime()
    if runtime is None:
        return False
    executable = runtime.cudaGraphExec_t(standing.raw_cuda_graph_exec())
    status, _ = runtime.cudaGraphExecUpdate(executable, runtime.cudaGraph_t(graph.raw_cuda_graph()))
    return bool(status == runtime.cudaError_t.cudaSuccess)


@cache
def _runtime() -> Any:
    """CUDA's own interface, which comes with torch; None where there is none."""
    try:
        return import_module("cuda.bindings.runtime")
    except ImportError:
        return None


def _abandon(graph: torch.cuda.CUDAGraph) -> None:
    """End a recording that has failed."""
    try:
        graph.capture_end()
    except RuntimeError:  # of what has failed, which the caller knows
        _free_generators()


def _free_generators() -> None:
    """Let random numbers be drawn again: a recording that has failed leaves their generator recording."""
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())
