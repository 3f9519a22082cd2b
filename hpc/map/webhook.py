"""Tells an address that a map run is complete, has paused or has failed: each once, whatever dies on the way.

    export HPC_WEBHOOK=https://hooks.example.org/...     where slots start: the launch's environment, or cluster.prelude

The address stands in no file, config or log of ours. An event is a file, `<run>/events/<kind>.g<reruns>.json`, created
by link(), so that of several slots that end only one makes it. Its content is sent, with its `name` as Idempotency-Key,
by one slot at a time (`.e<N>`, see hpc.map.election), until an answer is a 2xx, which `.sent` records. A slot that
leaves sends what it finds unsent; so does one of a later launch, and whoever looks at the run (hpc.map.orphan_events).
The receiver sees an event twice only where its answer was lost.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from hpc.base import atomic, heartbeat
from hpc.base.errors import Exit, UserError
from hpc.config import MapConfig
from hpc.map.drain import Drain
from hpc.map.election import Election
from hpc.run.directory import Run
from hpc.run.events import VARIABLE, unsent

log = logging.getLogger("agent")

ANSWER_S = 30.0  # that a receiver may take
LONGEST_PAUSE_S = 10.0  # between two tries: doubled from half a second on
OTHERS_S = 60.0  # that a slot waits, at most, while another one sends
REFUSED_S = 60.0  # for which a receiver that answers with HTTP 4xx is tried, instead of map.away_s
COMPLETE, PAUSED, FAILED = "complete", "paused", "failed"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET without its body: it counts as an error."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def address(environment: Mapping[str, str] = os.environ) -> str:
    """The address to send to, "" without one. Raises UserError, whose text does not hold it, where it is none."""
    found = environment.get(VARIABLE, "").strip()
    try:
        parts = urllib.parse.urlsplit(found)
        sound = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and "@" not in parts.netloc
            and (parts.port or 1)
            and found.isprintable()
        )
    except ValueError:
        sound = False
    if found and not sound:
        raise UserError(
            f"webhook: what is in ${VARIABLE} is no http(s) address without a password. Correct it, or unset it."
        )
    return found


def post(where: str, data: bytes, name: str) -> str:
    """Send once. "" for a 2xx, else what went wrong, without the address."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": name, "User-Agent": "hpc"}
    request = urllib.request.Request(where, data, headers, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=ANSWER_S) as answer:
            return "" if 200 <= answer.status < 300 else f"HTTP {answer.status}"
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except urllib.error.URLError as error:
        return type(error.reason).__name__
    except (OSError, http.client.HTTPException, ValueError) as error:  # their texts may hold the address
        return type(error).__name__


class Webhook:
    """One slot's part. It stops as soon as a signal tells the slot to."""

    def __init__(self, run: Run, instance: str, beat: heartbeat.Heartbeat, drain: Drain, settings: MapConfig) -> None:
        self._run, self._instance, self._beat, self._drain = run, instance, beat, drain
        self._lease_s, self._away_s = settings.lease_s, settings.away_s
        self._observer = heartbeat.Observer(run.slots, instance, settings.lease_s)

    def leave(self, code: Exit, why: str, reruns: int, advance: Callable[[], None]) -> None:
        """Called before the slot writes that it has ended: makes the event for that end, and sends all that nobody has
        sent. advance: keeps the heartbeat going meanwhile.
        """
        try:
            where = address()
        except UserError as error:
            log.error("%s", error)
            return
        if not where:
            return
        work = threading.Thread(target=self._work, args=(where, code, why, reruns), daemon=True)
        work.start()
        while work.is_alive() and not self._drain.signalled:
            advance()
            work.join(0.1)

    def _work(self, where: str, code: Exit, why: str, reruns: int) -> None:
        try:
            if code in (Exit.COMPLETE, Exit.SOME_FAILED) and not self._run.latest().pilot:  # a pilot ends no run
                self._create((COMPLETE, FAILED), why, reruns)
            elif why.startswith("paused"):
                self._create((PAUSED,), why, reruns)
            for event in unsent(self._run):
                self._deliver(where, event)
        except (OSError, UserError, ValueError, KeyError) as error:  # what is not told is found by the next
            log.error("webhook: %s: %s", type(error).__name__, error)

    def _create(self, kinds: tuple[str, ...], why: str, reruns: int) -> None:
        """Make an event, unless it is there. Which of `kinds` it is, the state of the run decides, so that all slots
        make the same.
        """
        if any(_exists(self._run, kind, reruns) for kind in kinds):
            return
        from hpc.map.status import read_status  # rich, and all that counts shards: for one slot of a run

        facts = read_status(self._run)
        kind = kinds[0]
        if kind == COMPLETE:
            if facts["exit"] == Exit.INCOMPLETE:
                return  # reopened meanwhile
            kind = COMPLETE if facts["exit"] == Exit.COMPLETE else FAILED
        create(self._run, facts, kind, why, reruns)

    def _deliver(self, where: str, event: str) -> None:
        """Send an event until an answer is a 2xx, or wait while another slot does so, which may die meanwhile."""
        data = (self._run.event_files / f"{event}.json").read_bytes()
        name, sent = json.loads(data)["name"], self._run.event_files / f"{event}.sent"
        election = Election(self._run.event_files, event, self._instance, self._beat, self._observer)
        begun, pause = time.monotonic(), 0.5
        while not sent.exists():
            waited = time.monotonic() - begun
            if not election.is_leader():
                if waited > min(2 * self._lease_s, OTHERS_S):
                    return  # its owner goes on, or its next life does
                time.sleep(min(1.0, self._lease_s / 10))
                continue
            problem = post(where, data, name)
            if not problem:
                atomic.create(sent, b"")
                log.info("webhook: %s was taken", name)
                return
            log.warning("webhook: %s was not taken: %s", name, problem)
            if waited > (min(REFUSED_S, self._away_s) if problem.startswith("HTTP 4") else self._away_s):
                return
            time.sleep(pause)
            pause = min(LONGEST_PAUSE_S, 2 * pause)


def create(run: Run, facts: dict[str, Any], kind: str, why: str, reruns: int) -> None:
    """Make an event, unless one exists that says that the run is complete.

    Args:
        facts: of hpc.map.status. why: for people. reruns: how many reruns there have been.
    """
    if _exists(run, COMPLETE, reruns):
        return
    first = run.submissions()[0].uuid  # runs of one name are told apart
    done = f"{facts['shards']['done']:,} of {facts['shards']['total']:,} shards"
    record = {
        "name": f"{run.name}-{first}-{kind}-{reruns}", "run": run.name, "kind": kind, "reruns": reruns,
        "text": f"{run.name}: {kind}, {done}: {why}", "reason": why,
        "shards": facts["shards"], "samples": facts["samples"],
    }  # fmt: skip
    run.event_files.mkdir(exist_ok=True)
    atomic.create(run.event_files / f"{kind}.g{reruns}.json", atomic.as_json(record))


def _exists(run: Run, kind: str, reruns: int) -> bool:
    """Whether there is such an event. A failure that was sent because all slots were gone, with shards left, does not
    count: the run may have gone on since.
    """
    try:
        shards = json.loads((run.event_files / f"{kind}.g{reruns}.json").read_bytes())["shards"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        return True  # damaged: it stays
    return kind != FAILED or shards["done"] + shards["failed"] >= shards["total"]
