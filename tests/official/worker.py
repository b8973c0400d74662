"""Runs the official Python worker until it is killed.

Reads ANTHROPIC_BASE_URL, ANTHROPIC_ENVIRONMENT_ID and ANTHROPIC_ENVIRONMENT_KEY; the working
directory is the first argument, a log level may be the second.
"""

import asyncio
import logging
import os
import sys

from anthropic import AsyncAnthropic
from anthropic.lib.environments import EnvironmentWorker


async def main() -> None:
    client = AsyncAnthropic(auth_token=os.environ["ANTHROPIC_ENVIRONMENT_KEY"])
    worker = EnvironmentWorker(
        client,
        environment_id=os.environ["ANTHROPIC_ENVIRONMENT_ID"],
        environment_key=os.environ["ANTHROPIC_ENVIRONMENT_KEY"],
        workdir=sys.argv[1],
        worker_id="official-python",
        max_idle=2.0,
    )
    await worker.run()


logging.basicConfig(level=sys.argv[2] if len(sys.argv) > 2 else "WARNING")
asyncio.run(main())
