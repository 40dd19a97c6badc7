"""Programs in processes of their own."""

import os
import subprocess
import sys
import textwrap


def run_command(*command, timeout=300, cwd=None, **env):
    """What a command prints; it must end well.  ``env`` is added to the environment."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=timeout,
        cwd=cwd, env=os.environ | env,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def run_python(code, *arguments, timeout=300, **env):
    """`run_command` of a program in Python, its warnings aside; it finds nothing where it runs."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", textwrap.dedent(code)]
    return run_command(*command, *arguments, timeout=timeout, **env)
