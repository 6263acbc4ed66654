"""A store in an S3 bucket, through fsspec's s3fs. Imported only if a job has one: it takes a second.

An object appears whole when its put (or its multipart upload) completes, so no temporary names are needed. Every request
has connect and read time-outs and few retries; `lane` bounds the sum. Counterpart: `filesystem`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import s3fs
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from fsspec.exceptions import FSTimeoutError

from .base import READ_SIZE, Chunk, NotFound, Reader, StoreError, pieces

_PART = 16 << 20  # bytes; S3 allows 10,000 parts, so a shard may have 160 GB
_TIMEOUTS = {"connect_timeout": 4, "read_timeout": 8, "retries": {"max_attempts": 1, "mode": "standard"}}
_LOGIN = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken"})


class ObjectStore:
    """`bucket` must exist; `prefix` need not. `environment` holds the usual AWS_* names."""

    def __init__(self, name: str, bucket: str, prefix: str, environment: Mapping[str, str], *, login: bool) -> None:
        self.name, self.bucket, self.prefix = name, bucket, prefix.strip("/")
        self._login = _required_login(name, environment) if login else _login(environment)
        self.endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""
        self._region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or None
        self._system: Any = None

    def probe(self, need: int) -> None:
        """List one key: shows a missing bucket, wrong credentials and an unreachable server. `need` is not limited here."""
        with self._explained():
            self._s3.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=self._key(""), MaxKeys=1)

    def listing(self, folder: str) -> dict[str, int]:
        """See `Store`."""
        prefix = self._key(folder)
        prefix = f"{prefix}/" if prefix else ""
        found: dict[str, int] = {}
        token: dict[str, str] = {}
        with self._explained():
            while True:
                page = self._s3.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=prefix, Delimiter="/", **token)
                found.update({c["Key"][len(prefix) :]: int(c["Size"]) for c in page.get("Contents", ())})
                found.update({c["Prefix"][len(prefix) :].rstrip("/"): -1 for c in page.get("CommonPrefixes", ())})
                if not page.get("IsTruncated") or not page.get("NextContinuationToken"):
                    break
                token = {"ContinuationToken": page["NextContinuationToken"]}
        return {name: size for name, size in found.items() if name}

    def read(self, path: str, limit: int) -> bytes:
        """See `Store`."""
        with self._explained(path):
            size = int(self._s3.call_s3("head_object", Bucket=self.bucket, Key=self._key(path))["ContentLength"])
            if size > limit:
                raise StoreError(f"{path} is larger than {limit} bytes: not one of ours")
            return bytes(self._s3.cat_file(self._path(path), start=0, end=size)) if size else b""

    def open(self, path: str) -> AbstractContextManager[Reader]:
        """See `Store`."""
        return self._open(path)

    @contextmanager
    def _open(self, path: str) -> Iterator[Reader]:
        with self._explained(path):
            size = int(self._s3.call_s3("head_object", Bucket=self.bucket, Key=self._key(path))["ContentLength"])
        yield _ObjectReader(self, path, size)

    def fetch(self, path: str, start: int, end: int) -> bytes:
        """A range of an object."""
        with self._explained(path):
            return bytes(self._s3.cat_file(self._path(path), start=start, end=end))

    def write(self, path: str, chunks: Iterable[Chunk]) -> None:
        """One put if it fits in a part, else a multipart upload that is aborted if anything fails."""
        parts = pieces(chunks, _PART)
        first, second = next(parts, b""), next(parts, None)
        if second is None:
            with self._explained(path):
                self._s3.call_s3("put_object", Bucket=self.bucket, Key=self._key(path), Body=first)
            return
        self._write_parts(path, _chain(first, second, parts))

    def _write_parts(self, path: str, parts: Iterator[bytes]) -> None:
        where = {"Bucket": self.bucket, "Key": self._key(path)}
        with self._explained(path):
            where["UploadId"] = self._s3.call_s3("create_multipart_upload", **where)["UploadId"]
        done: list[dict[str, Any]] = []
        try:
            for number, part in enumerate(parts, 1):  # outside of _explained: the source's own errors pass through
                with self._explained(path):
                    reply = self._s3.call_s3("upload_part", **where, PartNumber=number, Body=part)
                done.append({"PartNumber": number, "ETag": reply["ETag"]})
            with self._explained(path):
                self._s3.call_s3("complete_multipart_upload", **where, MultipartUpload={"Parts": done})
        except BaseException:
            with suppress(StoreError), self._explained(path):
                self._s3.call_s3("abort_multipart_upload", **where)
            raise

    def delete(self, path: str) -> None:
        """See `Store`."""
        names = self.listing(path)
        with self._explained(path):
            for key in [*(f"{path}/{name}" for name, size in names.items() if size >= 0), path]:
                self._s3.call_s3("delete_object", Bucket=self.bucket, Key=self._key(key))

    @property
    def _s3(self) -> Any:
        """Made at first use, in the thread that uses it."""
        if self._system is None:
            path_style = {"s3": {"addressing_style": "path"}} if self.endpoint else {}
            self._system = s3fs.S3FileSystem(
                **self._login,
                endpoint_url=self.endpoint or None,
                client_kwargs={"region_name": self._region} if self._region else {},
                config_kwargs={**_TIMEOUTS, **path_style},
                skip_instance_cache=True,
                use_listings_cache=False,
                default_fill_cache=False,
            )
            self._system.retries = 2
        return self._system

    def _key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    def _path(self, path: str) -> str:
        return f"{self.bucket}/{self._key(path)}"

    @contextmanager
    def _explained(self, path: str = "") -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StoreError(f"no S3 credentials: give the store a secretRef with {_names()}") from error
        except (OSError, ClientError, BotoCoreError, FSTimeoutError, TimeoutError) as error:
            raise self._translated(error, path) from error

    def _translated(self, error: Exception, path: str) -> StoreError:
        """s3fs turns botocore's errors into OSErrors and keeps the original as their cause."""
        origin = error if isinstance(error, ClientError) else error.__cause__
        where = f"{self.endpoint or 'AWS S3'}"
        if not isinstance(origin, ClientError):
            return StoreError(
                f"cannot reach {where}: {_short(error)}: check the endpoint and the network; tried again by itself"
            )
        code = str(origin.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            return StoreError(f"bucket {self.bucket!r} does not exist at {where}: create it, or correct the store's url")
        if code in ("NoSuchKey", "404", "NotFound"):
            return NotFound(f"{path} does not exist in bucket {self.bucket!r}")
        if code in _LOGIN:
            return StoreError(f"{where} does not accept the credentials ({code}): correct {_names()} in the store's Secret")
        if code in ("AccessDenied", "403", "Forbidden", "AllAccessDisabled"):
            return StoreError(f"access to bucket {self.bucket!r} at {where} is denied: give the key read and write permission")
        return StoreError(f"{where} answered {code}: {_short(origin)}")


class _ObjectReader:
    def __init__(self, store: ObjectStore, path: str, size: int) -> None:
        self._store, self._path, self._size, self._at = store, path, size, 0
        self._ahead = b""

    def read(self, size: int) -> bytes:
        if not self._ahead and self._at < self._size:
            self._ahead = self._store.fetch(self._path, self._at, min(self._at + max(size, READ_SIZE), self._size))
            self._at += len(self._ahead)
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data


def _login(environment: Mapping[str, str]) -> dict[str, str]:
    names = {"key": "AWS_ACCESS_KEY_ID", "secret": "AWS_SECRET_ACCESS_KEY", "token": "AWS_SESSION_TOKEN"}
    return {ours: environment[theirs] for ours, theirs in names.items() if environment.get(theirs)}


def _required_login(name: str, environment: Mapping[str, str]) -> dict[str, str]:
    login = _login(environment)
    if not {"key", "secret"} <= login.keys():
        raise StoreError(f"the Secret of store {name!r} lacks {_names()}: add the keys, then restart the pods")
    return login


def _names() -> str:
    return "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _chain(first: bytes, second: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield second
    yield from rest
