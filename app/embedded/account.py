"""The account that PostgreSQL runs as. PostgreSQL refuses root, so a service that is root uses another account."""

import os
import pwd
import re
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from app.errors import StartError

# Bits of CapEff in /proc/self/status. Containers often have only the second.
CAPABILITIES = {"dac_read_search": 1 << 2, "dac_override": 1 << 1}


class Account(NamedTuple):
    """The account of PostgreSQL; without a `uid` it is the service's own."""

    uid: int | None = None
    gid: int | None = None
    prefix: tuple[str, ...] = ()  # the command that changes to it, if setting the ids is not enough

    @classmethod
    def of(cls, pgdata: Path) -> "Account":
        """The owner of the cluster, else `postgres` or `nobody`. Raises StartError if neither account exists."""
        with suppress(FileNotFoundError):
            owner = pgdata.stat()
            if owner.st_uid != 0:
                return cls(owner.st_uid, owner.st_gid)
        for name in ("postgres", "nobody"):
            with suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid)
        raise StartError("PostgreSQL does not run as root, and there is no user `nobody`: run as another user")

    @property
    def to_uid(self) -> int | None:
        """The uid for the launched program; None if the prefix command sets it."""
        return None if self.prefix else self.uid

    @property
    def to_gid(self) -> int | None:
        return None if self.prefix else self.gid

    @property
    def directory_mode(self) -> int:
        """The mode of a directory that the service owns and the account must pass."""
        return 0o711 if self.uid is not None and not self.prefix else 0o700

    def give(self, path: Path) -> None:
        """Make the account the owner of `path`."""
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid)

    def may_search(self, directory: Path) -> bool:
        """Whether the account can reach the contents of `directory`."""
        status = directory.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        return bool(status.st_mode & (stat.S_IXGRP if status.st_gid == self.gid else stat.S_IXOTH))

    def passing(self, closed: Path) -> "Account":
        """This account with the right to pass directories such as `closed`. Raises StartError if that fails."""
        setpriv = shutil.which("setpriv")
        effective = 0
        with suppress(FileNotFoundError):
            found = re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
            effective = int(found[1], 16) if found else 0
        capability = next((name for name, bit in CAPABILITIES.items() if effective & bit), None)
        if setpriv is None or capability is None:
            raise StartError(
                f"PostgreSQL does not run as root, and user id {self.uid}, which it would run as, cannot enter "
                f"{closed}; run the service as another user, move its files out of {closed} (PQS_DATA_DIR, or the "
                "Python environment), or install `setpriv` (util-linux)"
            )
        command = (setpriv, f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups")
        rights = (f"--inh-caps=-all,+{capability}", f"--ambient-caps=-all,+{capability}")
        # Without no_setuid_fixup, access(2) ignores capabilities; initdb checks its programs with access(2).
        return self._replace(prefix=(*command, *rights, "--securebits=+no_setuid_fixup", "--"))
