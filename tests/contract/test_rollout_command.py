"""The whole command in a process of its own, against a fake control plane; killed at every step."""

import asyncio
import json
import re
import signal
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from loadtests.observe.pages import read_page
from serve_app.config.rollout import read_rollout
from serve_app.rollouts.command import run_rollout
from serve_app.serving.ports import free_port
from tests.fakes.serve_rest_api import FakeControlPlane

BEFORE = {"int8": 10_000, "gptq": 0}
AT_10, AT_50 = {"int8": 9000, "gptq": 1000}, {"int8": 5000, "gptq": 5000}
PROMOTED = {"int8": 0, "gptq": 10_000}
COMMAND = """
import sys, typer
from serve_app.domain.errors import QuantileError
from serve_app.rollouts.cli import rollout
app = typer.Typer(pretty_exceptions_enable=False)
app.command()(rollout)
try:
    app()
except QuantileError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
async def plane():
    async with FakeControlPlane(BEFORE) as plane:
        yield plane


class Rollout:
    """The command, with its file and folder."""

    def __init__(self, plane: FakeControlPlane, folder: Path) -> None:
        self.out = folder / "out"
        self.file = folder / "r.yaml"
        self.file.write_text(
            yaml.safe_dump(
                {
                    "model": "m",
                    "baseline": "int8",
                    "candidate": "gptq",
                    "steps": [{"share_bp": 1000}, {"share_bp": 5000}],
                    "each_step": {"min_duration_s": 0, "max_duration_s": 60},
                    "settle_s": 0,
                    "evidence": [
                        {"kind": "metrics", "urls": [f"{plane.url}/metrics"], "window_s": 1}
                    ],
                    "guards": {"errors": {"margin": 0.05}},
                    "target": {"kind": "serve", "url": plane.url},
                }
            )
        )

    async def start(self, *options: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", COMMAND, str(self.file), "--out", str(self.out), *options),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )

    async def run(self, *options: str) -> tuple[int, str]:
        """Exit status and output, on one line."""
        process = await self.start(*options)
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, " ".join(output.decode().split())


@pytest.fixture
def command(plane, tmp_path):
    return Rollout(plane, tmp_path)


async def test_a_good_candidate_is_promoted(command, plane):
    status, output = await command.run()
    assert (status, plane.split) == (0, PROMOTED), output
    assert [
        put["applications"][0]["deployments"][0]["user_config"]["split"] for put in plane.puts
    ] == [
        AT_10,
        AT_50,
        PROMOTED,
    ]
    assert "gptq (from int8) is promoted" in output
    report = json.loads((command.out / "rollout.json").read_text())
    assert report["outcome"] == "promoted"


async def test_a_failing_candidate_is_rolled_back(command, plane):
    plane.failing_share = 0.3
    status, output = await command.run()
    assert (status, plane.split) == (1, BEFORE), output
    assert "errors: the candidate is worse" in output


async def test_a_prometheus_that_asks_now_and_then_sees_how_it_ended(command, plane):
    """The verdict is the last thing that happens: without a while more nobody would ask in time."""
    plane.failing_share = 0.3
    port, asked = free_port(), []
    running = asyncio.create_task(
        asyncio.to_thread(
            run_rollout,
            read_rollout(command.file),
            command.out,
            Console(quiet=True),
            metrics_port=port,
            linger_s=3.0,
        )
    )
    while not running.done():
        with suppress(OSError):
            asked.append(await asyncio.to_thread(read_page, f"http://127.0.0.1:{port}/metrics", 5))
        await asyncio.sleep(1)
    assert await running == 1
    rollback = re.compile(r'^quantile_rollout_verdict{.*verdict="rollback"} 1\.0$', re.M)
    assert sum(bool(rollback.search(page)) for page in asked) >= 2


KILLS = (
    ("put", 1),
    ("after put", 1),
    ("metrics", 1),
    ("metrics", 3),
    ("put", 1),
    ("after put", 1),
    ("metrics", 2),
    ("put", 1),
    ("after put", 1),
)
"""What a life ends at: the so manieth event of this kind in it."""


@pytest.mark.timeout(300)
async def test_killed_at_every_step_it_goes_on_and_changes_each_split_once(command, plane):
    process: asyncio.subprocess.Process | None = None
    lives, seen = 0, Counter[str]()

    def kill(event: str) -> bool:
        seen[event] += 1
        is_time = lives < len(KILLS) and (event, seen[event]) == KILLS[lives]
        if is_time and process is not None:
            process.send_signal(signal.SIGKILL)
        return is_time

    plane.on_event = kill
    for lives in range(len(KILLS) + 1):
        seen.clear()
        process = await command.start()
        output, _ = await process.communicate()
        ended_well = lives == len(KILLS)
        assert process.returncode == (0 if ended_well else -signal.SIGKILL), output.decode()
    assert plane.split == PROMOTED
    assert plane.put_splits == [AT_10, AT_50, PROMOTED]


async def test_ctrl_c_leaves_the_split_and_abort_puts_it_back(command, plane):
    process: asyncio.subprocess.Process | None = None

    def interrupt(event: str) -> None:
        if event == "metrics" and plane.events.count("metrics") == 3:
            process.send_signal(signal.SIGINT)

    plane.on_event = interrupt
    process = await command.start()
    output = " ".join((await process.communicate())[0].decode().split())
    assert process.returncode not in (0, 1, 3)
    assert plane.split == AT_10
    assert "The split stays: int8 9000, gptq 1000" in output
    assert "--abort puts the split back to int8 10000, gptq 0" in output
    status, output = await command.run("--abort")
    assert (status, plane.split) == (1, BEFORE), output
    assert "was called off" in output


async def test_two_at_once_do_not_fight(command, plane):
    is_on = asyncio.Event()
    plane.on_event = lambda event: is_on.set() if event == "metrics" else None
    process = await command.start()
    await is_on.wait()
    status, output = await command.run()
    assert status == 2
    assert "another process runs the rollout" in output
    assert (await process.wait()) == 0


async def test_somebody_elses_split_is_left_alone(command, plane):
    def meddle(event: str) -> None:
        if plane.events.count("metrics") == 2:
            split = {"int8": 5, "gptq": 9995}
            plane.config["applications"][0]["deployments"][0]["user_config"]["split"] = split

    plane.on_event = meddle
    status, output = await command.run()
    assert status == 2
    assert "somebody else changed it" in output
    assert plane.split == {"int8": 5, "gptq": 9995}


async def test_a_plan_asks_nobody_and_a_wrong_option_says_so(command, plane):
    status, output = await command.run("--plan", "--simulate", "2")
    assert status == 0
    assert "errors betting" in re.sub(r" +", " ", output)
    assert plane.events == []
    status, output = await command.run("--simulate", "2")
    assert (status, output) == (2, "--simulate goes with --plan")
