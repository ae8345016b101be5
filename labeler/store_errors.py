"""What a store's library raises -> whose fault it is. Must not know any of these libraries, nor what was asked for.

Each store has exception classes of its own and passes some of them off as Python's (s3fs gives an expired token out as
``PermissionError``, a missing bucket as ``FileNotFoundError``). So what decides is the code and the HTTP status that
the store answered, wherever they stand in the chain of causes; the class only where there was no answer.
"""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labeler.errors import LabelerError, OptionsError, StorageError, StorageRefusedError
from labeler.stores import hide_secrets

_CREDENTIALS = frozenset(
    {
        *("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId"),
        *("UnrecognizedClientException", "SignatureDoesNotMatch", "TokenRefreshRequired", "RequestExpired", "AuthFailure"),
        *("RequestTimeTooSkewed", "NotSignedUp", "AccountProblem", "AllAccessDisabled"),  # So far S3.
        *("AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation", "AccountIsDisabled"),  # Azure.
    }
)
_NO_KEY = frozenset({"KeyTooLongError"})  # No object can be called so.
_ARCHIVED = frozenset({"InvalidObjectState", "BlobArchived", "BlobBeingRehydrated"})  # Each has to be fetched from there.
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted", "AccountBeingCreated"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientAccountPermissions", "AccountQuotaExceeded"})
_NO_CREDENTIALS_CLASSES = frozenset(
    {
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
        *("TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError"),  # So far botocore.
        *("DefaultCredentialsError", "RefreshError"),  # google.auth
        *("ClientAuthenticationError", "CredentialUnavailableError"),  # azure
    }
)
_LONGEST_CHAIN = 8

# What the operating system says of files.
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_NAME = frozenset({errno.ENAMETOOLONG, errno.EILSEQ, errno.ELOOP})  # EILSEQ: disks that take names in UTF-8 alone.
_IN_THE_WAY = _NO_NAME | {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY}
_NO_SUCH_FILE = _NO_NAME | {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENXIO}
_LASTING = _DISK_FULL | {errno.EROFS}


@contextlib.contextmanager
def translate_store_errors(uri: str, *, writing: bool = False, may_be_gone: bool = False) -> Iterator[None]:
    """Raise what the store's library raises as one of ours; with ``may_be_gone`` not that there is no such object.

    Raises:
        FileNotFoundError: there is no such object to be read.
        PermissionError: this one may not be read.
        StorageRefusedError: credentials, bucket or quota; no use to try again.
        OptionsError: the store's library knows no such option.
        StorageError: everything else; the next try may go well.
    """
    try:
        yield
    except LabelerError:
        raise
    except Exception as error:
        sorted_error = sort_store_error(error, uri=uri)
        if may_be_gone and isinstance(sorted_error, FileNotFoundError):
            return
        raise (_refuse_writing(uri, sorted_error) if writing else sorted_error) from error


@contextlib.contextmanager
def translate_local_errors(path: Path, *, writing: bool = False) -> Iterator[None]:
    """Raise what the operating system raises over one local path as one of ours.

    Raises:
        FileNotFoundError: there is no such file to be read, or none can be by that name.
        PermissionError: it may not be read.
        StorageRefusedError: the disk is full or may not be written, or something else has the name; no use to try again.
        StorageError: everything else.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError) as error:
        if writing:
            raise _refuse_writing(path, error) from error
        raise
    except OSError as error:
        if not writing and error.errno in _NO_SUCH_FILE:
            raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
        verb = "written" if writing else "read"
        if error.errno in _DISK_FULL:
            raise StorageRefusedError(f"{path} can't be {verb}: {error.strerror or error} (the disk is full)") from error
        is_no_name = writing and error.errno == errno.EINVAL  # As exFAT says of "a:b".
        kind = StorageRefusedError if is_no_name or error.errno in _LASTING | _IN_THE_WAY else StorageError
        raise kind(f"{path} can't be {verb}: {error.strerror or error}") from error
    except ValueError as error:  # A null character in the name.
        missing = FileNotFoundError(errno.ENOENT, str(error), str(path))
        raise (_refuse_writing(path, missing) if writing else missing) from error


def _refuse_writing(place: str | Path, error: Exception) -> Exception:
    """What can't be read is its reader's affair, perhaps one image's; what can't be written is always the store's."""
    if isinstance(error, FileNotFoundError | PermissionError):
        return StorageRefusedError(f"{place} can't be written: {error.strerror or error}")
    return error


def sort_store_error(error: Exception, *, uri: str) -> Exception:
    """The error of ours that a store's error is."""
    if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):  # Some options are used that late.
        return OptionsError(f"--storage-options: the store of {uri} does not take one of them: {_first_line(error)}")
    chain = list(_follow_causes(error))
    codes = [code for code in map(_find_code, chain) if code]
    status = next((status for status in map(_find_status, chain) if status), None)
    named = " ".join(codes[:1])
    if _CREDENTIALS.intersection(codes) or status == 401:
        return StorageRefusedError(
            f"{uri}: the store does not accept the credentials ({named or status}): {_first_line(error)}"
        )
    if _NO_BUCKET.intersection(codes):
        return StorageRefusedError(f"{uri}: there is no such bucket or container ({named})")
    if _FULL.intersection(codes) or status == 507:
        return StorageRefusedError(f"{uri}: the store is full ({named or status}): {_first_line(error)}")
    if status is None and _NO_CREDENTIALS_CLASSES.intersection(type(link).__name__ for link in chain):
        return StorageRefusedError(f"{uri}: no usable credentials: {_first_line(error)}")
    if status is None and isinstance(error, OSError) and error.errno in _LASTING:
        return StorageRefusedError(f"{uri}: {_first_line(error)}")
    if status is None and isinstance(error, OSError) and str(error).startswith("Forbidden: "):  # gcsfs: the address, then why.
        return PermissionError(errno.EACCES, f"the store refuses (403: {hide_secrets(str(error).splitlines()[-1])})", uri)
    if status in (404, 410) or _NO_KEY.intersection(codes) or (status is None and isinstance(error, _NOT_THERE)):
        return FileNotFoundError(errno.ENOENT, "no such object", uri)
    if status in (403, 451) or _ARCHIVED.intersection(codes) or (status is None and isinstance(error, PermissionError)):
        return PermissionError(errno.EACCES, f"the store refuses ({named or status or _first_line(error)})", uri)
    answer = f"the store answered {named or status}" if named or status else type(error).__name__
    return StorageError(f"{uri}: {answer}: {_first_line(error)}")


def is_past_the_end(error: Exception) -> bool:
    """Whether the store says that the range which was asked for begins where the object has ended."""
    return 416 in map(_find_status, _follow_causes(error))


_NOT_THERE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


def _follow_causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(_LONGEST_CHAIN):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _find_code(error: BaseException) -> str | None:
    """The store's own word for what is wrong: botocore's ``response``, azure's ``error_code``."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", "")) or None
    code: Any = getattr(error, "error_code", None)
    return str(getattr(code, "value", code)) if code else None


def _find_status(error: BaseException) -> int | None:
    """The HTTP status of the answer: botocore's ``response``, else an attribute that each library calls differently."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        status: Any = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    for name in ("status_code", "status", "code"):
        status = getattr(error, name, None)
        with contextlib.suppress(TypeError, ValueError):
            if status is not None and 300 <= int(status) < 600:
                return int(status)
    return None


def _first_line(error: BaseException) -> str:
    return hide_secrets((str(error).splitlines() or [type(error).__name__])[0])
