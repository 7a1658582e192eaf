"""How many users there are when, as the plan has it. Beside the locustfile, so that it is not in the way by hand."""

from __future__ import annotations

from locust import LoadTestShape

from loadtests.client import PLAN


class Stages(LoadTestShape):
    """Ends the run at its time to the second: `-t` may end a short one early."""

    def tick(self) -> tuple[int, float] | None:
        run_time: float = self.get_run_time()  # type: ignore[no-untyped-call]
        share = run_time / PLAN.seconds
        if share >= 1:
            return None
        part = next((users for until, users in PLAN.stages if share < until), 1.0)
        return max(1, round(PLAN.users * part)), PLAN.spawn_per_second
