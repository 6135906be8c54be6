"""TLS by the user's own certificate; what can't be used of it is told at start."""

import ssl
from pathlib import Path

from notifyworker.errors import SettingsError

HANDSHAKE_S = 5.0


def server_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """Make ready to serve with these files; None without any. Raises SettingsError, naming the setting and the file."""
    if certificate is None or key is None:
        return None  # the settings refuse one without the other
    _check_readable("tls_cert", certificate)
    _check_readable("tls_key", key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = f"tls_key: {key} is not the key of the certificate in {certificate}"
            raise SettingsError(message) from None
        message = f"tls_cert, tls_key: {certificate} and {key} can't be used: {error.reason or 'not PEM'}"
        raise SettingsError(message, hint="PEM files: the certificate with its chain, and its key") from None
    return context


def _check_readable(setting: str, file: Path) -> None:
    try:
        file.open("rb").close()
    except OSError as error:
        message = f"{setting}: {file} can't be read: {error.strerror}"
        raise SettingsError(message) from None


def _refuse_password() -> str:
    """OpenSSL would ask on the terminal, and a service wait there for ever."""
    message = "tls_key: the key is encrypted, and there is nobody to ask for its password"
    raise SettingsError(message, hint="give it unencrypted, readable by this account alone: openssl pkey -in KEY -out PLAIN")
