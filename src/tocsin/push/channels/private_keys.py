"""Private keys in PEM."""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key


def p256_key_in(pem: bytes) -> EllipticCurvePrivateKey | None:
    """Return a private key on the curve P-256, without a passphrase; None if the text is anything else."""
    key = _key_in(pem)
    return key if isinstance(key, EllipticCurvePrivateKey) and isinstance(key.curve, SECP256R1) else None


def rsa_key_in(pem: bytes) -> RSAPrivateKey | None:
    """Return an RSA private key, without a passphrase; None if the text is anything else."""
    key = _key_in(pem)
    return key if isinstance(key, RSAPrivateKey) else None


def _key_in(pem: bytes) -> object:
    try:
        return load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
