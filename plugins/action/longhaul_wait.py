"""Live progress for the module longhaul_validate (see longhaul_live), and a tokenizer.json for a host's model without one."""

from __future__ import annotations

import base64
import importlib.util
import shlex
import tempfile
from pathlib import Path
from typing import Any

from ansible.utils.display import Display

_spec = importlib.util.spec_from_file_location("longhaul_live", Path(__file__).resolve().with_name("longhaul_live.py"))
if _spec is None or _spec.loader is None:
    raise ImportError("longhaul_live.py is missing beside this plugin")
_live = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_live)


class ActionModule(_live.LiveAction):  # type: ignore[name-defined]
    """Start async, follow the progress file, collect the result."""

    def _arguments(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """Point the run to a tokenizer.json made here, where the model on the host has only files that transformers reads.

        Hosts have the package tokenizers and no transformers. Where it cannot be made, the run goes on without and says so.
        """
        arguments: dict[str, Any] = super()._arguments(task_vars)
        if not self._is_long() or arguments.get("remote"):
            return arguments
        _live._package()
        from longhaul.errors import UserError
        from longhaul.prompts.convert import can_convert, converted, files_to_convert

        options = dict(arguments["options"])
        folder = str(options.get("tokenizer_dir") or arguments["spec"]["settings"]["model_path"])
        listed = self._low_level_execute_command(f"ls -1 {shlex.quote(folder)}", sudoable=True)
        wanted = files_to_convert(str(listed.get("stdout", "")).splitlines())
        if not wanted or not can_convert():
            return arguments
        with tempfile.TemporaryDirectory() as here:
            try:
                for name in wanted:
                    (Path(here) / name).write_bytes(self._read(f"{folder}/{name}", task_vars))
                made = converted(Path(here))
            except UserError as error:
                Display().warning(f"{task_vars.get('inventory_hostname', '')}: {error}")
                return arguments
        arguments["options"] = {**options, "tokenizer_dir": self._bring(made, str(arguments["cache_dir"]))}
        return arguments

    def _read(self, path: str, task_vars: dict[str, Any]) -> bytes:
        """A file of the host."""
        read = self._execute_module(module_name="ansible.legacy.slurp", module_args={"src": path}, task_vars=task_vars)
        if read.get("failed"):
            from longhaul.errors import UserError

            raise UserError(f"{path} cannot be read ({read.get('msg')})", "a readable file", "check its permissions")
        return base64.b64decode(read["content"])

    def _bring(self, made: Path, cache_dir: str) -> str:
        """Copy the folder ``made`` into the host's cache; its path there."""
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        sent = self._connection._shell.join_path(self._connection._shell.tmpdir, "tokenizer")
        target = f"{cache_dir}/tokenizers/{made.name}"
        self._low_level_execute_command(f"mkdir -p {shlex.quote(sent)}", sudoable=False)
        files = [(str(file), self._connection._shell.join_path(sent, file.name)) for file in made.iterdir()]
        for local, remote in files:
            self._transfer_file(local, remote)
        self._fixup_perms2([self._connection._shell.tmpdir, sent, *(remote for _, remote in files)])
        self._low_level_execute_command(
            f"mkdir -p {shlex.quote(target)} && cp {shlex.quote(sent)}/* {shlex.quote(target)}/", sudoable=True
        )
        return target
