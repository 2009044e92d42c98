"""A machine by hand, with this checkout as it is now; run it in the directory `tests`.

python -m vm run COMMAND…     boot a new one, run each shell command in it, and throw it away
python -m vm console          boot a new one with this terminal as root's console; `poweroff` ends it, or Ctrl-A X
python -m vm up DIRECTORY     boot a new one that stays until this is ended, with its files in a new directory …
python -m vm in DIRECTORY COMMAND…    … and run shell commands in it from elsewhere
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from vm.agent import Agent, AgentError
from vm.image import Unavailable
from vm.machine import Machine


def main(arguments: list[str]) -> int:
    match arguments:
        case ["run", *commands] if commands:
            with Machine() as machine:
                machine.boot()
                return _run(machine.agent, commands)
        case ["console"]:
            with Machine() as machine:
                return machine.console()
        case ["up", directory]:
            Path(directory).mkdir()
            with Machine(directory=Path(directory).resolve()) as machine:
                machine.boot()
                machine.agent.close()
                sys.stderr.write(f"vm: ready; python -m vm in {directory} COMMAND…\n")
                ends = {signal.SIGINT, signal.SIGTERM}
                signal.pthread_sigmask(signal.SIG_BLOCK, ends)
                signal.sigwait(ends)
                return 0
        case ["in", directory, *commands] if commands:
            agent = Agent(Path(directory).resolve() / "agent.sock")
            agent.connect(within=30)
            return _run(agent, commands)
    sys.stderr.write(__doc__ or "")
    return 2


def _run(agent: Agent, commands: list[str]) -> int:
    status = 0
    for command in commands:
        status, out, err = agent.wait(agent.start("/bin/sh", "-c", command), within=600)
        sys.stdout.write(out)
        sys.stderr.write(err)
        if status:
            break
    return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Unavailable, AgentError, AssertionError) as error:
        sys.exit(f"vm: {error}")
