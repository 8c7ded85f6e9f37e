"""What the app costs: its import, an explanation through it against the bare library call, and its memory.

Import: CPU seconds of Python processes that import torch and backlight, the app as well, and that build its page.
Explanation: the photograph `chelsea` by SoftPullback, from the picture to the map; through the app that is a request
over HTTP to a server in a process of its own, with the drawing of the map, its table and its archive. CPU seconds of
one thread, the server's own clock, median of the repeats, and wall time beside it. Memory: the server's resident set
after 10, 30 and 50 requests.

    python benchmarks/app_cost.py [--requests 50] [--repeats 9] [--port 7869]
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import backlight
from backlight.data import sample_image

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def cpu_of_child(code: str) -> float:
    """CPU seconds of a Python process that runs some code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def cpu_of(process: int) -> float:
    """CPU seconds of another process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident(process: int) -> float:
    """Megabytes that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE / 2**20


def timed(work: Any, clock: Any) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of a call."""
    cpu, wall = clock(), time.perf_counter()
    work()
    return clock() - cpu, time.perf_counter() - wall


def bare(repeats: int) -> tuple[float, float]:
    """Medians of the library's call alone, from the picture to the map."""
    loaded, picture = backlight.load("efficientnet_lite0"), sample_image("chelsea")
    front = loaded.pixels()

    def explain() -> None:
        x = (2 * loaded.preprocessing.image(picture) - 1)[None]
        backlight.SoftPullback(front).attribute(x)

    explain()
    times = [timed(explain, time.process_time) for _ in range(repeats)]
    return statistics.median(cpu for cpu, _ in times), statistics.median(wall for _, wall in times)


def connected(address: str) -> Any:
    """A client, once the server answers."""
    from gradio_client import Client

    for _ in range(240):
        try:
            return Client(address, verbose=False, download_files=False)  # what an answer costs, not its copy to disk
        except Exception:
            time.sleep(0.5)
    raise SystemExit(f"no answer from {address}")


def served(arguments: argparse.Namespace, picture: Path) -> tuple[float, float]:
    """Medians through the app; prints its memory."""
    from gradio_client import handle_file

    command = [sys.executable, "-m", "backlight.cli", "app", "--port", str(arguments.port), "--device", "cpu"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        client = connected(f"http://127.0.0.1:{arguments.port}/")
        inputs = (handle_file(picture), "efficientnet_lite0", None, "", -1, ["SoftPullback"], -1, 0.75, 99.5)

        def request() -> None:
            client.predict(*inputs, api_name="/explain")

        request()
        times = [timed(request, lambda: cpu_of(server.pid)) for _ in range(arguments.repeats)]
        for number in range(1 + arguments.repeats, arguments.requests + 1):
            request()
            if number in (10, 30, 50):
                print(f"resident after {number:2d} requests: {resident(server.pid):7.1f} MB", flush=True)
    finally:
        server.terminate()
        server.wait()
    return statistics.median(cpu for cpu, _ in times), statistics.median(wall for _, wall in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--port", type=int, default=7869)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    library = cpu_of_child("import torch, backlight")
    page = cpu_of_child("import torch, backlight; from backlight.app import build; build()")
    app = cpu_of_child("import torch, backlight.app.server")
    print(f"import: {library:.2f} CPU-s for torch and backlight, {app - library:.2f} more for the app", flush=True)
    print(f"its page, with all tabs: {page - app:.2f} CPU-s more", flush=True)
    alone = bare(arguments.repeats)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "chelsea.png"
        sample_image("chelsea").save(picture)
        through = served(arguments, picture)
    for kind, one, other in zip(("CPU", "wall"), alone, through, strict=True):
        ratio = f"{other / one:.2f} times"
        print(f"explanation, {kind}: {one:.3f} s bare, {other:.3f} s through the app, {ratio}", flush=True)


if __name__ == "__main__":
    main()
