"""How many videos are prepared at once: a pool of processes here, or Ray Data on one machine or a cluster.

Both run `prepare_video` and nothing else; rows come in any order. Each process computes with one thread, so that as
many videos are prepared as there are processes, and the same numbers come out everywhere.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool

from ...errors import InputError
from .clip_filters import UNREADABLE
from .video_clips import Task, prepare_video, rejected

Numbered = tuple[int, list[dict]]  # the number of a task, and its rows


def run_local(tasks: Sequence[Task], workers: int | None) -> Iterator[Numbered]:
    """Yield the rows of each task, as they are done, by a pool of processes. A video that ends its process (a decoder
    that crashes, too little memory) is rejected, and the others go on."""
    waiting, workers = dict(enumerate(tasks)), workers or os.cpu_count() or 1
    for number, rows in _pooled(waiting, workers):
        del waiting[number]
        yield number, rows
    # Those that were in a pool when it broke, each in a pool of its own: so it is known which one breaks it.
    for number, task in list(waiting.items()):
        alone = dict(_pooled({number: task}, 1))
        said = "The process that read it ended: it is damaged, or needs more memory than there is."
        yield number, alone.get(number) or [rejected(UNREADABLE, said)]


def _pooled(tasks: dict[int, Task], workers: int) -> Iterator[Numbered]:
    """As run_local, until a process ends."""
    pool = ProcessPoolExecutor(min(workers, max(len(tasks), 1)), multiprocessing.get_context("spawn"), start_worker)
    try:
        futures: dict[Future, int] = {pool.submit(prepare_video, task): number for number, task in tasks.items()}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except BrokenProcessPool:
                return
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def start_worker() -> None:
    """What a process does first."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def run_ray(tasks: Sequence[Task], workers: int | None) -> Iterator[Numbered]:
    """Yield the rows of each task by Ray Data: rows are videos, and one flat_map makes clips of them.

    Goes to the cluster that RAY_ADDRESS names, or starts Ray on this machine; paths must mean the same on every machine
    of a cluster. workers: videos at once; None leaves that to Ray.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("The engine ray needs Ray; install it with: pip install 'ray[data]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    videos = ray.data.from_items([{"number": number} for number in range(len(tasks))], override_num_blocks=len(tasks))
    # Clips as text: their rows have lists and missing numbers, whose types Arrow would guess from each block anew.
    clips = videos.flat_map(_Clips(tasks), num_cpus=1, concurrency=workers)
    found: dict[int, list[dict]] = {number: [] for number in range(len(tasks))}
    for row in clips.iter_rows():
        found[row["number"]].append(json.loads(row["clip"]))
    yield from found.items()


class _Clips:
    """The stage: a row with a task's number -> the rows of its clips."""

    def __init__(self, tasks: Sequence[Task]):
        self._tasks = tasks

    def __call__(self, row: dict) -> list[dict]:
        start_worker()
        number = int(row["number"])
        return [{"number": number, "clip": json.dumps(clip)} for clip in prepare_video(self._tasks[number])]


ENGINES: dict[str, Callable[[Sequence[Task], int | None], Iterator[Numbered]]] = {"local": run_local, "ray": run_ray}
