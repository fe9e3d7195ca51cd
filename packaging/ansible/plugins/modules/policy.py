#!/usr/bin/python
# Copyright (c) 2026 the redirect authors
# MIT License (see LICENSE or https://opensource.org/license/mit)
# SPDX-License-Identifier: MIT

"""What happens on the router; the action plugin of the same name drives it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: policy
short_description: Puts a policy of redirect in force on a router, or takes it back
description:
  - Puts the policy and its lists on the router, lets C(redirect check) judge them there, and
    applies them if the router differs.
  - The policy is applied so that it takes itself back, and is then confirmed over a fresh
    connection. A policy that locks Ansible out is gone again after O(confirm) seconds, and the
    files on the router are still the ones before.
  - A policy that does not pass the check never replaces the one on the router.
version_added: 0.1.0
author:
  - the redirect authors (@redirect-authors)
options:
  state:
    description:
      - V(applied) puts the policy in force.
      - V(absent) takes everything back, and leaves the policy file where it is.
    type: str
    choices: [applied, absent]
    default: applied
  content:
    description:
      - The policy, as text. Most will use a template lookup.
      - If it is not given, the policy that lies on the router is put in force.
    type: str
  lists:
    description:
      - Network lists that the policy refers to as C({ file = "NAME" }), by file name.
      - They are put beside the policy.
    type: dict
    default: {}
  path:
    description: Where the policy is on the router.
    type: path
    default: /etc/redirect/policy.toml
  confirm:
    description:
      - After how many seconds the router goes back by itself unless a fresh connection
        could be made.
      - V(0) applies at once and for good. Only for routers that Ansible does not reach by a
        network that the policy could touch.
    type: int
    default: 120
  check:
    description:
      - Whether to ask C(redirect check) first, and to go no further if something would
        break or leak.
    type: bool
    default: true
  wait:
    description: How many seconds to wait for another run of redirect on the router.
    type: int
    default: 60
  executable:
    description: The program, where it is not in the search path.
    type: path
attributes:
  check_mode:
    description: Says what would change, and changes nothing. The check runs all the same.
    support: full
  diff_mode:
    description: Shows how the files differ, and the router, object by object.
    support: full
  platform:
    description: Linux routers.
    support: full
    platforms: Linux
"""

EXAMPLES = r"""
- name: Put the policy in force
  redirect.router.policy:
    content: "{{ lookup('ansible.builtin.template', 'policy.toml.j2') }}"
    lists:
      networks.txt: "{{ lookup('ansible.builtin.file', 'networks.txt') }}"
    confirm: 120

- name: Take everything back
  redirect.router.policy:
    state: absent
"""

RETURN = r"""
drift:
  description: What the router had to change, one object a line, as C(redirect diff) prints it.
  returned: always
  type: str
  sample: "+ rule 103 fwmark 0x1/0xff lookup 103"
confirmed:
  description: Whether the policy was confirmed over a fresh connection.
  returned: when something was applied
  type: bool
  sample: true
"""

import contextlib
import json
import os
import shutil

from ansible.module_utils.basic import AnsibleModule

# Where redirect keeps what it has done; a router that never had it has none.
STATE = "/var/lib/redirect"
# What redirect says with its exit status.
DONE = 0
DRIFT = 2


class Router:
    """The program on this router."""

    def __init__(self, module):
        self.module = module
        self.program = module.params["executable"] or module.get_bin_path(
            "redirect", opt_dirs=["/usr/sbin", "/usr/local/sbin"]
        )
        if self.program is None and module.check_mode:
            # A run without check mode would have installed it by now.
            module.exit_json(
                changed=module.params["state"] == "applied",
                drift="redirect is not installed: all of the policy would be new",
                unconfirmed=False,
            )
        if self.program is None and module.params["state"] == "absent" and not os.path.exists(STATE):
            module.exit_json(changed=False, drift="", unconfirmed=False)
        if self.program is None:
            module.fail_json(msg="redirect is not installed on this router")

    def run(self, *arguments, accepted=(DONE,)):
        """Runs it; what it fails with, unless anything is accepted, is what this module fails with."""
        status, stdout, stderr = self.module.run_command([self.program] + list(arguments))
        if accepted is not None and status not in accepted:
            self.module.fail_json(
                msg=stderr.strip() or stdout.strip() or "redirect %s failed" % arguments[0],
                cmd=" ".join(arguments),
                rc=status,
                stdout=stdout,
                stderr=stderr,
            )
        return status, stdout


def read(path):
    """The file's text; none if there is no such file."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(path, text):
    """Nobody but root may write it, or redirect would refuse it."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o644)


def judge(router, policy):
    """Fails if the policy would break or leak on this router, now that it is as it is."""
    status, findings = router.run("check", "--json", policy, accepted=None)
    if status == DONE:
        return
    if status == DRIFT:
        errors = [each["code"] for each in json.loads(findings)["findings"] if each["severity"] == "error"]
        # What others have taken away of the policy in force is what an apply puts back.
        if errors and set(errors) == {"drift"}:
            return
    # Again, for people.
    router.run("check", policy)


class Files:
    """The policy and its lists, as wanted and as they are; none where what lies there is wanted."""

    def __init__(self, module):
        params = module.params
        self.module = module
        self.path = params["path"]
        self.home, self.name = os.path.split(self.path)
        self.texts = {}
        if params["content"] is not None:
            self.texts = dict(params["lists"])
            self.texts[self.name] = params["content"]
        elif params["lists"]:
            module.fail_json(msg="`lists` come with the `content` of the policy that names them")
        for name in self.texts:
            if os.path.basename(name) != name or name in ("", ".", ".."):
                module.fail_json(msg="a list is put beside the policy: `%s` must be a file name alone" % name)
        found = {name: read(os.path.join(self.home, name)) for name in self.texts}
        self.differing = {name: found[name] for name in sorted(found) if found[name] != self.texts[name]}

    @contextlib.contextmanager
    def aside(self, directory):
        """The policy's path in a directory of its own, gone afterwards, with its lists beside it."""
        if not self.texts:
            yield self.path
            return
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory, mode=0o700)
        try:
            for name, text in self.texts.items():
                write(os.path.join(directory, name), text)
            yield os.path.join(directory, self.name)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def put(self):
        """Replaces each differing file whole."""
        if self.differing:
            os.makedirs(self.home, mode=0o755, exist_ok=True)
        for name in self.differing:
            new = os.path.join(self.module.tmpdir, "new")
            write(new, self.texts[name])
            self.module.atomic_move(new, os.path.join(self.home, name))

    def differences(self):
        """For `--diff`."""
        return [
            {
                "before_header": os.path.join(self.home, name),
                "after_header": os.path.join(self.home, name),
                "before": before or "",
                "after": self.texts[name],
            }
            for name, before in self.differing.items()
        ]


def applied(module, router):
    """Judges, compares, and applies."""
    params = module.params
    files = Files(module)
    with files.aside(os.path.join(module.tmpdir, "judged")) as judged:
        if params["check"]:
            judge(router, judged)
        status, drift = router.run("diff", judged, accepted=(DONE, DRIFT))

    result = {
        "changed": bool(files.differing) or status == DRIFT,
        "drift": drift,
        "unconfirmed": False,
    }
    if module._diff:
        result["diff"] = files.differences() + [{"prepared": drift}]
    if module.check_mode or not result["changed"]:
        return result

    apply = ["apply", "--wait", str(params["wait"])]
    if status == DRIFT and params["confirm"]:
        # What lies on the router stays until the new policy is confirmed: a router that goes
        # back has the files that go with it. The history shows this path, so it says what it was.
        with files.aside(os.path.join(files.home, ".unconfirmed")) as policy:
            router.run(*apply, "--confirm", str(params["confirm"]), policy)
        result["unconfirmed"] = True
    else:
        files.put()
        router.run(*apply, files.path)
    return result


def absent(module, router):
    """Takes everything back."""
    script = router.run("teardown", "--dry-run")[1]
    changes = module.from_json(router.run("teardown", "--dry-run", "--format", "json")[1])["changes"]
    result = {"changed": bool(changes), "drift": script if changes else "", "unconfirmed": False}
    if module._diff and changes:
        result["diff"] = {"prepared": script}
    if changes and not module.check_mode:
        router.run("teardown", "--wait", str(module.params["wait"]))
    return result


def main():
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["applied", "absent"], "default": "applied"},
            "content": {"type": "str"},
            "lists": {"type": "dict", "default": {}},
            "path": {"type": "path", "default": "/etc/redirect/policy.toml"},
            "confirm": {"type": "int", "default": 120},
            "check": {"type": "bool", "default": True},
            "wait": {"type": "int", "default": 60},
            "executable": {"type": "path"},
        },
        supports_check_mode=True,
    )
    router = Router(module)
    if module.params["state"] == "absent":
        result = absent(module, router)
    else:
        result = applied(module, router)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
