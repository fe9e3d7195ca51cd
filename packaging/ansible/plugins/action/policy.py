# Copyright (c) 2026 the redirect authors
# MIT License (see LICENSE or https://opensource.org/license/mit)
# SPDX-License-Identifier: MIT

"""Applies on the router, then confirms over a fresh connection.

The module cannot do the second: it runs at the end of the old connection, which lives on
under a policy that lets no new one in.
"""

from __future__ import annotations

import time

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Two modules, and between them the connection closed."""

    _requires_connection = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        result.update(self._execute_module("redirect.router.policy", task_vars=task_vars))
        if not result.pop("unconfirmed", False) or result.get("failed"):
            return result

        result["confirmed"] = False
        # Well before the router goes back, or a confirmation might come just too late.
        seconds = int(self._task.args.get("confirm", 120))
        problem = self._confirm(task_vars, time.monotonic() + seconds / 2)
        if problem is None:
            result["confirmed"] = True
            return result
        result["failed"] = True
        result["msg"] = (
            "the policy was applied, and could not be confirmed over a fresh connection: %s; "
            "within %d seconds the router goes back to the policy before" % (problem, seconds)
        )
        return result

    def _confirm(self, task_vars, deadline):
        """Confirms over a new connection; what speaks against it, if it cannot be done."""
        arguments = {}
        if self._task.args.get("executable"):
            arguments["executable"] = self._task.args["executable"]
        # Tidied up now: at the end there may be no way to the router.
        self.cleanup()
        while True:
            self._connection._shell.tmpdir = None
            try:
                # With SSH, this ends the master that connections are shared through.
                self._connection.reset()
                confirmed = self._execute_module(
                    "redirect.router.confirm", module_args=arguments, task_vars=task_vars
                )
            except AnsibleConnectionFailure as failure:
                self._connection._shell.tmpdir = None
                if time.monotonic() >= deadline:
                    return str(failure)
                time.sleep(1)
                continue
            return confirmed.get("msg", "it failed") if confirmed.get("failed") else None
