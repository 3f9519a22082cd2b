"""Paths and URLs of inputs: made absolute, and without passwords, tokens and signatures."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit, urlunsplit

from hpc.base.errors import UserError

_WITH_USER = ("sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs")  # the user's name is part of the address
_SECRET = re.compile(
    r"token|secret|passw|credential|signature|hmac|jwt|access_?key|api_?key|^(auth|sig|se|sp|sv|x-amz-.*|x-goog-.*)$",
    re.I,
)


def absolute(pattern: str) -> str:
    """A path pattern made absolute, also behind a leading `@`; URLs stay as they are."""
    if "://" in pattern:
        return pattern
    at, path = ("@", pattern[1:]) if pattern.startswith("@") else ("", pattern)
    return at + os.path.abspath(path)


def without_credentials(url: str) -> str:
    """A URL without password, token or signature: what may be written into a run directory.

    >>> without_credentials("s3://KEY:SECRET@bucket/0.tar"), without_credentials("https://h/0.tar?sig=x&v=1")
    ('s3://bucket/0.tar', 'https://h/0.tar?v=1')
    """
    if "://" not in url:
        return url
    head, _, tail = url.rpartition("::")  # chained filesystems: simplecache::https://...
    parts = urlsplit(tail.replace("#", "%23"))  # a key may hold '#'
    user, _, host = parts.netloc.rpartition("@")
    if user and parts.scheme in _WITH_USER:
        host = f"{user.partition(':')[0]}@{host}"
    query = "&".join(p for p in parts.query.split("&") if not _SECRET.search(p.partition("=")[0]))
    clean = urlunsplit((parts.scheme, host, parts.path, query, "")).replace("%23", "#")
    return f"{head}::{clean}" if head else clean


def _refuse_secrets(url: str) -> None:
    """UserError for a URL that cannot be read without the secret in it, because only the bare URL is kept in a run.

    Store URLs such as s3://KEY:SECRET@bucket are fine: they are listed with these credentials, and later read with
    those of the environment.
    """
    clean = without_credentials(url)
    parts, bare = urlsplit(url.rpartition("::")[2]), urlsplit(clean.rpartition("::")[2])
    if parts.query != bare.query:
        what = "a signature or token in its query (a presigned URL)"
    elif parts.netloc != bare.netloc and parts.scheme in ("http", "https"):
        what = "a user or password"
    else:
        return
    raise UserError(
        f"plan: {clean} was given with {what}, which expires and is never written into a run. Name the object itself, "
        "with credentials from the environment (s3://, gs://, az://), put headers for web servers into fsspec's "
        "configuration, or copy the tars to a disk."
    )
