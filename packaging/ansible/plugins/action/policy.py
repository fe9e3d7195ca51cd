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
        seconds = int(self._task.args.get("confirm", 120))
        problem = self._confirm(task_vars, time.monotonic() + seconds)
        if problem is not None:
            result["failed"] = True
            result["msg"] = (
                "the policy was applied, and could not be confirmed over a fresh connection: %s; "
                "%d seconds after it was applied the router goes back to the policy before, whose "
                "files it still has" % (problem, seconds)
            )
            return result
        result["confirmed"] = True
        return self._put_files(task_vars, result)

    def _put_files(self, task_vars, result):
        """What is in force and confirmed becomes what lies on the router."""
        arguments = dict(self._task.args, check=False, confirm=0)
        put = self._execute_module(
            "redirect.router.policy", module_args=arguments, task_vars=task_vars
        )
        if put.get("failed"):
            result["failed"] = True
            result["msg"] = (
                "the policy is in force and confirmed, and its files could not be put in place: %s"
                % put.get("msg", "it failed")
            )
        return result

    def _confirm(self, task_vars, deadline):
        """Confirms over a new connection; what speaks against it, if it cannot be done.

        Whether it came in time the router decides, not the deadline.
        """
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
