"""A second process that has the store open, and does some of the steps there.

The other process is told a step and what the model's half of it chose; it does the store's half and sends the answer,
with the ids that the store gave out. Both processes keep the store open all the time, so each step that one does must
be seen by the other at once.

Must not know: which steps there are, who draws them.

Invariant: an answer of the other process is compared with the model's exactly as one of this process.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cordwood.engine import CordwoodError, Store
from tests.sim.rules import Step, World

ALONE = ("reopen", "rebuild", "compact_alone")  # steps for which nobody else may have the store open
Learned = list[tuple[str, tuple[Any, ...]]]


class Ear:
    """In the place of the model, in the other process: hears what the store calls things."""

    def __init__(self) -> None:
        self.learned: Learned = []

    def set_id(self, *named: Any) -> None:
        self.learned.append(("set_id", named))

    def set_upload_id(self, *named: Any) -> None:
        self.learned.append(("set_upload_id", named))


class Hand(World):
    """The store's half of a world."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.options = options
        self.ids = set()
        self.store = Store.open(path, **options)

    def _learn_ids(self, *_: Any) -> None:
        """The first process asks the store by itself."""

    def do(self, step: Step, chosen: tuple[Any, ...]) -> tuple[Any, Learned]:
        ear = Ear()
        self.model = ear  # type: ignore[assignment]  # only what a store's half calls is there
        self._version, self._target, self._parts = chosen
        name, *arguments = step
        method: Callable[..., Any] = getattr(self, "do_" + name)
        try:
            return method(1, *arguments), ear.learned
        except CordwoodError as error:
            return type(error), ear.learned


def serve(pipe: Connection, path: Path, options: dict[str, Any]) -> None:
    """The other process: does what comes through the pipe until that is closed."""
    logging.disable(logging.CRITICAL)
    hand = Hand(path, options)
    pipe.send("open")
    while True:
        try:
            step, chosen = pipe.recv()
        except EOFError:
            break
        pipe.send(hand.do(step, chosen))
    hand.store.close()


class Pair:
    """A world, and a second process beside it that is started when it is needed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._pipe: Connection | None = None
        self._process: multiprocessing.process.BaseProcess | None = None

    def run(self, step: Step, *, elsewhere: bool) -> None:
        """One step, here or in the other process; AssertionError when the answer is not the model's."""
        if step[0] in ALONE:
            self.stop()
        elif elsewhere:
            self.world.run(step, self._do)
            return
        self.world.run(step)

    def _do(self, step: Step) -> Any:
        world = self.world
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        self._pipe.send((step, (world._version, world._target, world._parts)))
        answer, learned = self._pipe.recv()
        for method, named in learned:
            getattr(world.model, method)(*named)
        if step[0] in ("batch", "delete_many") and not isinstance(answer, type):
            keys = step[2]
            world._learn_ids(step[1], [key if isinstance(key, str) else key[0] for key in keys])
        if step[0] == "rename_object" and not isinstance(answer, type):
            world._learn_ids(step[1], step[2:4])
        return answer

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve, args=(theirs, self.world.path, self.world.options), daemon=True
        )
        self._process.start()
        theirs.close()
        assert self._pipe.recv() == "open"

    def stop(self) -> None:
        """Ends the other process in good order; it is started again when it is needed."""
        if self._pipe is not None and self._process is not None:
            self._pipe.close()
            self._process.join(20)
            assert self._process.exitcode == 0
        self._pipe = self._process = None
