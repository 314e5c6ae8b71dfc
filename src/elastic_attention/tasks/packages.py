"""Fetch one pinned package archive (wheel or npm tarball) with its registry's own client, and check it."""

from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from elastic_attention.errors import DownloadError


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedPackage:
    """A package version and the sha256 of its archive. `client` is "pip" or "npm"."""

    client: str
    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """The version as its client spells it."""
        return f"{self.name}=={self.version}" if self.client == "pip" else f"{self.name}@{self.version}"


def fetch_package(package: PinnedPackage, folder: Path) -> Path:
    """Download the archive of `package` alone (no dependencies, nothing installed or run) into `folder`.

    Returns its path. Raises DownloadError when the client is missing or fails, when the disk is full, and
    when the checksum differs; the archive is then removed.
    """
    folder = folder.resolve()  # the client runs inside it
    folder.mkdir(parents=True, exist_ok=True)
    run_client(package, folder)
    archives = sorted(path for path in folder.iterdir() if path.suffix in {".whl", ".tgz"})
    if len(archives) != 1:
        names = [path.name for path in archives]
        raise DownloadError(f"{package.requirement}: expected one archive in {folder}, found {names}; try again.")
    digest = sha256_of(archives[0])
    if digest != package.sha256:
        archives[0].unlink()
        raise DownloadError(
            f"{package.requirement}: sha256 is {digest}, expected {package.sha256}. The download is damaged or "
            "was replaced: try again, and check which registry or mirror the client is set to."
        )
    return archives[0]


def run_client(package: PinnedPackage, folder: Path) -> None:
    """Run `pip download --no-deps` or `npm pack` for one package. Raises DownloadError with the client's last lines."""
    if package.client == "pip":
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += ["--only-binary=:all:", "--dest", str(folder), package.requirement]
    else:
        npm = shutil.which("npm")
        if npm is None:
            raise DownloadError(f"{package.requirement} needs the command 'npm'; install Node.js and try again.")
        command = [npm, "pack", "--silent", "--ignore-scripts", package.requirement]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        if "No space left" in result.stderr:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        last_lines = "\n".join(result.stderr.strip().splitlines()[-3:])
        raise DownloadError(
            f"{package.requirement} could not be fetched by {package.client}: {last_lines}\n"
            f"Check the network, and that '{' '.join(command[:4])}' works; then try again."
        )


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
