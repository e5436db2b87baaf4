"""How many videos are prepared at once: a pool of processes here, or Ray Data on one machine or a cluster.

Both run `prepare_video` and nothing else; rows come in any order. Each process computes with one thread, so that as
many videos are prepared as there are processes, and the same numbers come out everywhere.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace

from ...errors import InputError
from .clip_filters import UNREADABLE
from .video_clips import Task, prepare_video, rejected

MOST_BLOCKS = 10_000  # of a Ray data set: so many tasks are planned, of some videos each where there are more

RETRIES = 1  # of a Ray task whose process ended; Ray Data's own default is for ever

Numbered = tuple[int, list[dict]]  # the number of a task, and its rows


def run_local(tasks: Sequence[Task], workers: int | None) -> Iterator[Numbered]:
    """Yield the rows of each task, as they are done, by a pool of processes. A video that ends its process (a decoder
    that crashes, too little memory) is rejected, and the others go on."""
    waiting, workers = dict(enumerate(tasks)), workers or os.cpu_count() or 1
    while waiting:
        for number, rows in _pooled(waiting, workers):
            del waiting[number]
            yield number, rows
        # What is left was in a pool that broke. Those that were in its processes or next, each in a pool of its own: so
        # it is known which one breaks it.
        for number in list(waiting)[: 2 * workers + 1]:
            alone = dict(_pooled({number: waiting.pop(number)}, 1))
            said = "The process that read it ended: it is damaged, or needs more memory than there is."
            yield number, alone.get(number) or [rejected(UNREADABLE, said)]


def _pooled(tasks: dict[int, Task], workers: int) -> Iterator[Numbered]:
    """As run_local, but without those that are not done when a process ends. They are begun in the order of `tasks`."""
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, max(len(tasks), 1)), multiprocessing.get_context("spawn"), start_worker)
    try:
        _check_starts(pool)
        futures: dict[Future, int] = {pool.submit(prepare_video, task): number for number, task in tasks.items()}
        for future in as_completed(futures):
            with contextlib.suppress(BrokenProcessPool):
                yield futures[future], future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()  # in the middle of a video: what is not done is done the next time
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check_starts(pool: ProcessPoolExecutor) -> None:
    """InputError where no process can be started: else every video would be blamed for it."""
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise InputError(
            "No process can be started to prepare videos; in a script of your own, call prepare below "
            "if __name__ == '__main__', and see that there is memory."
        ) from error


def start_worker() -> None:
    """What a process does first."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def run_ray(tasks: Sequence[Task], workers: int | None) -> Iterator[Numbered]:
    """Yield the rows of each task by Ray Data: rows are videos, and one flat_map makes clips of them.

    Goes to the cluster that RAY_ADDRESS names, or starts Ray on this machine; paths must mean the same on every machine
    of a cluster. workers: videos at once; None leaves that to Ray. Latents are encoded on the CPU: Ray is not asked for
    GPUs, and must not find them used.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise InputError("The engine ray needs Ray; install it with: pip install 'ray[data]'") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.max_errored_blocks = False, -1  # what has no rows in the end is seen below
    tasks = [replace(task, gpu=False) for task in tasks]
    rows = [{"number": number, "task": json.dumps(asdict(task))} for number, task in enumerate(tasks)]
    videos = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS))
    pool = ray.data.TaskPoolStrategy(size=workers)
    clips = videos.flat_map(_clips, num_cpus=1, compute=pool, ray_remote_args_fn=lambda: {"max_retries": RETRIES})
    found: dict[int, list[dict]] = {}
    for row in clips.iter_rows():
        if row["number"] < 0:
            raise InputError(row["clip"])
        found.setdefault(row["number"], []).append(json.loads(row["clip"]))
    yield from found.items()
    # Whose processes ended: once more here, where each is alone, and what ends its process again is rejected.
    lost = [number for number in range(len(tasks)) if number not in found]
    for place, rows in run_local([tasks[number] for number in lost], 1):
        yield lost[place], rows


def _clips(row: dict) -> list[dict]:
    """The stage: a video -> its clips. As text: Arrow would guess the types of lists and missing numbers anew for each
    block."""
    start_worker()
    try:
        rows = prepare_video(Task.of(json.loads(row["task"])))
    except InputError as error:  # nothing can be written: no video is to blame, and all ends
        return [{"number": -1, "clip": str(error)}]
    return [{"number": row["number"], "clip": json.dumps(clip)} for clip in rows]


ENGINES: dict[str, Callable[[Sequence[Task], int | None], Iterator[Numbered]]] = {"local": run_local, "ray": run_ray}
