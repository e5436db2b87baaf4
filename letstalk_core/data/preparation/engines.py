"""How many videos are prepared at once: a pool of processes here, or Ray Data on one machine or a cluster.

Both run the same functions and nothing else; rows come in any order. Latents are encoded by those who hold a GPU, where
there are GPUs: one process here, an actor for each with Ray. Where there are none, whoever cut a video encodes it, and
no video waits for that. Each process computes with one thread, so that as many videos are prepared as there are
processes, and the same numbers come out everywhere.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict

import torch

from ...errors import InputError
from .clip_drafts import draft_of
from .clip_filters import UNREADABLE
from .clip_latents import add_latents
from .video_clips import Task, prepare_video, rejected

MOST_BLOCKS = 10_000  # of a Ray data set: so many tasks are planned, of some videos each where there are more

RETRIES = 1  # of a Ray task whose process ended; Ray Data's own default is for ever

Stage = Callable[[Task], list[dict]]
Numbered = tuple[int, list[dict]]  # the number of a task, and its rows


def run_local(tasks: Sequence[Task], workers: int | None) -> Iterator[Numbered]:
    """Yield the rows of each task, as they are done, by a pool of processes. A video that ends its process (a decoder
    that crashes, too little memory) is rejected, and the others go on."""
    if _with_latents(tasks) and torch.cuda.is_available():
        return _encoded(tasks, _prepared(tasks, workers, prepare_video))
    return _prepared(tasks, workers, prepare_whole)


def prepare_whole(task: Task) -> list[dict]:
    """Both stages, on the CPU."""
    return add_latents(task, prepare_video(task), gpu=False)


def _with_latents(tasks: Sequence[Task]) -> bool:
    return any(task.settings.autoencoder for task in tasks)


def _prepared(tasks: Sequence[Task], workers: int | None, stage: Stage) -> Iterator[Numbered]:
    waiting, workers = dict(enumerate(tasks)), workers or os.cpu_count() or 1
    while waiting:
        for number, rows in _pooled(waiting, workers, stage):
            del waiting[number]
            yield number, rows
        # What is left was in a pool that broke. Those that were in its processes or next, each in a pool of its own: so
        # it is known which one breaks it.
        for number in list(waiting)[: 2 * workers + 1]:
            alone = dict(_pooled({number: waiting.pop(number)}, 1, stage))
            yield number, alone.get(number) or [_ended()]


def _ended() -> dict:
    said = "The process that read it ended: it is damaged, or needs more memory than there is."
    return rejected(UNREADABLE, said)


def _pooled(tasks: dict[int, Task], workers: int, stage: Stage) -> Iterator[Numbered]:
    """As _prepared, but without those that are not done when a process ends. They are begun in the order of `tasks`,
    and no more than 2 * workers ahead of whoever takes the rows: drafts that wait for a GPU are large."""
    waiting, running = iter(list(tasks.items())), dict[Future, int]()
    with _pool(min(workers, max(len(tasks), 1))) as pool, contextlib.suppress(BrokenProcessPool):
        while True:
            for number, task in itertools.islice(waiting, 2 * workers - len(running)):
                running[pool.submit(stage, task)] = number
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number = running.pop(future)
                if not isinstance(future.exception(), BrokenProcessPool):
                    yield number, future.result()


def _encoded(tasks: Sequence[Task], prepared: Iterator[Numbered]) -> Iterator[Numbered]:
    """The rows after the second stage, by one process that holds the GPU."""
    with contextlib.closing(_Holder()) as holder:
        for number, rows in prepared:
            yield number, holder.encode(tasks[number], rows)


class _Holder:
    """A process that holds a GPU. Where it ends, that costs its video alone, and another one takes its place."""

    def __init__(self):
        self._pool, self._open = None, contextlib.ExitStack()

    def encode(self, task: Task, rows: list[dict]) -> list[dict]:
        """The rows of a video after the second stage."""
        if draft_of(rows) is None:
            return rows
        if self._pool is None:
            self._pool = self._open.enter_context(_pool(1))
        try:
            return self._pool.submit(add_latents, task, rows, True).result()
        except BrokenProcessPool:
            self.close()
            return [_ended()]

    def close(self) -> None:
        self._open.close()
        self._pool = None


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
    try:
        _check_starts(pool)
        yield pool
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

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def run_ray(tasks: Sequence[Task], workers: int | None) -> Iterator[Numbered]:
    """Yield the rows of each task by Ray Data: rows are videos, and one flat_map makes clips of them.

    Goes to the cluster that RAY_ADDRESS names, or starts Ray on this machine; paths must mean the same on every machine
    of a cluster. workers: videos at once; None leaves that to Ray. Latents are encoded by actors that hold a GPU each,
    as many as there are GPUs, and on the CPU where there is none.
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
    rows = [{"number": number, "task": json.dumps(asdict(task))} for number, task in enumerate(tasks)]
    videos = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS))
    pool = ray.data.TaskPoolStrategy(size=workers)
    on_cpu = {"num_cpus": 1, "compute": pool, "ray_remote_args_fn": lambda: {"max_retries": RETRIES}}
    gpus = int(ray.cluster_resources().get("GPU", 0)) if _with_latents(tasks) else 0
    if gpus:
        actors = ray.data.ActorPoolStrategy(min_size=1, max_size=gpus, max_tasks_in_flight_per_actor=1)
        on_gpu = {"num_cpus": 0, "num_gpus": 1, "compute": actors}
        clips = videos.map(_cut, **on_cpu).flat_map(_Encoder, **on_gpu)
    else:
        clips = videos.flat_map(_clips, **on_cpu)
    found: dict[int, list[dict]] = {}
    for row in clips.iter_rows():
        if row["number"] < 0:
            raise InputError(row["clip"])
        found.setdefault(row["number"], []).append(json.loads(row["clip"]))
    yield from found.items()
    # Whose processes ended: once more here, where each is alone, and what ends its process again is rejected.
    lost = [number for number in range(len(tasks)) if number not in found]
    for place, rows in _prepared([tasks[number] for number in lost], 1, prepare_whole):
        yield lost[place], rows


# Rows of Ray are text: Arrow would guess the types of lists and missing numbers anew for each block. Where nothing can
# be written no video is to blame, and all ends: such a row has the number -1.


def _clips(row: dict) -> list[dict]:
    """Both stages at once: a video -> its clips."""
    start_worker()
    return _as_clips(row["number"], lambda: prepare_whole(_task(row)))


def _cut(row: dict) -> dict:
    """The first stage: a video -> the same with its draft."""
    start_worker()
    try:
        return row | {"rows": json.dumps(prepare_video(_task(row))), "failed": ""}
    except InputError as error:
        return row | {"rows": "", "failed": str(error)}


class _Encoder:
    """The second stage, an actor: a video with its draft -> its clips.

    What may end a process runs in one of its own: when an actor ended, Ray went on waiting for it.
    """

    def __init__(self):
        start_worker()
        self.holder = _Holder()

    def __call__(self, row: dict) -> list[dict]:
        if row["failed"]:
            return [{"number": -1, "clip": row["failed"]}]
        return _as_clips(row["number"], lambda: self.holder.encode(_task(row), json.loads(row["rows"])))


def _task(row: dict) -> Task:
    return Task.of(json.loads(row["task"]))


def _as_clips(number: int, prepared: Callable[[], list[dict]]) -> list[dict]:
    try:
        return [{"number": number, "clip": json.dumps(clip)} for clip in prepared()]
    except InputError as error:
        return [{"number": -1, "clip": str(error)}]


ENGINES: dict[str, Callable[[Sequence[Task], int | None], Iterator[Numbered]]] = {"local": run_local, "ray": run_ray}
