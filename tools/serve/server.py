"""Starts `navicache serve` for a test, and starts it again after a kill."""

import os
import re
import signal
import subprocess
import threading
import time


class Server:
    def __init__(self, program, data, *options, port=0, through=(), **settings):
        """`through`: a command that runs the program. `settings`: of the process."""
        self.program, self.data, self.options, self.port = program, data, options, port
        self.through, self.settings = list(through), settings
        self.process = None

    def start(self):
        command = [*self.through, self.program, "serve", "--data", self.data, "--port", str(self.port), *self.options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **self.settings)
        log = []
        for line in self.process.stderr:
            log.append(line)
            found = re.match(r"listening on (https?://.*:(\d+))", line)
            if found:
                self.url, self.port = found[1], int(found[2])
                threading.Thread(target=self._drain, daemon=True).start()
                return self
        raise SystemExit("the server ended:\n" + "".join(log))

    def _drain(self):
        for _ in self.process.stderr:
            pass

    def worker(self):
        """The process of the worker, or None."""
        try:
            with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as children:
                found = children.read().split()
        except FileNotFoundError:
            return None
        for thread in os.listdir(f"/proc/{self.process.pid}/task"):
            try:
                with open(f"/proc/{self.process.pid}/task/{thread}/children") as children:
                    found += children.read().split()
            except FileNotFoundError:
                pass
        return int(found[0]) if found else None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def kill_worker(self):
        worker = self.worker()
        if worker:
            try:
                os.kill(worker, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        code = self.process.wait(timeout=60)
        assert code == 0, f"exit code {code}"
        return time.monotonic() - began

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.kill()
