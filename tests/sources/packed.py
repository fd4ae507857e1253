"""Files packed into archives, in memory, for the tests of what reads them."""

from __future__ import annotations

import io
import tarfile
import zipfile


def zipped(*files: tuple[str, bytes]) -> bytes:
    """Return a zip archive of files, each a name and what it holds."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, whole in files:
            archive.writestr(name, whole)
    return stream.getvalue()


def tar(*files: tuple[str, bytes], form: int = tarfile.DEFAULT_FORMAT) -> bytes:
    """Return a tar archive of files, each a name and what it holds."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, whole in files:
            member = tarfile.TarInfo(name)
            member.size = len(whole)
            archive.addfile(member, io.BytesIO(whole))
    return stream.getvalue()
