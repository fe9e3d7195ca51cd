#!/usr/bin/python
# Copyright (c) 2026 the redirect authors
# MIT License (see LICENSE or https://opensource.org/license/mit)
# SPDX-License-Identifier: MIT

"""Confirms what waits to be confirmed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: confirm
short_description: Keeps a policy of redirect that would else be taken back
description:
  - Runs C(redirect confirm). M(redirect.router.policy) does this by itself, over a fresh
    connection; this module is for those who apply by other means.
version_added: 0.1.0
author:
  - the redirect authors (@redirect-authors)
options:
  executable:
    description: The program, where it is not in the search path.
    type: path
attributes:
  check_mode:
    description: There is nothing to confirm in check mode.
    support: none
  diff_mode:
    description: There is nothing to compare.
    support: none
  platform:
    description: Linux routers.
    support: full
    platforms: Linux
seealso:
  - module: redirect.router.policy
"""

EXAMPLES = r"""
- name: Close this connection; the next task makes a fresh one
  ansible.builtin.meta: reset_connection

- name: Keep what was applied
  redirect.router.confirm:
"""

RETURN = r"""
"""

from ansible.module_utils.basic import AnsibleModule


def main():
    module = AnsibleModule(argument_spec={"executable": {"type": "path"}})
    program = module.params["executable"] or module.get_bin_path(
        "redirect", required=True, opt_dirs=["/usr/sbin", "/usr/local/sbin"]
    )
    status, stdout, stderr = module.run_command([program, "confirm"])
    if status != 0:
        module.fail_json(msg=stderr.strip() or "redirect confirm failed", rc=status, stdout=stdout)
    module.exit_json(changed=True)


if __name__ == "__main__":
    main()
