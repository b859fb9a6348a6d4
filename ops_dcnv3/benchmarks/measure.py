"""Fair timing, memory and the machine's own limits, for the benchmarks."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

Run = Callable[[], object]

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler complains where there is no GPU

# What DCNv3 must load for one point and 16 channels, from arrays that stay in the L1 cache: an
# index, and for each of four neighbours a weight and VALUES vectors; EXTRA vectors more for a sum
# that is read and written back. Three points at a time, because additions take several cycles.
_LOAD_LOOP = """
#include <stdint.h>
#if defined(__AVX512F__)
enum { WIDTH = 64 };
#elif defined(__AVX__)
enum { WIDTH = 32 };
#else
enum { WIDTH = 16 };
#endif
enum { VECTORS = (1 << 14) / WIDTH, POINTS = 256 };
typedef float Vector __attribute__((vector_size(WIDTH)));
extern "C" {  // visible, so that their contents are not known here
Vector data[VECTORS];
float weights[4 * POINTS];
int indices[POINTS];
int vector_bytes() {
  for (int i = 0; i < POINTS; ++i) indices[i] = 7 * i % (VECTORS - 96);
  return WIDTH;
}
}
template <int VALUES, int EXTRA>
static float run(int64_t count) {
  Vector sums[12] = {};
  const Vector factor = data[0];
  for (int64_t p = 0; p < count; p += 3) {
    for (int u = 0; u < 3; ++u) {
      const int at = (p + u) & (POINTS - 1);
      const Vector* here = data + indices[at];
      for (int c = 0; c < 4; ++c) {
        const float weight = weights[4 * at + c];
        for (int v = 0; v < VALUES; ++v) sums[4 * u + c] += weight * here[c * VALUES + v];
        for (int v = 0; v < EXTRA; ++v) sums[4 * u + c] += factor * here[48 + c * EXTRA + v];
      }
    }
  }
  for (int k = 1; k < 12; ++k) sums[0] += sums[k];
  return sums[0][0];
}
extern "C" float load(int64_t points, int values, int extra) {
  switch (100 * values + extra) {
    case 100: return run<1, 0>(points);
    case 200: return run<2, 0>(points);
    case 400: return run<4, 0>(points);
    case 800: return run<8, 0>(points);
    case 101: return run<1, 1>(points);
    case 102: return run<1, 2>(points);
    case 202: return run<2, 2>(points);
    case 204: return run<2, 4>(points);
    case 404: return run<4, 4>(points);
    case 808: return run<8, 8>(points);
  }
  return -1;
}
"""


class LoadLoop:
    """Loads from the L1 cache like DCNv3; `available` is False where nothing can be compiled."""

    def __init__(self) -> None:
        self.available, self.vector_bytes = False, 0
        words = os.environ.get("CXX", "c++").split()
        if shutil.which(words[0]) is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder, "load.cpp"), Path(folder, "load.so")
            source.write_text(_LOAD_LOOP)
            command = [*words, "-O3", "-march=native", "-ffp-contract=fast", "-funroll-loops"]
            command += ["-shared", "-fPIC", str(source), "-o", str(target)]
            if subprocess.run(command, capture_output=True).returncode:
                return
            library = ctypes.CDLL(str(target))
        self.vector_bytes, self._load, self.available = library.vector_bytes(), library.load, True
        self._load.argtypes = (ctypes.c_int64, ctypes.c_int, ctypes.c_int)
        self._load.restype = ctypes.c_float

    def run(self, points: int, values: int, extra: int) -> None:
        """The loads of `points` points with `values` and `extra` vectors per neighbour."""
        if self._load(points, values, extra) == -1:
            raise ValueError(f"no load loop for {values} and {extra} vectors per neighbour")


def copy_of(num_bytes: int, device: str) -> Run:
    """A copy that touches `num_bytes`: half of them are read, half written."""
    source = torch.zeros(max(num_bytes // 2, 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _timer(device: str, threads: int) -> Callable[[Run, int], float]:
    """Seconds of `calls` calls: CPU time of this thread, wall time, or the GPU's own clock."""
    if device == "cuda":

        def on_gpu(run: Run, calls: int) -> float:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end) / 1e3

        return on_gpu
    clock = time.thread_time if threads == 1 else time.perf_counter

    def on_cpu(run: Run, calls: int) -> float:
        start = clock()
        for _ in range(calls):
            run()
        return clock() - start

    return on_cpu


def median_times(
    candidates: dict[str, Run], rounds: int, device: str, threads: int, sample_ms: float = 1.0
) -> dict[str, float]:
    """Milliseconds per call, medians over rounds in which all candidates take turns.

    A turn begins with a call that is not timed, so that nobody pays for the caches that the one
    before has filled. A candidate that takes less than `sample_ms` is called several times.
    """
    timer, calls = _timer(device, threads), {}
    for name, run in candidates.items():
        run()  # builds, allocates, fills caches
        once = timer(run, 1)
        calls[name] = max(1, min(1000, round(1e-3 * sample_ms / max(once, 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            run()
            times[name].append(1e3 * timer(run, calls[name]) / calls[name])
    return {name: statistics.median(values) for name, values in times.items()}


def peak_extra_bytes(run: Run, device: str) -> int:
    """Most memory that one call holds through PyTorch's allocator beyond what was there before.

    The result counts, the arguments do not. On the CPU it comes from the profiler's allocation
    events, on a GPU from the allocator's statistics.
    """
    run()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about profiling cycles, of which there is one
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            result = run()  # kept, so that freeing it is not in the trace
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    del result
    changes = [event for event in events if event.get("name") == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment(device: str, threads: int) -> dict[str, object]:
    """Machine, date, versions, threads and load: what a figure needs beside it."""
    facts: dict[str, object] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {os.cpu_count()} CPUs",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": threads,
        "clock": "thread CPU time" if device == "cpu" and threads == 1 else "wall time",
        "load average": round(os.getloadavg()[0], 2),
    }
    if device == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        facts["clock"] = "CUDA events"
    return facts


def geometric_mean(values: list[float]) -> float:
    """The mean for ratios."""
    return statistics.geometric_mean(values)
